"""Images that stay in memory: PNG files below a folder that are never written, for material that must not be stored.

Only the process's memory holds them; a machine that swaps may still put it on a disk.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from erasure.storage.files import ensure_folder, is_path_taken, write_bytes

_images_below: dict[Path, dict[Path, bytes]] = {}  # folder -> path -> PNG


@contextmanager
def keep_images_in_memory(folder: Path) -> Iterator[None]:
    """Keep the images that are written below a folder in memory while the block runs; afterwards they are gone."""
    _images_below[folder.resolve()] = {}
    try:
        yield
    finally:
        del _images_below[folder.resolve()]


def memory_for(path: Path) -> dict[Path, bytes] | None:
    """Return where the image of a path is kept in memory; None if it belongs on disk."""
    resolved = path.resolve()
    return next((images for folder, images in _images_below.items() if resolved.is_relative_to(folder)), None)


def write_image(path: Path, png: bytes) -> None:
    """Keep the bytes of a PNG file, on disk in one atomic step."""
    images = memory_for(path)
    if images is None:
        ensure_folder(path.parent)
        write_bytes(path, png)
    else:
        images[path.resolve()] = png


def has_image(path: Path) -> bool:
    images = memory_for(path)
    return is_path_taken(path) if images is None else path.resolve() in images


def read_image(path: Path) -> bytes:
    """Return the bytes of a PNG file.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    images = memory_for(path)
    if images is None:
        return path.read_bytes()
    try:
        return images[path.resolve()]
    except KeyError as error:
        raise FileNotFoundError(f"{path} is not in memory") from error


def forget_images(folder: Path) -> None:
    """Forget the images below a folder that are in memory; files stay."""
    images, root = memory_for(folder), folder.resolve()
    for path in [path for path in images or () if path.is_relative_to(root)]:
        assert images is not None
        del images[path]
