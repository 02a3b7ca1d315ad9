"""Tensors on disk with a checksum: neither safetensors nor torch's zip files notice a flipped bit."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from erasure.storage.files import SEAL, Damaged, folder_exists, is_there, replacing, tell, write_bytes

HEAD = 65  # bytes before a state: its SHA-256 in hexadecimal digits, and a newline


def kept(path: Path, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors from a file, or made now and put there; a damaged file is named and made anew, and of no tensors there is no file.

    The file also says which one it is by its folder and name, so that one that was copied over another is noticed.
    """
    if is_there(path):
        try:
            return load_tensors(path)
        except Damaged as error:
            tell(f"{error} It is made anew.")
    found = make()
    if not found:
        return {}
    data = sealed(found, place_of(path))
    folder_exists(path.parent)
    write_bytes(path, data)
    return load(data)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a file that `kept` wrote.

    Raises:
        Damaged: unreadable, or other content than was written.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise Damaged(f"{path} is damaged ({error}).") from error
    if metadata.get(SEAL) != seal_of(tensors, place_of(path)):
        raise Damaged(f"{path} is damaged: its checksum {'does not match' if SEAL in metadata else 'is missing'}.")
    return tensors


def sealed(tensors: Mapping[str, Tensor], place: str) -> bytes:
    """A safetensors file with a checksum of the tensors in its metadata."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    return save(plain, metadata={SEAL: seal_of(plain, place)})


def seal_of(tensors: Mapping[str, Tensor], place: str) -> str:
    """Checksum of names, types, shapes and values."""
    found = hashlib.sha256(place.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def place_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write what torch.save takes, with its checksum in front. Raises as erasure.storage.files.replacing."""
    with replacing(path) as file:
        file.write(b"\n".rjust(HEAD, b"0"))
        hashing = _Hashing(file)
        try:
            torch.save(dict(state), hashing)  # type: ignore[arg-type]  # write and flush are all it asks for
        except RuntimeError as error:  # torch does not pass on why a write failed
            raise hashing.failed or error from error
        file.seek(0)
        file.write(hashing.sum.hexdigest().encode())


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote, on the CPU.

    Raises:
        Damaged: unreadable, or other content than was written.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            if head.strip().decode("ascii", "replace") != hashlib.file_digest(file, "sha256").hexdigest():
                raise Damaged(f"{path} is damaged: its checksum does not match.")
            file.seek(HEAD)
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            return state
    except OSError as error:
        raise Damaged(f"{path} is damaged ({error.strerror or error}).") from error


class _Hashing:
    """A file that hashes what is written into it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sum = file, hashlib.sha256()
        self.failed: OSError | None = None

    def write(self, data: bytes) -> int:
        self.sum.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.failed = error
            raise

    def flush(self) -> None:
        self.file.flush()
