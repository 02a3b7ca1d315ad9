"""The styles of PocketCanvas: one function each, from a scene to colors (B, 64, 64, 3) in about [0, 1]."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from erasure.pocket.canvas import OBJECTS, SIZE, STYLES, ImageSpec, Scene, compose_scene, pixel_centers


def render_style(style: str, scene: Scene) -> Tensor:
    """Return the colors (B, 64, 64, 3) of a scene in a style, in about [0, 1]."""
    return STYLE_RENDERERS[style](scene, pixel_centers(len(scene.center)))


def plain(scene: Scene, at: Tensor) -> Tensor:
    return scene.paint(at) * (1 + 0.03 * scene.smooth_noise[:, 0, ..., None])


def neon(scene: Scene, at: Tensor) -> Tensor:
    d = scene.outline_distance(at)[..., None]
    hue = scene.colors[:, 0, None, None]
    hue = hue / hue.amax(-1, keepdim=True)
    night = torch.tensor((0.04, 0.03, 0.08)) * (1 + 0.3 * scene.smooth_noise[:, 0, ..., None])
    glow = torch.exp(-((d / 1.5) ** 2)) + 0.5 * torch.exp(-d / 4)
    return night + glow * hue + 0.6 * torch.exp(-((d / 0.8) ** 2))


def sketch(scene: Scene, at: Tensor) -> Tensor:
    first_stroke, second_stroke = (at + 0.9 * scene.smooth_noise[:, k : k + 2].permute(0, 2, 3, 1) for k in (0, 2))
    pencil = (1.4 - scene.outline_distance(first_stroke)).clamp(0, 1) * 0.75
    pencil = pencil + (1.2 - scene.outline_distance(second_stroke)).clamp(0, 1) * 0.45
    stripe = (0.5 + 0.5 * torch.cos((at[..., 0] + at[..., 1]) * 2 * math.pi / 5)) ** 3
    shade = scene.coverage(at) * stripe * 0.22
    paper = 0.95 + 0.008 * scene.white_noise
    return (paper - (pencil + shade).clamp(0, 0.85))[..., None] * torch.tensor((1.0, 1.0, 0.98))


def watercolor(scene: Scene, at: Tensor) -> Tensor:
    wet = at + 0.8 * scene.smooth_noise[:, :2].permute(0, 2, 3, 1)
    paper = torch.tensor((0.98, 0.97, 0.94)).expand(len(at), 3)
    tint = scene.paint(wet, background=paper, edge_width=2.0)
    pigment = (0.62 + 0.22 * scene.smooth_noise[:, 2]).clamp(0.25, 1)[..., None]
    rim = 0.18 * torch.exp(-((scene.outline_distance(wet) / 1.3) ** 2))[..., None]
    wash = 0.10 * (scene.smooth_noise[:, 3, ..., None] > 0.3) * (1 - scene.colors[:, 1, None, None])
    flow = paper[:, None, None] - (paper[:, None, None] - tint) * (pigment + rim) - wash * (1 - scene.coverage(wet)[..., None])
    return flow + 0.006 * scene.white_noise[..., None]


def pointillism(scene: Scene, at: Tensor) -> Tensor:
    center, noise, d, _ = nearest_cells(scene, at, pitch=3, spread=0.7)
    dot = scene.paint(center) + 0.30 * (noise - 0.5)
    cover = (1.8 - d).clamp(0, 1)[..., None]
    return cover * dot + (1 - cover) * torch.tensor((0.97, 0.96, 0.92))


def pixel(scene: Scene, at: Tensor) -> Tensor:
    block = (at / 4).floor() * 4 + 2
    color = scene.paint(block, edge_width=3.0)
    outline = ((2.2 - scene.outline_distance(block)).clamp(0, 1) * 0.3)[..., None]
    return ((color * (1 - outline)) * 5).round() / 5


def engraving(scene: Scene, at: Tensor) -> Tensor:
    tone = scene.paint(at).mean(-1)
    body = scene.coverage(at)
    darkness = body * (0.95 - 0.7 * tone) + (1 - body) * (0.14 + 0.05 * scene.smooth_noise[:, 0])
    angle = (0.5 + 0.35 * (scene.style_noise[:, 0] - 0.5))[:, None, None] * math.pi / 2
    along = at[..., 0] * angle.sin() + at[..., 1] * angle.cos() + 0.5 * scene.smooth_noise[:, 1]
    groove = 0.5 + 0.5 * torch.cos(along * 2 * math.pi / 3.6)
    ink = torch.sigmoid((groove - 1 + darkness) * 9)
    ink = torch.maximum(ink, (1.5 - scene.outline_distance(at)).clamp(0, 1))
    paper, black = torch.tensor((0.93, 0.87, 0.74)), torch.tensor((0.16, 0.11, 0.08))
    return paper + ink[..., None] * (black - paper)


def glass(scene: Scene, at: Tensor) -> Tensor:
    _, noise, nearest, second_nearest = nearest_cells(scene, at, pitch=8, spread=0.8)
    jewel = scene.colors[:, 1]
    backdrop = 0.25 + 0.5 * jewel.flip(-1)
    color = scene.paint(at, background=backdrop) * (0.65 + 0.55 * noise[..., :1]) + 0.10 * (noise - 0.5)
    lead = torch.maximum((1.6 - (second_nearest - nearest)).clamp(0, 1) * 0.85, (2.1 - scene.outline_distance(at)).clamp(0, 1))
    return color * (1 - lead[..., None]) + 0.05 * lead[..., None]


def blueprint(scene: Scene, at: Tensor) -> Tensor:
    phase = (scene.style_noise[:, :2] * 8)[:, None, None]
    grid = ((at + phase) % 8 - 4).abs().amax(-1)
    chalk = (grid > 3.4).float() * 0.22
    offset = (at - scene.center[:, None, None]).abs()
    dashed = (at.sum(-1) % 6 < 3).float()
    chalk = torch.maximum(chalk, (offset.amin(-1) < 0.6).float() * dashed * 0.45)
    chalk = torch.maximum(chalk, (1.5 - scene.outline_distance(at)).clamp(0, 1))
    blue, white = torch.tensor((0.09, 0.25, 0.56)), torch.tensor((0.92, 0.95, 1.0))
    return (blue + chalk[..., None] * (white - blue)) * (1 + 0.04 * scene.smooth_noise[:, 0, ..., None])


def nearest_cells(scene: Scene, at: Tensor, pitch: int, spread: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the Voronoi cells of a jittered grid: nearest site (B, H, W, 2), its noise (B, H, W, 3), distances to nearest and second."""
    count = -(-SIZE // pitch)
    cells = scene.cell_noise[:, :, :count, :count]
    home = (at / pitch).floor().long()
    rows = torch.arange(len(at))[:, None, None]
    sites, noises, distances = [], [], []
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            x, y = (home[..., 0] + dx).clamp(0, count - 1), (home[..., 1] + dy).clamp(0, count - 1)
            cell = cells[rows, :, y, x]
            site = (torch.stack((x, y), -1) + 0.5 + spread * (cell[..., :2] - 0.5)) * pitch
            # clamping repeats cells at the border: push the copies away, so that they do not count as second neighbors
            outside = ((home[..., 0] + dx) != x) | ((home[..., 1] + dy) != y)
            sites.append(site)
            noises.append(cell[..., 2:])
            distances.append((at - site).norm(dim=-1) + 99.0 * outside)
    order = torch.stack(distances).sort(0)
    nearest = order.indices[0]
    nearest_index = nearest[None, ..., None]
    site = torch.stack(sites).gather(0, nearest_index.expand(1, *nearest.shape, 2))[0]
    noise = torch.stack(noises).gather(0, nearest_index.expand(1, *nearest.shape, 3))[0]
    return site, noise, order.values[0], order.values[1]


STYLE_RENDERERS: dict[str, Callable[[Scene, Tensor], Tensor]] = {
    "plain": plain,
    "neon": neon,
    "sketch": sketch,
    "watercolor": watercolor,
    "pointillism": pointillism,
    "pixel": pixel,
    "engraving": engraving,
    "glass": glass,
    "blueprint": blueprint,
}


def render(specs: list[ImageSpec]) -> Tensor:
    """Return images (B, 3, 64, 64) in [0, 1].

    Raises:
        ValueError: PocketCanvas does not have an object or style.
    """
    images = torch.empty(len(specs), 3, SIZE, SIZE)
    groups: dict[tuple[str, str], list[int]] = {}
    for i, spec in enumerate(specs):
        if spec.object not in OBJECTS or spec.style not in STYLES:
            raise ValueError(
                f"PocketCanvas has objects {', '.join(OBJECTS)} and styles {', '.join(STYLES)}, got {spec.object!r}, {spec.style!r}"
            )
        groups.setdefault((spec.object, spec.style), []).append(i)
    for (name, style), rows in groups.items():
        scene = compose_scene(name, [specs[i] for i in rows])
        images[rows] = render_style(style, scene).clamp(0, 1).permute(0, 3, 1, 2)
    return images
