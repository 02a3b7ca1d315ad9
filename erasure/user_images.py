"""Images from a user's disk as people see them: upright, in eight bits, without transparency."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from erasure.errors import UserError

MAX_PIXELS = 100_000_000
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # 16-bit gray, which Pillow clips at 255 when it converts to eight bits
# what Pillow raises on broken files
READ_ERRORS = (OSError, SyntaxError, ValueError, TypeError, struct.error, Image.DecompressionBombError)


def load_image(path: Path) -> Image.Image:
    """Return an RGB image from a user's file: rotated as its EXIF says, 16 bits scaled to eight, transparency over white.

    Raises:
        UserError: The file is not an image, is broken, or has more than `MAX_PIXELS` pixels (read from its header before decoding).
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path} has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read. Make it smaller.")
            return _flatten_transparency(_to_eight_bits(ImageOps.exif_transpose(image)))
    except UserError:
        raise
    except READ_ERRORS as error:
        raise UserError(f"{path} is not a readable image ({str(error)[:200]}).") from error


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Return the image with eight bits per channel; 16-bit gray levels are divided by 257 and rounded."""
    if image.mode not in SIXTEEN_BIT_MODES:
        return image
    gray = np.asarray(image, np.int64)
    if gray.min() < 0 or gray.max() > 65_535:
        raise ValueError(f"gray levels from {gray.min()} to {gray.max()}; at most 16 bits are read")
    return Image.fromarray(np.rint(gray / 257).astype(np.uint8))


def _flatten_transparency(image: Image.Image) -> Image.Image:
    """Return the image in RGB, with white where it is transparent instead of the hidden color of those pixels."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def is_plain_image(path: Path) -> bool:
    """Return whether `load_image` only decodes the file and converts it to RGB; False if it cannot be read."""
    try:
        with Image.open(path) as image:
            rotated = image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
            return not (rotated or image.mode in SIXTEEN_BIT_MODES or image.has_transparency_data)
    except READ_ERRORS:
        return False


def list_images(folder: Path) -> list[Path]:
    """Return the images of a folder, sorted by name.

    Raises:
        UserError: The folder is missing or has no images.
    """
    images = list_files(folder, IMAGE_SUFFIXES) if folder.is_dir() else []
    if not images:
        raise UserError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}); give a folder of real images, or leave the option empty.")
    return images


def list_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the files with these suffixes, sorted by name, without hidden ones: macOS leaves ._photo.jpg next to photo.jpg."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != "." and not path.is_dir())
