"""Images and small charts for the page, as PIL images or as escaped HTML."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

GAP = 4  # pixels between the images of a montage


def to_image(pixels: Tensor, blurred: bool = False) -> Image.Image:
    """Convert a [3, H, W] uint8 image; unrecognizable if blurred."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return image.resize((4, 4), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC) if blurred else image


def to_heatmap(difference: Tensor) -> Image.Image:
    """Convert a difference [H, W] in [0, 1] to a heatmap from black over orange to white. Values of 0.5 and more are white."""
    x = np.clip(difference.numpy() * 2, 0, 1)[..., None]
    rgb = np.concatenate((np.clip(2.2 * x, 0, 1), np.clip(2.2 * x - 0.7, 0, 1), np.clip(2.2 * x - 1.2, 0, 1)), -1)
    return Image.fromarray((rgb * 255).astype(np.uint8))


def to_png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def arrange(cells: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Place images of one size in rows and columns, on white."""
    width, height = cells[0][0].size
    columns = max(len(row) for row in cells)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, len(cells) * (height + GAP) - GAP), "white")
    for r, row in enumerate(cells):
        for c, image in enumerate(row):
            sheet.paste(image, (c * (width + GAP), r * (height + GAP)))
    return sheet


def data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def render_curve(values: Sequence[float], label: str) -> str:
    """Render values over steps as a small line chart. Long series are averaged into 120 points."""
    if len(values) < 2:
        return ""
    means = [part.mean() for part in np.array_split(np.array(values), min(120, len(values)))]
    low, high = min(means), max(means)
    points = " ".join(
        f"{4 + 292 * i / max(1, len(means) - 1):.1f},{66 - 60 * (v - low) / max(high - low, 1e-12):.1f}" for i, v in enumerate(means)
    )
    return (
        f'<svg class="curve" viewBox="0 0 300 70" role="img" aria-label="{escape(label)}, from {means[0]:.4g} to {means[-1]:.4g}">'
        f'<polyline points="{points}" fill="none" stroke="var(--color-accent)" stroke-width="2"/></svg>'
        f'<div class="quiet">{escape(label)}: {means[0]:.4g} → {means[-1]:.4g} over {len(values)} steps</div>'
    )
