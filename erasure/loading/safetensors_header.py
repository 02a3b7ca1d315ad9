"""The header of a .safetensors file: names, shapes and metadata, without a weight."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open


@dataclass(frozen=True)
class SafetensorsHeader:
    """The header of a safetensors file."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]

    def has_prefix(self, *prefixes: str) -> bool:
        """Return whether any tensor name starts with one of these prefixes."""
        return any(name.startswith(prefixes) for name in self.shapes)


def read_header(path: Path) -> SafetensorsHeader:
    """Read names, shapes and metadata of a safetensors file; no weights.

    Raises:
        SafetensorError: a broken file.
    """
    with safe_open(path, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (safe_open is not a dict)
        return SafetensorsHeader(path, shapes, dict(file.metadata() or {}))
