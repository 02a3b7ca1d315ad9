"""Pictures that came from a user's disk, as people see them: upright, in eight bits, without transparency."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from erasure.errors import UserError

MAX_PIXELS = 100_000_000
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # grey in 16 bits, which Pillow cuts off at 255 if asked for eight
READ_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
)  # what Pillow raises on broken files


def load_image(path: Path) -> Image.Image:
    """An RGB image from a user's file: turned as its EXIF says, 16 bits scaled to eight, over white where it is transparent.

    Raises:
        UserError: no image, a broken one, or one of more than PIXELS pixels; its header is asked before anything is unpacked.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{path} has {image.width} x {image.height} pixels; more than {MAX_PIXELS:,} are not unpacked. Make it smaller."
                )
            return _flatten_transparency(_to_eight_bits(ImageOps.exif_transpose(image)))
    except UserError:
        raise
    except READ_ERRORS as error:
        raise UserError(f"{path} is no image that can be read ({str(error)[:200]}).") from error


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Eight bits a channel; of 65,536 levels of grey every 257 become one."""
    if image.mode not in SIXTEEN_BIT_MODES:
        return image
    gray = np.asarray(image, np.int64)
    if gray.min() < 0 or gray.max() > 65_535:
        raise ValueError(f"grey levels from {gray.min()} to {gray.max()}; at most 16 bits are read")
    return Image.fromarray(np.rint(gray / 257).astype(np.uint8))


def _flatten_transparency(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white, and not what a program left under it."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def is_plain_image(path: Path) -> bool:
    """Whether `opened` only unpacks and converts a file, as versions did that knew nothing else; False where it cannot be read."""
    try:
        with Image.open(path) as image:
            rotated = image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
            return not (rotated or image.mode in SIXTEEN_BIT_MODES or image.has_transparency_data)
    except READ_ERRORS:
        return False


def list_images(folder: Path) -> list[Path]:
    """The images of a folder in order of their names.

    Raises:
        UserError: no such folder, or no image in it.
    """
    images = list_files(folder, IMAGE_SUFFIXES) if folder.is_dir() else []
    if not images:
        raise UserError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}); give a folder of real images, or leave the option empty.")
    return images


def list_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Files with these suffixes in order of their names, without hidden ones: macOS leaves ._photo.jpg beside photo.jpg."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != "." and not path.is_dir())
