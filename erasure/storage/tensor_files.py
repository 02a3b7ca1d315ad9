"""Tensors on disk with a checksum: neither safetensors nor torch's zip files notice a flipped bit."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from erasure.storage.files import CHECKSUM_KEY, DamagedFile, ensure_folder, is_path_taken, open_atomic, print_message, write_bytes

HEADER_BYTES = 65  # bytes before a state: its SHA-256 in hexadecimal digits, and a newline


def load_or_make(path: Path, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Load tensors from a file, or make and save them. A damaged file is reported and made again; no tensors, no file.

    The checksum covers the names of folder and file, so that a file that was copied over another is noticed.

    Returns:
        The tensors on the CPU.

    Raises:
        Unfinished, UserError: the file cannot be written (`open_atomic`).
    """
    if is_path_taken(path):
        try:
            return load_tensors(path)
        except DamagedFile as error:
            print_message(f"{error} It is made anew.")
    tensors = make()
    if not tensors:
        return {}
    data = serialize_tensors(tensors, location_of(path))
    ensure_folder(path.parent)
    write_bytes(path, data)
    return load(data)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors, on the CPU, of a file that `load_or_make` wrote.

    Raises:
        DamagedFile: unreadable, or not what was written.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise DamagedFile(f"{path} is damaged ({error}).") from error
    if metadata.get(CHECKSUM_KEY) != checksum_of_tensors(tensors, location_of(path)):
        raise DamagedFile(f"{path} is damaged: its checksum {'does not match' if CHECKSUM_KEY in metadata else 'is missing'}.")
    return tensors


def serialize_tensors(tensors: Mapping[str, Tensor], location: str) -> bytes:
    """Return the bytes of a safetensors file with a checksum of the tensors in its metadata."""
    contiguous_tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    return save(contiguous_tensors, metadata={CHECKSUM_KEY: checksum_of_tensors(contiguous_tensors, location)})


def checksum_of_tensors(tensors: Mapping[str, Tensor], location: str) -> str:
    """Return the SHA-256 (hex) of location, names, dtypes, shapes and values; tensors must be on the CPU."""
    hasher = hashlib.sha256(location.encode())
    for name, tensor in sorted(tensors.items()):
        hasher.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def location_of(path: Path) -> str:
    """Return folder and name of a file, which its checksum covers."""
    return f"{path.parent.name}/{path.name}"


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state with torch.save, after its checksum. Raises as erasure.storage.files.open_atomic."""
    with open_atomic(path) as file:
        file.write(b"\n".rjust(HEADER_BYTES, b"0"))
        hashing_file = _HashingFile(file)
        try:
            torch.save(dict(state), hashing_file)  # type: ignore[arg-type]  # it calls only write and flush
        except RuntimeError as error:  # torch does not report why a write failed
            raise hashing_file.error or error from error
        file.seek(0)
        file.write(hashing_file.sha256.hexdigest().encode())


def load_state(path: Path) -> dict[str, Any]:
    """Return the state, on the CPU, that `save_state` wrote.

    Raises:
        DamagedFile: unreadable, or not what was written.
    """
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
            if header.strip().decode("ascii", "replace") != hashlib.file_digest(file, "sha256").hexdigest():
                raise DamagedFile(f"{path} is damaged: its checksum does not match.")
            file.seek(HEADER_BYTES)
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            return state
    except OSError as error:
        raise DamagedFile(f"{path} is damaged ({error.strerror or error}).") from error


class _HashingFile:
    """A file that hashes what is written to it, and remembers why a write failed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()
