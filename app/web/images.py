"""Images and small charts for the page, as PIL images or as escaped HTML."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from eval.records.scores import Scores

MIN_SIDE = 448  # pixels; smaller images are enlarged by an integer factor


def to_display(pixels: Tensor, blurred: bool = False) -> Image.Image:
    """Convert a [3, H, W] uint8 image for display, enlarged by an integer factor; unrecognizable if blurred."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    if blurred:
        image = image.resize((4, 4), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)
    factor = max(1, -(-MIN_SIDE // image.width))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def to_heatmap(difference: Tensor) -> Image.Image:
    """Convert a difference [H, W] in [0, 1] to a heatmap from black over orange to white. Values of 0.5 and more are white."""
    x = np.clip(difference.numpy() * 2, 0, 1)[..., None]
    rgb = np.concatenate((np.clip(2.2 * x, 0, 1), np.clip(2.2 * x - 0.7, 0, 1), np.clip(2.2 * x - 1.2, 0, 1)), -1)
    image = Image.fromarray((rgb * 255).astype(np.uint8))
    factor = max(1, -(-MIN_SIDE // image.width))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def side_by_side(before: Tensor, after: Tensor, blurred: bool = False) -> Image.Image:
    """Place two [3, H, W] uint8 images side by side."""
    left, right = to_display(before, blurred), to_display(after, blurred)
    sheet = Image.new("RGB", (left.width + right.width + 12, left.height), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + 12, 0))
    return sheet


def data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def render_score_cards(pair: tuple[Scores, Scores]) -> str:
    """Render the judge scores before and after as two small cards."""
    cards = []
    for title, scores in zip(("before", "after"), pair, strict=True):
        labels = {axis: score for axis, score in (("style", scores.style), ("object", scores.object)) if score}
        text = " · ".join(f"{axis}: <b>{escape(score.label)}</b> <span>{100 * score.p:.0f} %</span>" for axis, score in labels.items())
        cards.append(f'<div class="score"><i>{title}</i> {text}</div>')
    return f'<div class="scores">{"".join(cards)}</div>'


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
        f'<div class="small">{escape(label)}: {means[0]:.4g} → {means[-1]:.4g} over {len(values)} steps</div>'
    )


def render_bar(share: float) -> str:
    return f'<div class="bar" role="progressbar" aria-valuenow="{100 * share:.0f}"><i style="width:{100 * share:.1f}%"></i></div>'
