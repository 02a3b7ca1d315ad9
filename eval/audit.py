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
from eval.cases import OTHERWISE, Axis, Suite, cases
from eval.judges.base import Judge
from eval.metrics.clip_alignment import ClipAlignment
from eval.metrics.picture_distance import PictureDistance
from eval.metrics.unlearn_canvas import Rate, UnlearnCanvas
from eval.readers import Prompt
from eval.samples import Attempt, attempts, batches, draw
from eval.statistics import Interval, mcnemar, paired_difference

MODELS = ("base", "erased")
AXES: tuple[Axis, Axis] = ("style", "object")
Row = dict[str, Any]


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
        **summary(rows, plan),
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


def summary(rows: Sequence[Row], plan: Audit) -> dict[str, Any]:
    """Rates of both models as k, n and Wilson interval, paired differences, and confusion matrices."""
    axis, cross = plan.axis, "object" if plan.axis == "style" else "style"
    labels = {"style": [*plan.suite.styles, "none"], "object": [*plan.suite.objects, "none"]}
    models: dict[str, Any] = {}
    grid = [row for row in rows if row["role"] == "grid"]
    for model in MODELS:
        metric = UnlearnCanvas(labels[axis], labels[cross], plan.targets, plan.suite.apart)
        mine = [row for row in grid if row["model"] == model]
        metric.update([(r[axis], r[cross]) for r in mine], [(r["read"][axis]["label"], r["read"][cross]["label"]) for r in mine])
        models[model] = {
            "rates": {
                name: {"k": rate.k, "n": rate.n, **rate.interval._asdict()}
                for name, rate in {**metric.compute(), **_otherwise([row for row in rows if row["model"] == model], axis)}.items()
            },
            "confusion": {"labels": labels[axis], "counts": metric.confusion().tolist()},
            "clip": {"kept": _clip(mine, axis, plan.targets, False), "target": _clip(mine, axis, plan.targets, True)},
            "apart": _apart(mine, plan),
        }
    return {
        "axis": axis,
        "targets": list(plan.targets),
        "tier": plan.tier,
        "models": models,
        "paired": paired(grid, axis, plan.targets, plan.suite.apart),
    }


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
        if foreign := {row[axis] for row in rows} - known.keys():
            raise UserError(f"suite {suite.name} has no {axis} {sorted(foreign)[0]!r}, which {out} asked for.")
    return {**result, **summary(rows, Audit(suite, result["tier"], result["axis"], tuple(result["targets"])))}


def rows_of(out: Path) -> list[Row]:
    """Every picture of both models with what the judges read in it."""
    return _lines(out / "samples.jsonl")


def _clip(rows: Sequence[Row], axis: str, targets: Sequence[str], of_target: bool) -> dict[str, float]:
    import torch

    metric = ClipAlignment()
    metric.update(torch.tensor([r["read"]["clip"]["cosine"] for r in rows if (r[axis] in targets) == of_target]))
    return {name: round(value, 3) for name, value in metric.compute()._asdict().items()}


def _otherwise(rows: Sequence[Row], axis: Axis) -> dict[str, Rate]:
    """UA of pictures that ask for the concept in other words, by how they do."""
    found = {}
    for role in OTHERWISE:
        gone = [row["read"][axis]["label"] != row[axis] for row in rows if row["role"] == role]
        if gone:
            found[f"UA_{role}"] = Rate(sum(gone), len(gone))
    return found


def _apart(rows: Sequence[Row], plan: Audit) -> dict[str, dict[str, int]]:
    """Styles that count in no rate: pictures read as prompted."""
    found = {}
    for label in plan.suite.apart:
        mine = [r for r in rows if r["style"] == label]
        found[label] = {"k": sum(r["read"]["style"]["label"] == label for r in mine), "n": len(mine)}
    return found


def paired(rows: Sequence[Row], axis: Axis, targets: Sequence[str], apart: Sequence[str]) -> dict[str, Any]:
    """Model "erased" minus model "base" on the same cases and noise: difference of each rate, its interval, and McNemar's p."""
    cross = "object" if axis == "style" else "style"
    pairs = {(r["style"], r["object"], r["index"], r["model"]): r for r in rows}
    keys = sorted({key[:3] for key in pairs})
    tests = {
        "UA": (axis, lambda r: r[axis] in targets, lambda r, a: r["read"][a]["label"] != r[a]),
        "IRA": (axis, lambda r: r[axis] not in targets and r[axis] not in apart, _as_prompted),
        "CRA": (cross, lambda r: r[axis] not in targets and r[cross] not in apart, _as_prompted),
    }
    found = {}
    for name, (read, counts, success) in tests.items():
        table = [0, 0, 0, 0]
        for key in keys:
            base, erased = pairs[*key, "base"], pairs[*key, "erased"]
            if counts(base):
                table[2 * (not success(erased, read)) + (not success(base, read))] += 1
        both, erased_only, base_only, neither = table
        if not sum(table):
            continue
        difference: Interval = paired_difference(both, erased_only, base_only, neither)
        cells = {"both": both, "erased_only": erased_only, "base_only": base_only, "neither": neither}
        found[name] = {**difference._asdict(), **cells, "p": mcnemar(erased_only, base_only)}
    return found


def _as_prompted(row: Row, axis: str) -> bool:
    return row["read"][axis]["label"] == row[axis]
