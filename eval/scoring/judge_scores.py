"""Images -> judge scores: every judge's raw score of every image is stored, so that a threshold can change without a new image."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
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
from eval.records.audit_result import JudgeErrors
from eval.records.axes import Axis
from eval.records.convert import parse_record, to_record
from eval.records.models import AuditedModel
from eval.records.row_files import write_rows
from eval.records.rows import SampleRow
from eval.records.scores import AlignmentScore, JudgeScore, LabelScore, Scores
from eval.scoring.calibration import CALIBRATION_FOLDER, Calibration
from eval.suites.formats import GridSuite, JudgePart, JudgeSpec, Suite

ImageKey = tuple[str, str]  # folder of the model, file name


def build_judges(suite: Suite) -> dict[JudgePart, Judge]:
    """Build the judges of a suite by what they score (style, object, clip), without looking for weights.

    Raises:
        UserError: a judge does not have a field or rejects its value, or a calibration file is missing.
    """
    is_pocket = any(spec.judge.startswith("pocket") for spec in suite.judges.values())  # its CLIP knows only PocketCanvas images
    default_specs: dict[JudgePart, JudgeSpec] = {"clip": JudgeSpec("open_clip")} if is_pocket else {}
    return {part: _build_judge(suite, part, spec) for part, spec in {**default_specs, **suite.judges}.items()}


def _build_judge(suite: Suite, part: JudgePart, spec: JudgeSpec) -> Judge:
    cls = load_class("eval.judges", spec.judge, Judge)
    values = dict(spec.fields)
    if part != "clip" and "labels" not in values and "labels" in {f.name for f in fields(cls)}:
        values["labels"] = judge_labels(suite, part)
    judge = build_dataclass(cls, values, f"suite {suite.name}, judge {spec.judge}")
    if spec.calibration is not None and not Path(spec.calibration).is_file():
        raise UserError(
            f"suite {suite.name}, judge {spec.judge}: no calibration at {spec.calibration}; name an existing file or leave it out."
        )
    return judge


def available_judges(suite: Suite) -> tuple[dict[JudgePart, Judge], dict[str, str]]:
    """Return the judges of a suite by what they score (style, object, clip), and the reason for every one that lacks weights.

    Raises:
        UserError: see `build_judges`; or a judge never gives a label of the suite.
    """
    judges: dict[JudgePart, Judge] = {}
    missing: dict[str, str] = {}
    for part, candidate in build_judges(suite).items():
        try:
            candidate.identity()
            if part != "clip":
                _check_labels_known(candidate, suite, part)
            judges[part] = candidate
        except MissingWeights as error:
            missing[part] = str(error)
    return judges, missing


def _check_labels_known(judge: Judge, suite: Suite, axis: Axis) -> None:
    """Check that a judge can give every label of the suite; images of a label it never gives would all count as lost."""
    known_labels = judge.possible_labels()
    for label in suite.phrases(axis):
        if label not in known_labels:
            raise unknown_value_error(f"{axis} of suite {suite.name} for its judge {suite.judges[axis].judge}", label, known_labels)


def check_judges_fit(model: DiffusionModel, suite: Suite) -> None:
    """Check before anything is generated that the judges take images of this model's size and can give the suite's labels.

    Raises:
        UserError: see `available_judges` and `check_image_size`.
    """
    check_image_size(model, suite, available_judges(suite)[0])


def check_image_size(model: DiffusionModel, suite: Suite, judges: Mapping[JudgePart, Judge]) -> None:
    """Check that the judges take images of the size that a model generates.

    Raises:
        UserError: a judge takes another size (it is named, with both sizes).
    """
    _, height, width = (side * model.pipe.vae_scale_factor for side in model.latent_shape)
    for part, judge in judges.items():
        if judge.image_size is not None and (height, width) != (judge.image_size, judge.image_size):
            name = suite.judges[part].judge if part in suite.judges else part
            size = f"{judge.image_size}x{judge.image_size}"
            raise UserError(
                f"judge {name} of suite {suite.name} takes only images of {size} pixels, {model.source} generates {width}x{height}; "
                "choose a suite for this model with --suite, such as sd."
            )


def judge_errors(suite: Suite, axis: Axis, targets: Sequence[str], judge: Judge) -> JudgeErrors | None:
    """Return how often the judge of an axis errs about the targets; None if it was not measured.

    The suite may name a calibration file; shipped judges have theirs in CALIBRATION_FOLDER.

    Raises:
        UserError: the calibration was measured on another judge, or lacks a target.
    """
    spec = suite.judges[axis]
    path = CALIBRATION_FOLDER / f"{spec.judge}.json" if spec.calibration is None else Path(spec.calibration)
    if not path.exists() and spec.calibration is None:
        return None
    calibration = Calibration.load(path, judge.identity())
    counts = [calibration.counts_of(target) for target in targets]
    return JudgeErrors(
        true_positive=sum(count.true_positive for count in counts),
        positive=sum(count.positive for count in counts),
        true_negative=sum(count.true_negative for count in counts),
        negative=sum(count.negative for count in counts),
    )


def judge_labels(suite: Suite, axis: Axis) -> dict[str, tuple[str, ...]]:
    """Return the labels that a judge of an axis may give, with their phrases: the suite's labels and, in a grid, their neighbors."""
    phrases_by_label = suite.phrases(axis)
    neighbors = suite.neighbors if isinstance(suite, GridSuite) else {}
    own_neighbors = {phrase: phrase for label, phrases in neighbors.items() if label in phrases_by_label for phrase in phrases}
    return {label: (phrase,) for label, phrase in {**phrases_by_label, **own_neighbors}.items()}


