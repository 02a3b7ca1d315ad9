"""Pictures -> readings: every judge's raw word on every picture, kept, so that a threshold can change without a new picture."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from erasure.config.registry import load
from erasure.config.validation import built
from erasure.errors import UserError, unknown
from erasure.families.base import DiffusionModel
from erasure.storage.files import Damaged, folder_exists, is_there, tell, write_bytes
from erasure.storage.run import digest
from eval.generation import Attempt, batches
from eval.judges.base import Judge, MissingWeights
from eval.scoring.calibration import FOLDER, Calibration
from eval.scoring.counting import Row
from eval.suites.suite import Axis, Suite

AXES: tuple[Axis, Axis] = ("style", "object")


def configured(suite: Suite) -> dict[str, Judge]:
    """The judges of a suite, by what they read (style, object, clip); no weights are looked for.

    Raises:
        UserError: fields that a judge does not have, or has with other values; no calibration file where one is named.
    """
    found: dict[str, Judge] = {}
    own = any(given["judge"].startswith("pocket") for given in suite.judges.values())  # whose CLIP knows nothing but pocket's pictures
    for part, given in {**({"clip": {"judge": "open_clip"}} if own else {}), **suite.judges}.items():
        cls = load("eval.judges", given["judge"], Judge)
        asked = {key: value for key, value in given.items() if key not in ("judge", "calibration")}
        if part in AXES and "labels" not in asked and "labels" in {f.name for f in fields(cls)}:
            asked["labels"] = labels_of(suite, part)  # type: ignore[arg-type]  # part is one of the two literals
        found[part] = built(cls, asked, f"suite {suite.name}, judge {given['judge']}")
        if "calibration" in given and not (isinstance(path := given["calibration"], str) and Path(path).is_file()):
            raise UserError(f"suite {suite.name}, judge {given['judge']}: no calibration at {path}; name a file of its errors, or none.")
    return found


def judges_of(suite: Suite) -> tuple[dict[str, Judge], dict[str, str]]:
    """The judges of a suite, by what they read (style, object, clip); and those without weights, with the reason.

    Raises:
        UserError: see `configured`; a label that a judge never says.
    """
    found: dict[str, Judge] = {}
    missing: dict[str, str] = {}
    for part, one in configured(suite).items():
        try:
            one.identity()
            if part in AXES:
                _knows(one, suite, part)  # type: ignore[arg-type]  # part is one of the two literals
            found[part] = one
        except MissingWeights as error:
            missing[part] = str(error)
    return found, missing


def _knows(one: Judge, suite: Suite, axis: Axis) -> None:
    """Complains about labels of a suite that its judge never says: every picture of them would be counted as lost."""
    answers = one.answers()
    for label in [suite.listed.label] if suite.listed else suite.words(axis):
        if label not in answers:
            raise unknown(f"{axis} of suite {suite.name} for its judge {suite.judges[axis]['judge']}", label, answers)


def readable(model: DiffusionModel, suite: Suite) -> None:
    """Complain, before anything is drawn, about a judge that cannot read pictures of this model's size, or that never says a label.

    Raises:
        UserError: it names the judge and both sizes; see `judges_of`.
    """
    _, height, width = (side * model.pipe.vae_scale_factor for side in model.latent_shape)
    for part, one in judges_of(suite)[0].items():
        if one.pixels is not None and (height, width) != (one.pixels, one.pixels):
            name = suite.judges.get(part, {}).get("judge", part)
            size = f"{one.pixels}x{one.pixels}"
            raise UserError(
                f"judge {name} of suite {suite.name} reads pictures of {size} pixels alone, {model.source} draws {width}x{height}; "
                "choose a suite for this model with --suite."
            )


def errors_of(suite: Suite, axis: Axis, targets: Sequence[str], judge_: Judge) -> dict[str, int] | None:
    """How often the judge of an axis errs about the targets, in counts; None where nobody measured it.

    The suite may name a file; judges that ship have theirs beside them.

    Raises:
        UserError: a file that was measured on another judge, or lacks a target.
    """
    given = suite.judges[axis]
    path = Path(given["calibration"]) if "calibration" in given else FOLDER / f"{given['judge']}.json"
    if not path.exists() and "calibration" not in given:
        return None
    measured = Calibration.read(path, judge_.identity())
    counts = [asdict(measured.of(target)) for target in targets]
    return {key: sum(count[key] for count in counts) for key in counts[0]}


def labels_of(suite: Suite, axis: Axis) -> dict[str, tuple[str, ...]]:
    """What a judge of an axis may answer: the suite's labels and the neighbours of them, with the words that say them."""
    words = suite.words(axis)
    near = {phrase: phrase for label, phrases in suite.neighbours.items() if label in words for phrase in phrases}
    return {label: (phrase,) for label, phrase in {**words, **near}.items()}


def judge(todo: Sequence[Attempt], models: Sequence[str], judges: dict[str, Judge], out: Path) -> list[Row]:
    """Every judge's raw reading of every picture; readings on disk are used when the judge is the same."""
    readings: dict[tuple[str, str], dict[str, Any]] = {}
    for name, judge_ in judges.items():
        path = out / "readings" / f"{name}-{digest(judge_.identity())}.jsonl"
        known = known_readings(path)
        for model in models:
            missing = [a for a in todo if (model, a.name) not in known]
            for group, pictures in batches(missing, out / "images" / model):
                for a, reading in zip(group, judge_.read(pictures, [a.case.prompt for a in group]), strict=True):
                    known[model, a.name] = reading
        write_bytes(path, "".join(reading_line(m, i, r) for (m, i), r in sorted(known.items())).encode())
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
            "read": readings.get((model, a.name), {}),
        }
        for a in todo
        for model in models
    ]
    write_bytes(out / "samples.jsonl", "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())
    return rows


def samples_digest(out: Path) -> str:
    """SHA-256 of an audit's samples.jsonl."""
    return hashlib.sha256((out / "samples.jsonl").read_bytes()).hexdigest()


def reading_line(model: str, image: str, reading: Any) -> str:
    """A line of readings/*.jsonl, with a checksum of the rest."""
    row = {"model": model, "image": image, "reading": reading}
    return json.dumps({**row, "check": digest(row)}) + "\n"


def known_readings(path: Path) -> dict[tuple[str, str], Any]:
    """Readings on disk by model and picture. Damaged lines are counted and left out, so that their pictures are read again."""
    found: dict[tuple[str, str], Any] = {}
    folder_exists(path.parent)
    try:
        text = path.read_bytes().decode("utf-8", "replace") if is_there(path) else ""
    except OSError as error:
        tell(f"{path} is damaged ({error.strerror}). It is made anew.")
        return found
    damaged = 0
    for line in text.splitlines():
        try:
            row = json.loads(line)
            if row.pop("check") != digest(row):
                raise ValueError("checksum")
            found[row["model"], row["image"]] = row["reading"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damaged += 1
    if damaged:
        tell(f"{path} is damaged in {damaged} lines. Their pictures are read again.")
    return found


def lines(path: Path) -> list[Row]:
    """The rows of a JSONL file that was written whole; none where there is no file.

    Raises:
        Damaged: a line that is no row.
    """
    if not is_there(path):
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged ({error}); the same audit makes it anew.") from error
