"""Pictures -> readings: every judge's raw word on every picture, kept, so that a threshold can change without a new picture."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from erasure.config.registry import load_class
from erasure.config.validation import build_dataclass
from erasure.errors import UserError, unknown_value_error
from erasure.families.base import DiffusionModel
from erasure.storage.files import DamagedFile, ensure_folder, is_path_taken, print_message, write_bytes
from erasure.storage.run import hash_record
from eval.generation import Sample, load_batches
from eval.judges.base import Judge, MissingWeights
from eval.scoring.calibration import CALIBRATION_FOLDER, Calibration
from eval.scoring.counting import SampleRow
from eval.suites.suite import Axis, Suite

AXES: tuple[Axis, Axis] = ("style", "object")


def build_judges(suite: Suite) -> dict[str, Judge]:
    """The judges of a suite, by what they read (style, object, clip); no weights are looked for.

    Raises:
        UserError: fields that a judge does not have, or has with other values; no calibration file where one is named.
    """
    judges: dict[str, Judge] = {}
    is_pocket = any(spec["judge"].startswith("pocket") for spec in suite.judges.values())  # whose CLIP knows nothing but pocket's pictures
    for part, spec in {**({"clip": {"judge": "open_clip"}} if is_pocket else {}), **suite.judges}.items():
        cls = load_class("eval.judges", spec["judge"], Judge)
        fields_given = {key: value for key, value in spec.items() if key not in ("judge", "calibration")}
        if part in AXES and "labels" not in fields_given and "labels" in {f.name for f in fields(cls)}:
            fields_given["labels"] = judge_labels(suite, part)  # type: ignore[arg-type]  # part is one of the two literals
        judges[part] = build_dataclass(cls, fields_given, f"suite {suite.name}, judge {spec['judge']}")
        if "calibration" in spec and not (isinstance(path := spec["calibration"], str) and Path(path).is_file()):
            raise UserError(f"suite {suite.name}, judge {spec['judge']}: no calibration at {path}; name a file of its errors, or none.")
    return judges


def available_judges(suite: Suite) -> tuple[dict[str, Judge], dict[str, str]]:
    """The judges of a suite, by what they read (style, object, clip); and those without weights, with the reason.

    Raises:
        UserError: see `configured`; a label that a judge never says.
    """
    judges: dict[str, Judge] = {}
    missing: dict[str, str] = {}
    for part, candidate in build_judges(suite).items():
        try:
            candidate.identity()
            if part in AXES:
                _check_labels_known(candidate, suite, part)  # type: ignore[arg-type]  # part is one of the two literals
            judges[part] = candidate
        except MissingWeights as error:
            missing[part] = str(error)
    return judges, missing


def _check_labels_known(judge: Judge, suite: Suite, axis: Axis) -> None:
    """Complains about labels of a suite that its judge never says: every picture of them would be counted as lost."""
    known_labels = judge.possible_labels()
    for label in [suite.prompt_list.label] if suite.prompt_list else suite.phrases(axis):
        if label not in known_labels:
            raise unknown_value_error(f"{axis} of suite {suite.name} for its judge {suite.judges[axis]['judge']}", label, known_labels)


def check_judges_fit(model: DiffusionModel, suite: Suite) -> None:
    """Complain, before anything is drawn, about a judge that cannot read pictures of this model's size, or that never says a label.

    Raises:
        UserError: it names the judge and both sizes; see `judges_of`.
    """
    _, height, width = (side * model.pipe.vae_scale_factor for side in model.latent_shape)
    for part, judge in available_judges(suite)[0].items():
        if judge.image_size is not None and (height, width) != (judge.image_size, judge.image_size):
            name = suite.judges.get(part, {}).get("judge", part)
            size = f"{judge.image_size}x{judge.image_size}"
            raise UserError(
                f"judge {name} of suite {suite.name} reads pictures of {size} pixels alone, {model.source} draws {width}x{height}; "
                "choose a suite for this model with --suite."
            )


def judge_errors(suite: Suite, axis: Axis, targets: Sequence[str], judge: Judge) -> dict[str, int] | None:
    """How often the judge of an axis errs about the targets, in counts; None where nobody measured it.

    The suite may name a file; judges that ship have theirs beside them.

    Raises:
        UserError: a file that was measured on another judge, or lacks a target.
    """
    spec = suite.judges[axis]
    path = Path(spec["calibration"]) if "calibration" in spec else CALIBRATION_FOLDER / f"{spec['judge']}.json"
    if not path.exists() and "calibration" not in spec:
        return None
    calibration = Calibration.load(path, judge.identity())
    counts = [asdict(calibration.counts_of(target)) for target in targets]
    return {key: sum(count[key] for count in counts) for key in counts[0]}


def judge_labels(suite: Suite, axis: Axis) -> dict[str, tuple[str, ...]]:
    """What a judge of an axis may answer: the suite's labels and the neighbours of them, with the words that say them."""
    phrases_by_label = suite.phrases(axis)
    neighbors = {phrase: phrase for label, phrases in suite.neighbors.items() if label in phrases_by_label for phrase in phrases}
    return {label: (phrase,) for label, phrase in {**phrases_by_label, **neighbors}.items()}


