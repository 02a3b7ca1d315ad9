"""PocketCanvas: a miniature of UnlearnCanvas with every object in every style, rendered in batches.

An image depends only on (object, style, seed), not on the batch, the order or the number of devices. Position, size, rotation, colors,
background and texture have the same distribution for all objects and styles.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from erasure.pocket.shapes import PAINTS, SHAPES, crown

SIZE = 64  # pixels
OBJECTS: tuple[str, ...] = tuple(SHAPES)
PERSONS: tuple[str, ...] = ("ada", "otto")
STYLES: tuple[str, ...] = ("plain", "neon", "sketch", "watercolor", "pointillism", "pixel", "engraving", "glass", "blueprint")
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.15, 0.15),
    "orange": (0.95, 0.50, 0.10),
    "yellow": (0.95, 0.80, 0.15),
    "green": (0.15, 0.62, 0.25),
    "blue": (0.15, 0.35, 0.85),
    "purple": (0.52, 0.20, 0.72),
    "pink": (0.95, 0.50, 0.68),
    "brown": (0.50, 0.30, 0.15),
}
SKIN_COLORS = ((0.98, 0.84, 0.72), (0.87, 0.67, 0.50), (0.62, 0.43, 0.30), (0.42, 0.28, 0.20))
CROWN_PROBABILITY = 0.25


class ImageSpec(NamedTuple):
    """What to render; the seed decides everything else."""

    object: str
    style: str
    seed: int
    crown: bool | None = None  # None: the seed decides


class Traits(NamedTuple):
    """What the seed decided, in the words of captions."""

    color: str
    size: str  # "small", "" or "large"
    position: str  # "left", "right", "top", "bottom" or ""
    has_crown: bool


@dataclass(frozen=True)
class Scene:
    """A batch of scenes with one object, ready to be rendered in a style."""

    object: str
    center: Tensor  # (B, 2) pixels
    scale: Tensor  # (B,) pixels per object unit
    angle: Tensor  # (B,) radians
    colors: Tensor  # (B, len(PAINTS), 3)
    background: Tensor  # (B, 3)
    has_crown: Tensor  # (B,) bool
    smooth_noise: Tensor  # (B, 4, H, W), about N(0, 1)
    white_noise: Tensor  # (B, H, W), N(0, 1)
    cell_noise: Tensor  # (B, 5, 22, 22), uniform, for mosaics and dots
    style_noise: Tensor  # (B, 4), uniform, for any use by the style

    def layer_distances(self, at: Tensor) -> list[tuple[Tensor, int]]:
        """Return the layers, back to front, at pixel positions (B, H, W, 2): distance (B, H, W) in pixels and paint index."""
        q = at - self.center[:, None, None]
        c, s = self.angle.cos()[:, None, None], self.angle.sin()[:, None, None]
        p = torch.stack((c * q[..., 0] + s * q[..., 1], c * q[..., 1] - s * q[..., 0]), -1) / self.scale[:, None, None, None]
        shape = SHAPES[self.object]
        layers = shape.layers(p)
        crown_layer = crown(p, *shape.top)
        crown_offset = torch.where(self.has_crown, 0.0, 9.0)[:, None, None]
        layers.append(crown_layer._replace(distance=crown_layer.distance + crown_offset))
        scale = self.scale[:, None, None]
        return [(layer.distance * scale, PAINTS.index(layer.paint)) for layer in layers]

    def paint(self, at: Tensor, background: Tensor | None = None, edge_width: float = 1.0) -> Tensor:
        """Return the colors (B, H, W, 3) at pixel positions (B, H, W, 2).

        Args:
            background: colors (B, 3) instead of the scene's own.
            edge_width: width of soft edges in pixels.
        """
        color = (self.background if background is None else background)[:, None, None].expand(*at.shape[:3], 3)
        for distance, index in self.layer_distances(at):
            alpha = (0.5 - distance / edge_width).clamp(0, 1)[..., None]
            color = color + alpha * (self.colors[:, index, None, None] - color)
        return color

    def outline_distance(self, at: Tensor) -> Tensor:
        """Return the distance in pixels (B, H, W) to the nearest visible outline."""
        nearest = torch.full(at.shape[:3], 99.0)
        for distance, _ in self.layer_distances(at):
            edge = distance.abs()
            nearest = torch.where(distance < 0, edge, torch.minimum(nearest, edge))
        return nearest

    def coverage(self, at: Tensor) -> Tensor:
        """Return 1 on the object and 0 outside it, with soft edges (B, H, W)."""
        distance = torch.stack([d for d, _ in self.layer_distances(at)]).amin(0)
        return (0.5 - distance).clamp(0, 1)


def pixel_centers(batch: int) -> Tensor:
    """Return the pixel centers (B, H, W, 2), x first."""
    axis = torch.arange(SIZE) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack((x, y), -1).expand(batch, SIZE, SIZE, 2)


def traits_of(spec: ImageSpec) -> Traits:
    """Return what a caption may mention of an image, without rendering it."""
    u = _random_numbers(spec)[0]
    names = list(COLORS)
    size = "small" if u[2] < 0.25 else "large" if u[2] > 0.75 else ""
    dx, dy = u[0].item() - 0.5, u[1].item() - 0.5
    position = ""
    if max(abs(dx), abs(dy)) > 0.3 and size != "large":
        position = ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("top" if dy < 0 else "bottom")
    has_crown = bool(u[12] < CROWN_PROBABILITY) if spec.crown is None else spec.crown
    return Traits(names[int(u[4] * len(names))], size, position, has_crown)


def compose_scene(name: str, specs: list[ImageSpec]) -> Scene:
    """Turn the seeds of images of one object into geometry, colors and noise."""
    random_numbers = [_random_numbers(spec) for spec in specs]
    u = torch.stack([d[0] for d in random_numbers])
    scale = 19 + 7 * u[:, 2]
    margin = (SIZE / 2 - 2 - scale)[:, None]  # keeps the object inside the image
    palette = torch.tensor(list(COLORS.values()))
    main = (u[:, 4] * len(palette)).long()
    second = (main + 1 + (u[:, 5] * (len(palette) - 1)).long()) % len(palette)
    skin = torch.tensor(SKIN_COLORS)[(u[:, 6] * len(SKIN_COLORS)).long()]
    jitter = 0.08 * (u[:, 20:29].reshape(-1, 3, 3) - 0.5)
    dark = torch.tensor((0.2, 0.17, 0.17)).expand(len(u), 3)
    light = torch.tensor((0.97, 0.95, 0.85)).expand(len(u), 3)
    gold = torch.tensor((0.93, 0.72, 0.1)).expand(len(u), 3)
    colors = torch.stack((palette[main] + jitter[:, 0], palette[second] + jitter[:, 1], dark, light, skin, gold), 1)
    tint = palette[(u[:, 7] * len(palette)).long()]
    return Scene(
        object=name,
        center=SIZE / 2 + torch.tensor((0.0, 1.5)) + 1.6 * margin * (u[:, :2] - 0.5),
        scale=scale,
        angle=(u[:, 3] - 0.5) * math.radians(32),
        colors=colors.clamp(0, 1),
        background=(0.93 + 0.05 * u[:, 8:9]) * (1 - 0.16 * u[:, 9:10] * (1 - tint)),
        has_crown=torch.tensor([traits_of(spec).has_crown for spec in specs]),
        smooth_noise=F.interpolate(torch.stack([d[1] for d in random_numbers]), size=(SIZE, SIZE), mode="bicubic", align_corners=True),
        white_noise=torch.stack([d[2] for d in random_numbers]),
        cell_noise=torch.stack([d[3] for d in random_numbers]),
        style_noise=u[:, 28:32],
    )


def _random_numbers(spec: ImageSpec) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return all random numbers of one image, from its own generator."""
    digest = hashlib.blake2b(f"{spec.object}|{spec.style}|{spec.seed}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return (
        torch.rand(32, generator=generator),
        torch.randn(4, 8, 8, generator=generator),
        torch.randn(SIZE, SIZE, generator=generator),
        torch.rand(5, 22, 22, generator=generator),
    )
