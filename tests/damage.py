"""Ways in which a file can be damaged."""

from pathlib import Path

import torch
from safetensors.torch import save_file


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 4
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_other_file(path: Path) -> None:
    """Put another valid file in its place."""
    if path.suffix == ".safetensors":
        save_file({"x_0": torch.zeros(2)}, path)
    elif path.suffix == ".png":
        path.write_bytes(b"GIF89a")
    else:
        path.write_text('{"another": ["file"]}\n')


DAMAGE = (flip_bit, truncate, empty, replace_by_folder, replace_by_other_file)
