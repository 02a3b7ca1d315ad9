"""Cases x model -> pictures on disk. Every picture has its own seed, so all models of an audit start from the same noise."""

import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from erasure.errors import NotFinite, UserError
from erasure.families.base import DiffusionModel
from erasure.storage.files import Damaged, folder_exists, is_there, tell, write_bytes
from erasure.storage.run import cache_folder, digest
from eval.suites.cases import Case
from eval.suites.suite import Suite

AT_ONCE = 45  # pictures drawn together, at most
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk, which `verify` does not look into
PLACES = 8 * 64 * 64  # places of latents drawn together, at most: eight pictures of Stable Diffusion 1.5


@dataclass(frozen=True)
class Attempt:
    """One picture of one model."""

    case: Case
    index: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.case.id}-{self.index:02d}.png"


def attempts(suite: Suite, cases: Sequence[Case]) -> list[Attempt]:
    """All pictures of a suite in a fixed order: first one of every cell, then the second, ..."""
    rounds = range(max(case.count for case in cases))
    return [Attempt(case, i, case.seed(suite.name, i)) for i in rounds for case in cases if i < case.count]


def draw(
    model: DiffusionModel,
    weights: str,
    suite: Suite,
    todo: Sequence[Attempt],
    folder: Path,
    *,
    shard: tuple[int, int] = (0, 1),
    cached: bool = True,
) -> int:
    """Draw what is missing or damaged as PNG files into `folder` and return how many pictures had to be drawn.

    Pictures are made in groups of `at_once`, so that a resumed run repeats the same batches and hence the same bits. Drawn pictures
    are kept in a cache by content, so that a base model is drawn once for many audits.

    Args:
        weights: hash of the model's weights as they are now, edits included.
        shard: (i, n): only every n-th group, from the i-th on.
        cached: whether pictures may be taken from the cache and left in it.

    Raises:
        UserError: pictures with NaN or Inf.
    """
    folder_exists(folder)
    cache = cache_folder() / "samples" if cached else folder / "drawn"
    batch = at_once(model)
    groups = [todo[i : i + batch] for i in range(0, len(todo), batch)][shard[0] :: shard[1]]
    drawn = 0
    for group in tqdm(groups, desc=f"drawing {folder.name}", unit="batch"):
        lacking = [a for a in group if read_png(folder / a.name) is None]
        if not lacking:
            continue
        keys = [key(model, weights, suite, a) for a in group]
        stored = [cache / k[:2] / f"{k}.png" for k in keys]
        pngs = [png for path in stored if (png := read_png(path)) is not None]
        if len(pngs) < len(group):
            try:
                pngs = [as_png(picture) for picture in sample(model, suite, group)]
            except NotFinite as error:
                raise UserError(f"model {folder.name} of the audit: {error}") from error
            drawn += len(group)
            for png, path in zip(pngs, stored, strict=True):
                folder_exists(path.parent)
                write_bytes(path, png)
        for attempt, png in zip(group, pngs, strict=True):
            if attempt in lacking:
                write_bytes(folder / attempt.name, png)
    if not cached:
        shutil.rmtree(cache, ignore_errors=True)
    return drawn


def at_once(model: DiffusionModel) -> int:
    """Pictures drawn together: decided by the size of the latents alone, so that every machine draws the same batches."""
    _, height, width = model.latent_shape
    return max(1, min(AT_ONCE, PLACES // (height * width)))


def sample(model: DiffusionModel, suite: Suite, group: Sequence[Attempt]) -> Tensor:
    """Pictures (B, 3, H, W) as uint8."""
    prompts, seeds = [a.case.prompt for a in group], [a.seed for a in group]
    return guided(
        [guidance_of(suite, a.case) for a in group],
        lambda scale, some: drawn(model, [prompts[i] for i in some], [seeds[i] for i in some], suite.steps, scale),
    )


def guidance_of(suite: Suite, case: Case) -> float:
    """The scale a case is drawn with: the prompt list's, or the suite's."""
    return suite.guidance if case.guidance is None else case.guidance


def drawn(
    model: DiffusionModel, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float, prefix: Tensor | None = None
) -> Tensor:
    """Pictures (B, 3, H, W) as uint8, all with one guidance scale.

    Raises:
        NotFinite: pictures with NaN or Inf.
    """
    pictures = model.decode(model.sample(prompts, seeds, steps, guidance, prefix)).cpu()
    return (pictures * 255).round().to(torch.uint8)


def guided(scales: Sequence[float], make: Callable[[float, Sequence[int]], Tensor]) -> Tensor:
    """Pictures of a batch with several guidance scales, made scale by scale and put back in order."""
    parts = [(scale, [i for i, s in enumerate(scales) if s == scale]) for scale in dict.fromkeys(scales)]
    made = torch.cat([make(scale, some) for scale, some in parts])
    return made[torch.tensor([i for _, some in parts for i in some]).argsort()]


def key(model: DiffusionModel, weights: str, suite: Suite, attempt: Attempt) -> str:
    """Content hash of a picture: everything that decides its pixels."""
    return digest(
        {
            "weights": weights,
            "case": asdict(attempt.case)["prompt"],
            "seed": attempt.seed,
            "steps": suite.steps,
            "guidance": guidance_of(suite, attempt.case),
            "compute": str(model.compute),
            "device": model.device.type,
            "sampler": "ddim",
        }
    )


def save_png(picture: Tensor, path: Path) -> None:
    """Write a (3, H, W) uint8 picture in one atomic step."""
    folder_exists(path.parent)
    write_bytes(path, as_png(picture))


def as_png(picture: Tensor) -> bytes:
    png = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(png, format="PNG")
    return png.getvalue()


def read_png(path: Path) -> bytes | None:
    """A PNG file whose checksums are right; None where it is missing, or damaged, which is told."""
    if not is_there(path):
        return None
    try:
        return checked_png(path)
    except Damaged as error:
        tell(f"{error} It is made anew.")
        return None


def checked_png(path: Path) -> bytes:
    """The bytes of a PNG file.

    Raises:
        Damaged: unreadable, truncated, or with a wrong checksum. Reading pixels alone does not look at the checksums.
    """
    try:
        png = path.read_bytes()
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            image.verify()
        if not png.endswith(PNG_END):
            raise ValueError("it does not end as one")
    except (OSError, SyntaxError, ValueError) as error:
        raise Damaged(f"{path} is damaged ({error if isinstance(error, SyntaxError) else 'no whole PNG file'}).") from error
    return png


def load_png(path: Path) -> Tensor:
    """(3, H, W) in [0, 1].

    Raises:
        Damaged: see `checked_png`; the command that drew it draws it again.
    """
    with Image.open(io.BytesIO(checked_png(path))) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def batches(todo: Sequence[Attempt], folder: Path, size: int = 64) -> Iterator[tuple[Sequence[Attempt], Tensor]]:
    """Pictures back from disk, (B, 3, H, W) in [0, 1]; a batch ends where their size changes."""
    group: list[Attempt] = []
    pictures: list[Tensor] = []
    for attempt in todo:
        picture = load_png(folder / attempt.name)
        if group and (len(group) == size or picture.shape != pictures[0].shape):
            yield group, torch.stack(pictures)
            group, pictures = [], []
        group.append(attempt)
        pictures.append(picture)
    if group:
        yield group, torch.stack(pictures)
