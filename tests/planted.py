"""Results and rows of an audit replaced by planted ones, sealed as the project seals them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from erasure.storage.files import CHECKSUM_KEY, read_json, write_checksummed_json
from eval.records.row_files import write_rows
from eval.records.rows import SampleRow
from eval.scoring.judge_scores import samples_digest


def reseal(folder: Path, result: dict[str, Any]) -> None:
    """Write result.json with the right checksum, whatever it holds."""
    write_checksummed_json(folder / "result.json", {key: value for key, value in result.items() if key != CHECKSUM_KEY})


def replace_samples(folder: Path, rows: Iterable[SampleRow]) -> None:
    """Write samples.jsonl; result.json beside it gets the checksum of these rows, so that they are not taken for damaged."""
    write_rows(folder / "samples.jsonl", rows)
    reseal_samples(folder)


def reseal_samples(folder: Path) -> None:
    """Write the checksum of samples.jsonl, whatever it holds, into result.json beside it."""
    reseal(folder, {**read_json(folder / "result.json"), "samples_sha256": samples_digest(folder)})
