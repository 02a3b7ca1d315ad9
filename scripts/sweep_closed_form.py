"""Sweep the closed form's settings on the development concepts, and two published relatives of it: docs/results/closed-form.md.

    python scripts/sweep_closed_form.py --work runs/closed-form    # three quarters of an hour of one core

RECE's rounds (arXiv:2407.12383) and OCE (arXiv:2605.28902) are written here only, not as options of the project; the page says why.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from fill_docs import fill_section
from reproduce_methods import DEVELOPMENT, RATES
from torch import Tensor

from erasure.concept import parse_concepts
from erasure.edits import Edit
from erasure.edits.deltas import DOWN, UP
from erasure.erasing import erase
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.methods.uce import UCE, ClosedFormRows, low_rank_factors
from erasure.recipes import configure_method
from erasure.training.subspaces import orthonormal_basis
from eval.auditing.plan import AuditPlan
from eval.auditing.run import audit_plan
from eval.records.audit_result import AuditResult
from eval.records.models import ERASED
from eval.records.rates import RateName
from eval.suites.suite import load_suite

Rebuild = Callable[[DiffusionModel, UCE, ClosedFormRows], dict[str, Tensor]]
OCE_MULTIPLES = (1, 5, 10, 15, 20, 30)  # of the trace of what is kept


@dataclass(frozen=True)
class Setting:
    """One row of the table: fields of UCE, and what to compute instead of its edit, if anything."""

    label: str
    fields: dict[str, Any] = field(default_factory=dict)
    rebuild: Rebuild | None = None


def page(docs: Path) -> Path:
    return docs / "results" / "closed-form.md"


def revive(update: Tensor, rows: Tensor) -> Tensor:
    """Return RECE's revived rows x = (I + K)^-1 c (N, D), which the edited matrices answer as the base answers c."""
    return torch.linalg.solve(torch.eye(len(update), dtype=update.dtype) + update, rows.double().T).T


def to_tensors(model: DiffusionModel, update: Tensor) -> dict[str, Tensor]:
    """Return the edit W (I + K) of every matrix that reads the tokens."""
    left, right = low_rank_factors(update)
    parameters, tensors = model.parameters(), {}
    for name in model.closed_form_layers():
        tensors[name + UP] = (parameters[name].detach().double() @ left).half().contiguous()
        tensors[name + DOWN] = right.half().contiguous()
    return tensors


def rece(rounds: int, keep_rows: bool) -> Rebuild:
    """Return RECE: edit the revived rows after each round, alone on top of the edit, or solve for all rows together from the base."""

    def rebuild(model: DiffusionModel, method: UCE, rows: ClosedFormRows) -> dict[str, Tensor]:
        eye, total = torch.eye(rows.erase.shape[1], dtype=torch.float64), method.update_matrix(rows)
        erased, guides = rows.erase.double(), rows.guide.double()
        for _ in range(rounds):
            revived = revive(total, rows.erase)
            if keep_rows:
                erased, guides = torch.cat([erased, revived]), torch.cat([guides, rows.guide.double()])
                total = method.update_matrix(rows._replace(erase=erased, guide=guides))
            else:
                total = (eye + total) @ (eye + method.update_matrix(rows._replace(erase=revived))) - eye
        return to_tensors(model, total)

    return rebuild


def oce(multiple: float) -> Rebuild:
    """Return OCE: W' = Q W with Q = U V^T of M = -e (I - R*) R + W (P^T P / N + lambda I) W^T, values only."""

    def rebuild(model: DiffusionModel, method: UCE, rows: ClosedFormRows) -> dict[str, Tensor]:
        p, parameters, tensors = rows.retain.double(), model.parameters(), {}
        kept = p.T @ p / len(p) + 0.1 * torch.eye(p.shape[1], dtype=torch.float64)
        for name in (layer for layer in model.closed_form_layers() if layer.endswith("to_v.weight")):
            w = parameters[name].detach().double()
            away, toward = (orthonormal_basis(torch.nn.functional.normalize(x.double() @ w.T)) for x in (rows.erase, rows.guide))
            retained = w @ kept @ w.T
            pull = away @ away.T - toward @ (toward.T @ away) @ away.T  # (I - R*) R
            u, _, v = torch.linalg.svd(retained - multiple * retained.trace() * pull)
            tensors[name] = (u @ v @ w).half().contiguous()
        return tensors

    return rebuild


LAST = {"tokens": "last"}
SETTINGS = (
    Setting("UCE (the recipe: all tokens from the concept's last on)"),
    Setting("UCE, last token", LAST),
    Setting("project 0.1", {"project": 0.1}),
    Setting("project 0.1, retain weight 0", {"project": 0.1, "retain_weight": 0.0}),
    Setting("the same, last token (SPEED without its filters)", {**LAST, "project": 0.1, "retain_weight": 0.0, "hold": "start"}),
    Setting("guide retained, project 1e-6 (Double Projections)", {"project": 1e-6, "retain_weight": 0.0, "guide": "retained"}),
    Setting("RECE, 1 round, revived rows alone", {}, rece(1, keep_rows=False)),
    Setting("RECE, 1 round, all rows", {}, rece(1, keep_rows=True)),
    Setting("RECE, 2 rounds, all rows", {}, rece(2, keep_rows=True)),
    *(Setting(f"OCE, last token, e = {multiple} traces", LAST, oce(multiple)) for multiple in OCE_MULTIPLES),
)


def make_edit(model: DiffusionModel, name: str, setting: Setting, folder: Path) -> Edit:
    """Return the edit of a setting."""
    method, concepts, _ = configure_method(UCE, parse_concepts(name, kind=DEVELOPMENT[name]), model.family, setting.fields)
    edit = erase(model, concepts, method, out=folder / "edit")
    if setting.rebuild is None:
        return edit
    tensors = setting.rebuild(model, method, method.encode_rows(model, concepts)["sequence"])
    rebuilt = Edit(tensors, replace(edit.info, notes={"experiment": setting.label}))
    rebuilt.save(folder / "rebuilt")
    return Edit.load(folder / "rebuilt")


def count_cell(result: AuditResult, name: RateName) -> str:
    rate = result.models[ERASED].rates[name]
    return f"{round(rate.estimate * rate.n)}/{rate.n}"


def measure(model: DiffusionModel, name: str, setting: Setting, folder: Path) -> str:
    """Return the row of one concept and one setting; a refusal is a row as well."""
    try:
        edit = make_edit(model, name, setting, folder)
    except ValueError as error:
        return f"| {setting.label} | {name} | refused: {str(error).partition('.')[0]} | | | | |"
    (plan,) = AuditPlan.for_edits([edit], load_suite("pocket-dev"), "smoke")
    result = audit_plan(model, [edit], plan, folder / "audit")
    cells = " | ".join(count_cell(result, rate) for rate in (*RATES, RateName.IPA))
    return f"| {setting.label} | {name} | {cells} | {edit.info.notes.get('remaining', '')} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/closed-form"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args()
    model = load_model("pocket")
    rows = []
    for number, setting in enumerate(SETTINGS):
        rows += [measure(model, name, setting, args.work / str(number) / name) for name in DEVELOPMENT]
        print(*rows[-len(DEVELOPMENT) :], sep="\n", flush=True)
    head = ["| setting | concept | UA | IRA | CRA | IPA | of the way to the guide, remaining |", "|---|---|---|---|---|---|---|"]
    fill_section(page(args.docs), "settings", [*head, *rows])


if __name__ == "__main__":
    main()
