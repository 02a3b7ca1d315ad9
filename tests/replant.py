"""Rows of an audit replaced by planted ones, and the result made to forget which it was counted from."""

import json
from pathlib import Path


def replant(samples: Path, text: str) -> None:
    """Write samples.jsonl; result.json beside it loses the checksum of the rows, so that they are not taken for damaged."""
    samples.write_text(text)
    path = samples.with_name("result.json")
    result = json.loads(path.read_text())
    result.pop("samples_sha256", None)
    path.write_text(json.dumps(result))
