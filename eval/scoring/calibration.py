"""How often a judge errs: sensitivity and specificity of every label, counted on images with known labels. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from erasure.errors import UserError, unknown_value_error
from erasure.storage.run import hash_record, read_json

# <judge>.json of the shipped judges, written by scripts/calibrate_judges.py
CALIBRATION_FOLDER = Path(__file__).parent.parent / "judges" / "calibration"


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """How often a judge is right about one label, against all others."""

    true_positive: int  # of `positive`, read as the label
    positive: int  # images that show the label
    true_negative: int  # of `negative`, read as anything else
    negative: int  # images that do not show it

    def __post_init__(self) -> None:
        for correct, total in (("true_positive", "positive"), ("true_negative", "negative")):
            k, n = getattr(self, correct), getattr(self, total)
            if type(k) is not int or type(n) is not int or n <= 0 or not 0 <= k <= n:
                raise UserError(
                    f"{correct} and {total} must be whole numbers with 0 <= {correct} <= {total} and {total} > 0, got {k!r} and {n!r}."
                )

    @property
    def sensitivity(self) -> float:
        return self.true_positive / self.positive

    @property
    def specificity(self) -> float:
        return self.true_negative / self.negative


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The measured errors of one judge on one kind of images."""

    judge: str  # digest of the measured judge's identity
    images: str  # description of what it was measured on
    labels: Mapping[str, LabelCounts]

    @classmethod
    def load(cls, path: Path, identity: Mapping[str, Any]) -> "Calibration":
        """Load a calibration file: {"judge", "images", "labels": {label: counts}}.

        Args:
            identity: of the judge whose scores it should correct.

        Raises:
            UserError: there is no such file; it has other keys or impossible counts; or it was measured on another judge (weights, labels,
                threshold, ...).
        """
        record = read_json(path)
        _check_keys(record, tuple(f.name for f in fields(cls)), str(path))
        if record["judge"] != hash_record(identity):
            raise UserError(f"{path} was measured on judge {record['judge']!r}; this one is {hash_record(identity)!r}: measure it again.")
        if not isinstance(record["labels"], dict) or not record["labels"]:
            raise UserError(f"{path}: labels must map each label to its counts, got {record['labels']!r}.")
        labels = {}
        for label, counts in record["labels"].items():
            _check_keys(counts, tuple(f.name for f in fields(LabelCounts)), f"{path}, label {label!r}")
            try:
                labels[label] = LabelCounts(**counts)
            except UserError as error:
                raise UserError(f"{path}, label {label!r}: {error}") from error
        return cls(judge=record["judge"], images=str(record["images"]), labels=labels)

    def counts_of(self, label: str) -> LabelCounts:
        """Return the counts of a label.

        Raises:
            UserError: the label was not measured.
        """
        if label not in self.labels:
            raise unknown_value_error("calibrated label", label, self.labels)
        return self.labels[label]


def _check_keys(record: Any, keys: tuple[str, ...], source: str) -> None:
    if not isinstance(record, dict):
        raise UserError(f"{source} must hold a mapping with {', '.join(keys)}, got {type(record).__name__}.")
    for key in record:
        if key not in keys:
            raise unknown_value_error(f"key in {source}", key, keys)
    if missing := [key for key in keys if key not in record]:
        raise UserError(f"{source} lacks {', '.join(missing)}.")
