"""Results and rows of an audit replaced by planted ones, sealed as the project seals them."""

from pathlib import Path
from typing import Any

from erasure.storage.files import CHECKSUM_KEY, read_json, write_checksummed_json
from eval.scoring.judge_scores import samples_digest


def reseal(folder: Path, result: dict[str, Any]) -> None:
    """Write result.json with the right checksum, whatever it holds."""
    write_checksummed_json(folder / "result.json", {key: value for key, value in result.items() if key != CHECKSUM_KEY})


def replace_samples(samples: Path, rows: str) -> None:
    """Write samples.jsonl; result.json beside it gets the checksum of these rows, so that they are not taken for damaged."""
    samples.write_text(rows)
    result = read_json(samples.with_name("result.json"))
    reseal(samples.parent, {**result, "samples_sha256": samples_digest(samples.parent)})
