"""PocketCanvas: a miniature of UnlearnCanvas, every object in every style, drawn in batches.

An image is determined by (object, style, seed) alone: not by the batch, the order or the device count.
Position, size, rotation, colours, background and texture are drawn from one law for all objects and styles.
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
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.15, 0.15),
    "orange": (0.95, 0.50, 0.10),
    "yellow": (0.95, 0.80, 0.15),
    "green": (0.15, 0.62, 0.25),
    "blue": (0.15, 0.35, 0.85),
    "purple": (0.52, 0.20, 0.72),
    "pink": (0.95, 0.50, 0.68),
    "brown": (0.50, 0.30, 0.15),
}
SKINS = ((0.98, 0.84, 0.72), (0.87, 0.67, 0.50), (0.62, 0.43, 0.30), (0.42, 0.28, 0.20))
CROWN_SHARE = 0.25


class Picture(NamedTuple):
    """What to draw; the seed decides everything else."""

    object: str
    style: str
    seed: int
    crown: bool | None = None  # None: drawn from the seed


class Traits(NamedTuple):
    """What the seed decided, as a caption may say it."""

    colour: str
    size: str  # "small", "" or "large"
    place: str  # "left", "right", "top", "bottom" or ""
    crown: bool


@dataclass(frozen=True)
class Scene:
    """A batch of one object, ready to be looked at by a style."""

    object: str
    centre: Tensor  # (B, 2) pixels
    scale: Tensor  # (B,) pixels per object unit
    angle: Tensor  # (B,) radians
    paints: Tensor  # (B, len(PAINTS), 3)
    background: Tensor  # (B, 3)
    crowned: Tensor  # (B,) bool
    waves: Tensor  # (B, 4, H, W) smooth noise, about N(0, 1)
    grain: Tensor  # (B, H, W) white noise
    cells: Tensor  # (B, 5, 22, 22) uniform, for mosaics and dots
    dials: Tensor  # (B, 4) uniform, free for the style

    def distances(self, at: Tensor) -> list[tuple[Tensor, int]]:
        """Layers back to front at pixel positions `at` (B, H, W, 2): distance in pixels, index of the paint."""
        q = at - self.centre[:, None, None]
        c, s = self.angle.cos()[:, None, None], self.angle.sin()[:, None, None]
        p = torch.stack((c * q[..., 0] + s * q[..., 1], c * q[..., 1] - s * q[..., 0]), -1) / self.scale[:, None, None, None]
        shape = SHAPES[self.object]
        layers = shape.layers(p)
        head = crown(p, *shape.top)
        far = torch.where(self.crowned, 0.0, 9.0)[:, None, None]
        layers.append(head._replace(distance=head.distance + far))
        scale = self.scale[:, None, None]
        return [(layer.distance * scale, PAINTS.index(layer.paint)) for layer in layers]

    def paint(self, at: Tensor, background: Tensor | None = None, soft: float = 1.0) -> Tensor:
        """Colours (B, H, W, 3) at pixel positions, edges `soft` pixels wide."""
        colour = (self.background if background is None else background)[:, None, None].expand(*at.shape[:3], 3)
        for distance, index in self.distances(at):
            alpha = (0.5 - distance / soft).clamp(0, 1)[..., None]
            colour = colour + alpha * (self.paints[:, index, None, None] - colour)
        return colour

    def lines(self, at: Tensor) -> Tensor:
        """Distance in pixels (B, H, W) to the nearest visible outline."""
        nearest = torch.full(at.shape[:3], 99.0)
        for distance, _ in self.distances(at):
            edge = distance.abs()
            nearest = torch.where(distance < 0, edge, torch.minimum(nearest, edge))
        return nearest

    def inside(self, at: Tensor) -> Tensor:
        """1 on the object, 0 beside it (B, H, W)."""
        distance = torch.stack([d for d, _ in self.distances(at)]).amin(0)
        return (0.5 - distance).clamp(0, 1)


def pixels(batch: int) -> Tensor:
    """Pixel centres (B, H, W, 2), x first."""
    axis = torch.arange(SIZE) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack((x, y), -1).expand(batch, SIZE, SIZE, 2)


def render(pictures: list[Picture]) -> Tensor:
    """Draw pictures: (B, 3, 64, 64) in [0, 1].

    Raises:
        ValueError: an object or style that PocketCanvas does not have.
    """
    from erasure.pocket.styles import draw  # styles read Scene from this module

    out = torch.empty(len(pictures), 3, SIZE, SIZE)
    groups: dict[tuple[str, str], list[int]] = {}
    for i, picture in enumerate(pictures):
        if picture.object not in OBJECTS or picture.style not in STYLES:
            raise ValueError(
                f"PocketCanvas has objects {', '.join(OBJECTS)} and styles {', '.join(STYLES)}, got {picture.object!r}, {picture.style!r}"
            )
        groups.setdefault((picture.object, picture.style), []).append(i)
    for (name, style), rows in groups.items():
        scene = compose(name, [pictures[i] for i in rows])
        out[rows] = draw(style, scene).clamp(0, 1).permute(0, 3, 1, 2)
    return out


def traits(picture: Picture) -> Traits:
    """The caption-worthy facts of a picture, without drawing it."""
    u = _draws(picture)[0]
    names = list(COLOURS)
    size = "small" if u[2] < 0.25 else "large" if u[2] > 0.75 else ""
    dx, dy = u[0].item() - 0.5, u[1].item() - 0.5
    place = ""
    if max(abs(dx), abs(dy)) > 0.3 and size != "large":
        place = ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("top" if dy < 0 else "bottom")
    worn = bool(u[12] < CROWN_SHARE) if picture.crown is None else picture.crown
    return Traits(names[int(u[4] * len(names))], size, place, worn)


def compose(name: str, pictures: list[Picture]) -> Scene:
    """Turn the seeds of one object's pictures into geometry, colours and noise."""
    draws = [_draws(picture) for picture in pictures]
    u = torch.stack([d[0] for d in draws])
    scale = 19 + 7 * u[:, 2]
    room = (SIZE / 2 - 2 - scale)[:, None]  # keeps the object in the picture
    palette = torch.tensor(list(COLOURS.values()))
    main = (u[:, 4] * len(palette)).long()
    second = (main + 1 + (u[:, 5] * (len(palette) - 1)).long()) % len(palette)
    skin = torch.tensor(SKINS)[(u[:, 6] * len(SKINS)).long()]
    jitter = 0.08 * (u[:, 20:29].reshape(-1, 3, 3) - 0.5)
    dark = torch.tensor((0.2, 0.17, 0.17)).expand(len(u), 3)
    light = torch.tensor((0.97, 0.95, 0.85)).expand(len(u), 3)
    gold = torch.tensor((0.93, 0.72, 0.1)).expand(len(u), 3)
    paints = torch.stack((palette[main] + jitter[:, 0], palette[second] + jitter[:, 1], dark, light, skin, gold), 1)
    tint = palette[(u[:, 7] * len(palette)).long()]
    return Scene(
        object=name,
        centre=SIZE / 2 + torch.tensor((0.0, 1.5)) + 1.6 * room * (u[:, :2] - 0.5),
        scale=scale,
        angle=(u[:, 3] - 0.5) * math.radians(32),
        paints=paints.clamp(0, 1),
        background=(0.93 + 0.05 * u[:, 8:9]) * (1 - 0.16 * u[:, 9:10] * (1 - tint)),
        crowned=torch.tensor([traits(picture).crown for picture in pictures]),
        waves=F.interpolate(torch.stack([d[1] for d in draws]), size=(SIZE, SIZE), mode="bicubic", align_corners=True),
        grain=torch.stack([d[2] for d in draws]),
        cells=torch.stack([d[3] for d in draws]),
        dials=u[:, 28:32],
    )


def _draws(picture: Picture) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All random numbers of one picture, from its own generator."""
    digest = hashlib.blake2b(f"{picture.object}|{picture.style}|{picture.seed}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return (
        torch.rand(32, generator=generator),
        torch.randn(4, 8, 8, generator=generator),
        torch.randn(SIZE, SIZE, generator=generator),
        torch.rand(5, 22, 22, generator=generator),
    )
