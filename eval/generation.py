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

from erasure.errors import NotFiniteError, UserError
from erasure.families.base import DiffusionModel
from erasure.storage.files import DamagedFile, ensure_folder, is_path_taken, print_message, write_bytes
from erasure.storage.run import cache_folder, hash_record
from eval.suites.cases import Case
from eval.suites.suite import Suite

MAX_BATCH_IMAGES = 45  # pictures drawn together, at most
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk, which `verify` does not look into
MAX_BATCH_POSITIONS = 8 * 64 * 64  # places of latents drawn together, at most: eight pictures of Stable Diffusion 1.5


@dataclass(frozen=True)
class Sample:
    """One picture of one model."""

    case: Case
    index: int
    seed: int

    @property
    def file_name(self) -> str:
        return f"{self.case.id}-{self.index:02d}.png"


def samples_of(suite: Suite, cases: Sequence[Case]) -> list[Sample]:
    """All pictures of a suite in a fixed order: first one of every cell, then the second, ..."""
    rounds = range(max(case.count for case in cases))
    return [Sample(case, i, case.seed(suite.name, i)) for i in rounds for case in cases if i < case.count]


def generate_images(
    model: DiffusionModel,
    weights_digest: str,
    suite: Suite,
    samples: Sequence[Sample],
    folder: Path,
    *,
    shard: tuple[int, int] = (0, 1),
    use_cache: bool = True,
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
    ensure_folder(folder)
    cache = cache_folder() / "samples" if use_cache else folder / "drawn"
    batch = batch_size_of(model)
    groups = [samples[i : i + batch] for i in range(0, len(samples), batch)][shard[0] :: shard[1]]
    generated_count = 0
    for group in tqdm(groups, desc=f"drawing {folder.name}", unit="batch"):
        missing = [a for a in group if read_png(folder / a.name) is None]
        if not missing:
            continue
        keys = [cache_key(model, weights_digest, suite, a) for a in group]
        cache_paths = [cache / k[:2] / f"{k}.png" for k in keys]
        pngs = [png for path in cache_paths if (png := read_png(path)) is not None]
        if len(pngs) < len(group):
            try:
                pngs = [encode_png(image) for image in generate_batch(model, suite, group)]
            except NotFiniteError as error:
                raise UserError(f"model {folder.name} of the audit: {error}") from error
            generated_count += len(group)
            for png, path in zip(pngs, cache_paths, strict=True):
                ensure_folder(path.parent)
                write_bytes(path, png)
        for sample, png in zip(group, pngs, strict=True):
            if sample in missing:
                write_bytes(folder / sample.name, png)
    if not use_cache:
        shutil.rmtree(cache, ignore_errors=True)
    return generated_count


def batch_size_of(model: DiffusionModel) -> int:
    """Pictures drawn together: decided by the size of the latents alone, so that every machine draws the same batches."""
    _, height, width = model.latent_shape
    return max(1, min(MAX_BATCH_IMAGES, MAX_BATCH_POSITIONS // (height * width)))


def generate_batch(model: DiffusionModel, suite: Suite, samples: Sequence[Sample]) -> Tensor:
    """Pictures (B, 3, H, W) as uint8."""
    prompts, seeds = [a.case.prompt for a in samples], [a.seed for a in samples]
    return generate_by_guidance(
        [guidance_of(suite, a.case) for a in samples],
        lambda scale, some: generate_from_prompts(model, [prompts[i] for i in some], [seeds[i] for i in some], suite.steps, scale),
    )


def guidance_of(suite: Suite, case: Case) -> float:
    """The scale a case is drawn with: the prompt list's, or the suite's."""
    return suite.guidance if case.guidance is None else case.guidance


def generate_from_prompts(
    model: DiffusionModel, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float, prefix: Tensor | None = None
) -> Tensor:
    """Pictures (B, 3, H, W) as uint8, all with one guidance scale.

    Raises:
        NotFinite: pictures with NaN or Inf.
    """
    images = model.decode(model.sample(prompts, seeds, steps, guidance, prefix)).cpu()
    return (images * 255).round().to(torch.uint8)


def generate_by_guidance(scales: Sequence[float], generate: Callable[[float, Sequence[int]], Tensor]) -> Tensor:
    """Pictures of a batch with several guidance scales, made scale by scale and put back in order."""
    indices_by_scale = [(scale, [i for i, s in enumerate(scales) if s == scale]) for scale in dict.fromkeys(scales)]
    images = torch.cat([generate(scale, indices) for scale, indices in indices_by_scale])
    return images[torch.tensor([i for _, indices in indices_by_scale for i in indices]).argsort()]


def cache_key(model: DiffusionModel, weights_digest: str, suite: Suite, sample: Sample) -> str:
    """Content hash of a picture: everything that decides its pixels."""
    return hash_record(
        {
            "weights": weights_digest,
            "case": asdict(sample.case)["prompt"],
            "seed": sample.seed,
            "steps": suite.steps,
            "guidance": guidance_of(suite, sample.case),
            "compute": str(model.compute_dtype),
            "device": model.device.type,
            "sampler": "ddim",
        }
    )


def save_png(image: Tensor, path: Path) -> None:
    """Write a (3, H, W) uint8 picture in one atomic step."""
    ensure_folder(path.parent)
    write_bytes(path, encode_png(image))


def encode_png(image: Tensor) -> bytes:
    png = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(png, format="PNG")
    return png.getvalue()


def read_png(path: Path) -> bytes | None:
    """A PNG file whose checksums are right; None where it is missing, or damaged, which is told."""
    if not is_path_taken(path):
        return None
    try:
        return read_valid_png(path)
    except DamagedFile as error:
        print_message(f"{error} It is made anew.")
        return None


def read_valid_png(path: Path) -> bytes:
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
        raise DamagedFile(f"{path} is damaged ({error if isinstance(error, SyntaxError) else 'no whole PNG file'}).") from error
    return png


def load_png(path: Path) -> Tensor:
    """(3, H, W) in [0, 1].

    Raises:
        Damaged: see `checked_png`; the command that drew it draws it again.
    """
    with Image.open(io.BytesIO(read_valid_png(path))) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def load_batches(samples: Sequence[Sample], folder: Path, size: int = 64) -> Iterator[tuple[Sequence[Sample], Tensor]]:
    """Pictures back from disk, (B, 3, H, W) in [0, 1]; a batch ends where their size changes."""
    group: list[Sample] = []
    images: list[Tensor] = []
    for sample in samples:
        image = load_png(folder / sample.file_name)
        if group and (len(group) == size or image.shape != images[0].shape):
            yield group, torch.stack(images)
            group, images = [], []
        group.append(sample)
        images.append(image)
    if group:
        yield group, torch.stack(images)