def score_samples(samples: Sequence[Sample], models: Sequence[str], judges: dict[str, Judge], out: Path) -> list[SampleRow]:
    """Every judge's raw reading of every picture; readings on disk are used when the judge is the same."""
    scores_by_image: dict[tuple[str, str], dict[str, Any]] = {}
    for name, one_judge in judges.items():
        path = out / "readings" / f"{name}-{hash_record(one_judge.identity())}.jsonl"
        scores = load_scores(path)
        for model in models:
            missing = [a for a in samples if (model, a.file_name) not in scores]
            for group, images in load_batches(missing, out / "images" / model):
                for a, score in zip(group, one_judge.score(images, [a.case.prompt for a in group]), strict=True):
                    scores[model, a.file_name] = score
        write_bytes(path, "".join(score_line(m, i, r) for (m, i), r in sorted(scores.items())).encode())
        for image_key, score in scores.items():
            scores_by_image.setdefault(image_key, {})[name] = score
    rows = [
        {
            "model": model,
            "image": f"images/{model}/{a.file_name}",
            "prompt": a.case.prompt,
            "seed": a.seed,
            "role": a.case.role,
            "variant": a.case.variant,
            "style": a.case.style,
            "object": a.case.object,
            "index": a.index,
            "read": scores_by_image.get((model, a.file_name), {}),
        }
        for a in samples
        for model in models
    ]
    write_bytes(out / "samples.jsonl", "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())
    return rows


def samples_digest(out: Path) -> str:
    """SHA-256 of an audit's samples.jsonl."""
    return hashlib.sha256((out / "samples.jsonl").read_bytes()).hexdigest()


def score_line(model: str, image: str, score: Any) -> str:
    """A line of readings/*.jsonl, with a checksum of the rest."""
    row = {"model": model, "image": image, "reading": score}
    return json.dumps({**row, "check": hash_record(row)}) + "\n"


def load_scores(path: Path) -> dict[tuple[str, str], Any]:
    """Readings on disk by model and picture. Damaged lines are counted and left out, so that their pictures are read again."""
    scores: dict[tuple[str, str], Any] = {}
    ensure_folder(path.parent)
    try:
        text = path.read_bytes().decode("utf-8", "replace") if is_path_taken(path) else ""
    except OSError as error:
        print_message(f"{path} is damaged ({error.strerror}). It is made anew.")
        return scores
    damaged = 0
    for line in text.splitlines():
        try:
            row = json.loads(line)
            if row.pop("check") != hash_record(row):
                raise ValueError("checksum")
            scores[row["model"], row["image"]] = row["reading"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damaged += 1
    if damaged:
        print_message(f"{path} is damaged in {damaged} lines. Their pictures are read again.")
    return scores


def read_jsonl(path: Path) -> list[SampleRow]:
    """The rows of a JSONL file that was written whole; none where there is no file.

    Raises:
        Damaged: a line that is no row.
    """
    if not is_path_taken(path):
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged ({error}); the same audit makes it anew.") from error
