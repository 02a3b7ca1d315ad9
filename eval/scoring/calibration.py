"""How often a judge errs: sensitivity and specificity of every label, as counts of pictures whose truth is known. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from erasure.errors import UserError, unknown
from erasure.storage.run import digest, read_json

FOLDER = Path(__file__).parent.parent / "judges" / "calibration"  # <judge>.json of the judges that ship, by scripts/calibrate_judges.py


@dataclass(frozen=True, kw_only=True)
class Counts:
    """One label against all others."""

    true_positive: int  # of `positive`, read as the label
    positive: int  # pictures that show the label
    true_negative: int  # of `negative`, read as anything else
    negative: int  # pictures that do not show it

    def __post_init__(self) -> None:
        for right, all_ in (("true_positive", "positive"), ("true_negative", "negative")):
            k, n = getattr(self, right), getattr(self, all_)
            if type(k) is not int or type(n) is not int or n <= 0 or not 0 <= k <= n:
                raise UserError(
                    f"{right} and {all_} must be whole numbers with 0 <= {right} <= {all_} and {all_} > 0, got {k!r} and {n!r}."
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
    pictures: str  # what it was measured on, in words
    labels: Mapping[str, Counts]

    @classmethod
    def read(cls, path: Path, identity: Mapping[str, Any]) -> "Calibration":
        """A calibration file: {"judge", "pictures", "labels": {label: counts}}.

        Args:
            identity: of the judge whose readings it is to correct.

        Raises:
            UserError: no such file, other keys, impossible counts, or counts of another judge (weights, labels, threshold, ...).
        """
        record = read_json(path)
        _only(record, tuple(f.name for f in fields(cls)), str(path))
        if record["judge"] != digest(identity):
            raise UserError(f"{path} was measured on judge {record['judge']!r}; this one is {digest(identity)!r}: measure it again.")
        if not isinstance(record["labels"], dict) or not record["labels"]:
            raise UserError(f"{path}: labels must map each label to its counts, got {record['labels']!r}.")
        labels = {}
        for label, counts in record["labels"].items():
            _only(counts, tuple(f.name for f in fields(Counts)), f"{path}, label {label!r}")
            try:
                labels[label] = Counts(**counts)
            except UserError as error:
                raise UserError(f"{path}, label {label!r}: {error}") from error
        return cls(judge=record["judge"], pictures=str(record["pictures"]), labels=labels)

    def of(self, label: str) -> Counts:
        """The counts of a label.

        Raises:
            UserError: the label was not measured.
        """
        if label not in self.labels:
            raise unknown("calibrated label", label, self.labels)
        return self.labels[label]


def _only(record: Any, keys: tuple[str, ...], place: str) -> None:
    if not isinstance(record, dict):
        raise UserError(f"{place} must hold a mapping with {', '.join(keys)}, got {type(record).__name__}.")
    for key in record:
        if key not in keys:
            raise unknown(f"key in {place}", key, keys)
    if missing := [key for key in keys if key not in record]:
        raise UserError(f"{place} lacks {', '.join(missing)}.")
