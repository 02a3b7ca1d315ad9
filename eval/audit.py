"""suite -> samples -> readings -> rates: how much of a concept is gone, and what else went with it."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from erasure.discover import load
from erasure.edit import Edit
from erasure.erase import applied
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.overlap import overlap
from erasure.run import Run, digest, read_json, write_bytes, write_json
from eval.cases import Axis, Suite, cases
from eval.counting import MODELS, Row, counted
from eval.judges.base import Judge
from eval.metrics.picture_distance import PictureDistance
from eval.readers import Prompt
from eval.samples import Attempt, attempts, batches, draw

AXES: tuple[Axis, Axis] = ("style", "object")


@dataclass(frozen=True)
class Audit:
    """What to audit and how."""

    suite: Suite
    tier: str
    axis: Axis
    targets: tuple[str, ...]
    gone: tuple[str, ...] = ()  # labels of the other axis that the same edits erase; their cells are left out
    replay: tuple[Prompt, ...] = ()  # prompts of others that are said to bring the concept back

    @classmethod
    def of(cls, edits: Sequence[Edit], suite: Suite, tier: str, replay: Sequence[Prompt] = ()) -> list["Audit"]:
        """The audits of everything a stack of edits claims to erase, one for styles and one for objects where it erases both.

        Raises:
            UserError: a concept the suite does not have.
        """
        found = list(dict.fromkeys(suite.find(concept["name"]) for edit in edits for concept in edit.info.concepts))
        labels = {axis: tuple(label for a, label in found if a == axis) for axis in AXES}
        return [cls(suite, tier, axis, labels[axis], labels[AXES[1 - i]], tuple(replay)) for i, axis in enumerate(AXES) if labels[axis]]

    @property
    def todo(self) -> list[Attempt]:
        cross = "object" if self.axis == "style" else "style"
        asked = cases(self.suite, [(self.axis, t) for t in self.targets], self.tier, self.replay)
        return attempts(self.suite, [case for case in asked if getattr(case, cross) not in self.gone])


def audit(
    model: DiffusionModel,
    edits: Sequence[Edit],
    plan: Audit,
    out: Path,
    *,
    strength: float = 1.0,
    fresh: bool = False,
    other_base: bool = False,
) -> dict[str, Any]:
    """Draw, judge and count; returns the result that is also in out/result.json.

    `out` ends with images/base, images/erased, samples.jsonl, timing.json and result.json. Interrupted audits continue; readings of a new
    judge are added without drawing a picture.

    Args:
        edits: one, or several that are applied together, in this order.
        strength: of every edit.

    Raises:
        UserError: another job in `out`, an edit that does not fit the model.
    """
    job = job_record(model, edits, plan, strength)
    run = Run(out, job, fresh)
    with applied(model, edits, other_base, strength):  # complains before anything is written
        pass
    run.begin()
    base, begun = job["base"], time.monotonic()
    drawn = {"base": draw(model, base, plan.suite, plan.todo, out / "images" / "base")}
    with applied(model, edits, other_base, strength):
        weights = digest([base, strength, *(edit.digest() for edit in edits)])
        drawn["erased"] = draw(model, weights, plan.suite, plan.todo, out / "images" / "erased")
    judges = {
        **{axis: load("eval.judges", name, Judge)() for axis, name in plan.suite.judges.items()},
        "clip": load("eval.judges", "open_clip", Judge)(),
    }
    rows = judge(plan.todo, judges, out)
    distance = kept_distance(plan, out)
    about = {"edits": [edit_record(edit) for edit in edits], "overlap": overlap(model, edits)}
    result = {
        "tier": plan.tier,
        **counted(rows, plan.suite, plan.axis, plan.targets),
        "job": job,
        "distance": distance,
        "judges": {name: j.identity() for name, j in judges.items()},
        **about,
    }
    write_json(out / "timing.json", {"seconds": round(time.monotonic() - begun, 1), "drawn": drawn})
    run.finish(result)
    return result


def job_record(model: DiffusionModel, edits: Sequence[Edit], plan: Audit, strength: float) -> dict[str, Any]:
    """What identifies an audit."""
    return {
        "task": "audit",
        "base": model.fingerprint(),
        "edits": [edit.digest() for edit in edits],
        "suite": plan.suite.name,
        "suite_version": plan.suite.version,
        "axis": plan.axis,
        "tier": plan.tier,
        "strength": strength,
        "compute": str(model.compute).removeprefix("torch."),
        **({"replay": digest([asdict(prompt) for prompt in plan.replay])} if plan.replay else {}),
    }


def kept_distance(plan: Audit, out: Path) -> dict[str, float]:
    """How far the pictures that should stay moved: mean absolute difference to the base's from the same noise, in [0, 1]."""
    metric = PictureDistance()
    kept = [a for a in plan.todo if getattr(a.case, plan.axis) not in plan.targets]
    for (_, base), (_, erased) in zip(batches(kept, out / "images" / "base"), batches(kept, out / "images" / "erased"), strict=True):
        metric.update(base, erased)
    return {name: round(value, 5) for name, value in metric.compute()._asdict().items()}


