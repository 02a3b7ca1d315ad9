"""How large a local model is, from the headers of its weight files, before any of it is loaded."""

import json
import math
from pathlib import Path

from erasure.loading.model_source import is_local_path

MAX_HEADER = 100 * 2**20  # bytes, the safetensors format's own limit


def bytes_in_memory(source: str, on_gpu: bool) -> int | None:
    """Return the bytes that a model's weights take: fp32 on a CPU, fp16 on a GPU. None for a source that is not a file or folder here.

    Variants of one file, such as model.fp16.safetensors beside model.safetensors, count once.
    """
    if not is_local_path(source):
        return None
    path = Path(source).expanduser()
    files = [path] if path.is_file() else sorted(path.glob("*/*.safetensors"))
    counts: dict[tuple[Path, str], int] = {}
    for file in files:
        key = (file.parent, "".join(part for part in file.name.split(".") if part not in ("fp16", "bf16", "non_ema")))
        counts[key] = max(counts.get(key, 0), count_values(file))
    return sum(counts.values()) * (2 if on_gpu else 4)


def count_values(file: Path) -> int:
    """Return how many numbers a .safetensors file holds; 0 for a file that is not one."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if length <= MAX_HEADER else {}
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return 0