def score_samples(
    samples: Sequence[Sample], models: Sequence[AuditedModel], judges: Mapping[JudgePart, Judge], out: Path
) -> list[SampleRow]:
    """Score every image with every judge, write samples.jsonl and return its rows; scores on disk from the same judge are used again.

    Args:
        models: whose names are the folders in out/images.
        judges: by what they score (style, object, clip).
    """
    scores_by_image: dict[ImageKey, dict[str, Any]] = {}
    for name, judge in judges.items():
        path = out / "scores" / f"{name}-{hash_record(judge.identity())}.jsonl"
        scores = load_scores(path, LabelScore if name != "clip" else AlignmentScore)
        for model in models:
            missing = [sample for sample in samples if (str(model), sample.file_name) not in scores]
            for group, images in load_batches(missing, out / "images" / str(model)):
                for sample, score in zip(group, judge.score(images, [sample.case.prompt for sample in group]), strict=True):
                    scores[str(model), sample.file_name] = score
        write_bytes(path, "".join(score_line(*key, scores[key]) for key in sorted(scores)).encode())
        for key, score in scores.items():
            scores_by_image.setdefault(key, {})[name] = score
    rows = [
        SampleRow(
            model=model,
            image=f"images/{model}/{sample.file_name}",
            prompt=sample.case.prompt,
            seed=sample.seed,
            role=sample.case.role,
            variant=sample.case.variant,
            style=sample.case.style,
            object=sample.case.object,
            index=sample.index,
            scores=Scores(**scores_by_image.get((str(model), sample.file_name), {})),
        )
        for sample in samples
        for model in models
    ]
    write_rows(out / "samples.jsonl", rows)
    return rows


def samples_digest(out: Path) -> str:
    """Return the SHA-256 of an audit's samples.jsonl.

    Raises:
        DamagedFile: there is no such file, or it cannot be read.
    """
    try:
        return hashlib.sha256((out / "samples.jsonl").read_bytes()).hexdigest()
    except OSError as error:
        raise DamagedFile(f"{out / 'samples.jsonl'} is damaged ({error.strerror}); the same audit makes it again.") from error


def score_line(model: str, image: str, score: JudgeScore) -> str:
    """Return a line of scores/*.jsonl, with a checksum of the rest."""
    row = {"model": model, "image": image, "score": to_record(score)}
    return json.dumps({**row, "check": hash_record(row)}) + "\n"


def load_scores(path: Path, score_type: type[LabelScore] | type[AlignmentScore]) -> dict[ImageKey, JudgeScore]:
    """Load scores by model and image from disk. Damaged lines are counted and left out, so that their images are scored again."""
    scores: dict[ImageKey, JudgeScore] = {}
    ensure_folder(path.parent)
    try:
        text = path.read_bytes().decode("utf-8", "replace") if is_path_taken(path) else ""
    except OSError as error:
        print_message(f"{path} is damaged ({error.strerror}). It will be made again.")
        return scores
    damaged = 0
    for line in text.splitlines():
        try:
            row = json.loads(line)
            if row.pop("check") != hash_record(row):
                raise ValueError("checksum")
            scores[row["model"], row["image"]] = parse_record(row["score"], score_type, str(path))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damaged += 1
    if damaged:
        print_message(f"{path} is damaged in {damaged} lines. Their images are scored again.")
    return scores
