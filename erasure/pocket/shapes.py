"""PocketCanvas objects as signed-distance shapes, evaluated for a whole batch of images at once.

Points are (B, H, W, 2) in the object's own frame: x to the right, y down, and the object fills about [-1, 1]. Distances are (B, H, W) and
negative inside (Quilez, "2D distance functions"). An object is a list of layers, back to front.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Paint = Literal["main", "second", "dark", "light", "skin", "gold"]
PAINTS: tuple[Paint, ...] = ("main", "second", "dark", "light", "skin", "gold")


class Layer(NamedTuple):
    distance: Tensor  # (B, H, W), object units, negative inside
    paint: Paint


def circle(p: Tensor, x: float, y: float, r: float) -> Tensor:
    return _length(p - p.new_tensor((x, y))) - r


def ellipse(p: Tensor, x: float, y: float, rx: float, ry: float) -> Tensor:
    """Return the distance to first order: the implicit function over its gradient."""
    q = p - p.new_tensor((x, y))
    r = p.new_tensor((rx, ry))
    k = _length(q / r)
    g = _length(q / r**2).clamp_min(1e-4)
    return k * (k - 1) / g


def box(p: Tensor, x: float, y: float, half_width: float, half_height: float, round_: float = 0.0) -> Tensor:
    q = (p - p.new_tensor((x, y))).abs() - p.new_tensor((half_width - round_, half_height - round_))
    return _length(q.clamp_min(0)) + q.amax(-1).clamp_max(0) - round_


def segment(p: Tensor, a: tuple[float, float], b: tuple[float, float], width: float) -> Tensor:
    pa, ba = p - p.new_tensor(a), p.new_tensor(b) - p.new_tensor(a)
    h = ((pa * ba).sum(-1) / (ba * ba).sum()).clamp(0, 1)
    return _length(pa - ba * h[..., None]) - width


def _length(vectors: Tensor) -> Tensor:
    """Return the Euclidean lengths (...) of vectors (..., 2)."""
    lengths: Tensor = vectors.norm(dim=-1)
    return lengths


def polygon(p: Tensor, vertices: Sequence[tuple[float, float]]) -> Tensor:
    """Return the exact distance to a simple polygon: nearest edge, sign from the winding number."""
    d = torch.full(p.shape[:-1], math.inf, dtype=p.dtype, device=p.device)
    sign = torch.ones_like(d)
    for i, (xi, yi) in enumerate(vertices):
        xj, yj = vertices[i - 1]
        ex, ey = xj - xi, yj - yi
        wx, wy = p[..., 0] - xi, p[..., 1] - yi
        h = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        d = torch.minimum(d, (wx - ex * h) ** 2 + (wy - ey * h) ** 2)
        above, below, left = p[..., 1] >= yi, p[..., 1] < yj, ex * wy > ey * wx
        crosses = (above & below & left) | (~above & ~below & ~left)
        sign = torch.where(crosses, -sign, sign)
    return sign * d.clamp_min(1e-9).sqrt()


def ring(p: Tensor, x: float, y: float, r: float, width: float) -> Tensor:
    return circle(p, x, y, r).abs() - width


def union(*distances: Tensor) -> Tensor:
    return torch.stack(distances).amin(0)


def boat(p: Tensor) -> list[Layer]:
    return [
        Layer(segment(p, (0.0, 0.3), (0.0, -0.92), 0.05), "dark"),
        Layer(polygon(p, ((0.09, -0.85), (0.8, 0.16), (0.09, 0.16))), "second"),
        Layer(polygon(p, ((-0.09, -0.6), (-0.09, 0.16), (-0.6, 0.16))), "light"),
        Layer(polygon(p, ((-0.95, 0.3), (0.95, 0.3), (0.55, 0.82), (-0.55, 0.82))), "main"),
    ]


def fish(p: Tensor) -> list[Layer]:
    return [
        Layer(polygon(p, ((0.42, 0.0), (0.95, -0.45), (0.8, 0.0), (0.95, 0.45))), "second"),
        Layer(polygon(p, ((-0.25, -0.3), (0.1, -0.72), (0.3, -0.25))), "second"),
        Layer(ellipse(p, -0.2, 0.0, 0.74, 0.45), "main"),
        Layer(circle(p, -0.58, -0.1, 0.1), "dark"),
    ]


def flower(p: Tensor) -> list[Layer]:
    petals = [circle(p, 0.42 * math.sin(a), -0.35 - 0.42 * math.cos(a), 0.26) for a in (k * math.pi / 3 for k in range(6))]
    return [
        Layer(segment(p, (0.0, -0.2), (0.0, 0.92), 0.07), "dark"),
        Layer(ellipse(p, 0.34, 0.55, 0.3, 0.13), "second"),
        Layer(union(*petals), "main"),
        Layer(circle(p, 0.0, -0.35, 0.23), "light"),
    ]


def heart(p: Tensor) -> list[Layer]:
    curve = [(k / 28 * 2 * math.pi) for k in range(28)]
    outline = [
        (math.sin(a) ** 3 * 0.92, -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 17.5) for a in curve
    ]
    return [Layer(polygon(p, outline), "main"), Layer(ellipse(p, -0.42, -0.3, 0.16, 0.12), "light")]


def house(p: Tensor) -> list[Layer]:
    return [
        Layer(box(p, 0.0, 0.3, 0.66, 0.55), "main"),
        Layer(polygon(p, ((-0.92, -0.2), (0.0, -0.9), (0.92, -0.2))), "second"),
        Layer(box(p, -0.22, 0.5, 0.17, 0.35), "dark"),
        Layer(box(p, 0.33, 0.25, 0.18, 0.18), "light"),
    ]


def moon(p: Tensor) -> list[Layer]:
    return [Layer(torch.maximum(circle(p, -0.05, 0.0, 0.88), -circle(p, 0.38, -0.12, 0.72)), "main")]


def star(p: Tensor) -> list[Layer]:
    tips = [(r * math.sin(k * math.pi / 5), -r * math.cos(k * math.pi / 5)) for k, r in enumerate((0.98, 0.42) * 5)]
    return [Layer(polygon(p, tips), "main")]


def tree(p: Tensor) -> list[Layer]:
    return [
        Layer(box(p, 0.0, 0.72, 0.13, 0.25), "dark"),
        Layer(polygon(p, ((-0.78, 0.55), (0.0, -0.2), (0.78, 0.55))), "main"),
        Layer(polygon(p, ((-0.62, 0.1), (0.0, -0.6), (0.62, 0.1))), "main"),
        Layer(polygon(p, ((-0.45, -0.35), (0.0, -0.98), (0.45, -0.35))), "main"),
    ]


def ada(p: Tensor) -> list[Layer]:
    """Return Ada Finch: long hair on both sides, round glasses, a small smile."""
    hair = union(circle(p, 0.0, -0.25, 0.68), box(p, -0.52, 0.35, 0.18, 0.6, 0.12), box(p, 0.52, 0.35, 0.18, 0.6, 0.12))
    glasses = union(ring(p, -0.22, 0.0, 0.19, 0.05), ring(p, 0.22, 0.0, 0.19, 0.05), box(p, 0.0, 0.0, 0.05, 0.04))
    return [
        Layer(hair, "main"),
        Layer(ellipse(p, 0.0, 0.1, 0.47, 0.56), "skin"),
        Layer(glasses, "dark"),
        Layer(segment(p, (-0.13, 0.4), (0.13, 0.4), 0.045), "dark"),
    ]


def otto(p: Tensor) -> list[Layer]:
    """Return Otto Bram: a square head, a top hat with a wide brim, a full pointed beard."""
    return [
        Layer(box(p, 0.0, 0.1, 0.52, 0.5, 0.12), "skin"),
        Layer(polygon(p, ((-0.55, 0.2), (0.55, 0.2), (0.42, 0.68), (0.0, 0.98), (-0.42, 0.68))), "second"),
        Layer(box(p, 0.0, -0.72, 0.42, 0.26), "main"),
        Layer(box(p, 0.0, -0.4, 0.85, 0.09), "main"),
        Layer(union(circle(p, -0.22, -0.08, 0.08), circle(p, 0.22, -0.08, 0.08)), "dark"),
        Layer(box(p, 0.0, 0.38, 0.17, 0.055), "light"),
    ]


def crown(p: Tensor, x: float, y: float) -> Layer:
    """Return the crown, an attribute that every object can have; (x, y) is where it sits."""
    points = ((-0.36, 0.0), (0.36, 0.0), (0.46, -0.46), (0.2, -0.18), (0.0, -0.52), (-0.2, -0.18), (-0.46, -0.46))
    return Layer(polygon(p, [(x + a, y + b) for a, b in points]), "gold")


class Shape(NamedTuple):
    layers: Callable[[Tensor], list[Layer]]
    top: tuple[float, float]  # where a crown sits


SHAPES: dict[str, Shape] = {
    "boat": Shape(boat, (0.0, -0.8)),
    "fish": Shape(fish, (-0.35, -0.36)),
    "flower": Shape(flower, (0.0, -0.88)),
    "heart": Shape(heart, (0.0, -0.42)),
    "house": Shape(house, (0.0, -0.72)),
    "moon": Shape(moon, (-0.1, -0.75)),
    "star": Shape(star, (0.0, -0.72)),
    "tree": Shape(tree, (0.0, -0.8)),
    "ada": Shape(ada, (0.0, -0.82)),
    "otto": Shape(otto, (0.0, -0.9)),
}
