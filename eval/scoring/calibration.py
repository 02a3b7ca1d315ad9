"""How often a judge errs: sensitivity and specificity of every label, as counts of pictures whose truth is known. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from erasure.errors import UserError, unknown_value_error
from erasure.storage.run import hash_record, read_json

CALIBRATION_FOLDER = (
    Path(__file__).parent.parent / "judges" / "calibration"
)  # <judge>.json of the judges that ship, by scripts/calibrate_judges.py


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """One label against all others."""

    true_positive: int  # of `positive`, read as the label
    positive: int  # pictures that show the label
    true_negative: int  # of `negative`, read as anything else
    negative: int  # pictures that do not show it

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
    """What is known of one judge's errors, on one kind of pictures."""

    judge: str  # digest of the identity of the judge that was measured
    images: str  # what it was measured on, in words
    labels: Mapping[str, LabelCounts]

    @classmethod
    def load(cls, path: Path, identity: Mapping[str, Any]) -> "Calibration":
        """A calibration file: {"judge", "pictures", "labels": {label: counts}}.

        Args:
            identity: of the judge whose readings it is to correct.

        Raises:
            UserError: no such file, other keys, impossible counts, or counts of another judge (weights, labels, threshold, ...).
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
        return cls(judge=record["judge"], images=str(record["pictures"]), labels=labels)

    def counts_of(self, label: str) -> LabelCounts:
        """The counts of a label.

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