def edit_record(edit: Edit) -> dict[str, Any]:
    info = edit.info
    return {
        "method": info.method,
        "fields": info.fields,
        "concepts": info.concepts,
        "seed": info.seed,
        "cost": info.cost,
        "base": info.base,
        "known": info.known,
        "notes": info.notes,
        "product": info.product,
    }


def judge(todo: Sequence[Attempt], judges: dict[str, Judge], out: Path) -> list[Row]:
    """Every judge's raw reading of every picture; readings on disk are used when the judge is the same."""
    readings: dict[tuple[str, str], dict[str, Any]] = {}
    for name, judge_ in judges.items():
        path = out / "readings" / f"{name}-{digest(judge_.identity())}.jsonl"
        known = {(row["model"], row["image"]): row["reading"] for row in _lines(path)}
        for model in MODELS:
            missing = [a for a in todo if (model, a.name) not in known]
            for group, pictures in batches(missing, out / "images" / model):
                for a, reading in zip(group, judge_.read(pictures, [a.case.prompt for a in group]), strict=True):
                    known[model, a.name] = reading
        write_bytes(
            path, "".join(json.dumps({"model": m, "image": i, "reading": r}) + "\n" for (m, i), r in sorted(known.items())).encode()
        )
        for at, reading in known.items():
            readings.setdefault(at, {})[name] = reading
    rows = [
        {
            "model": model,
            "image": f"images/{model}/{a.name}",
            "prompt": a.case.prompt,
            "seed": a.seed,
            "role": a.case.role,
            "variant": a.case.variant,
            "style": a.case.style,
            "object": a.case.object,
            "index": a.index,
            "read": readings[model, a.name],
        }
        for a in todo
        for model in MODELS
    ]
    write_bytes(out / "samples.jsonl", "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())
    return rows


def _lines(path: Path) -> list[Row]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def finished(out: Path) -> dict[str, Any]:
    """The result of a finished audit.

    Raises:
        UserError: there is none in that folder.
    """
    if not (out / "result.json").is_file():
        raise UserError(f"no finished audit at {out}: expected result.json there; `erasure audit EDIT` makes one.")
    result: dict[str, Any] = read_json(out / "result.json")
    if result.get("job", {}).get("task") != "audit":
        raise UserError(f"{out} holds no audit; give the audit-... folder inside it.")
    return result


def recounted(out: Path, suite: Suite) -> dict[str, Any]:
    """The result of a finished audit, counted again from its rows; `suite` may differ in its thresholds and in what is apart.

    Raises:
        UserError: no finished audit, or a suite that lacks a label of the rows.
    """
    result, rows = finished(out), rows_of(out)
    for axis, known in (("style", suite.styles), ("object", suite.objects)):
        if foreign := {row[axis] for row in rows if row[axis]} - known.keys():
            raise UserError(f"suite {suite.name} has no {axis} {sorted(foreign)[0]!r}, which {out} asked for.")
    return {**result, **counted(rows, suite, result["axis"], result["targets"])}


def rows_of(out: Path) -> list[Row]:
    """Every picture of both models with what the judges read in it.

    Raises:
        UserError: rows of an earlier version, which do not say how a prompt asks.
    """
    rows = _lines(out / "samples.jsonl")
    if any("role" not in row for row in rows):
        raise UserError(f"{out} was made by an earlier version of this project; audit again with --fresh.")
    return rows
