"""The teacher's answers as data: walks of the frozen model, recorded once and trained from many times.

A classifier-free-guided walk computes eps(x_t, c) and eps(x_t, empty) at every step anyway. Keeping them turns the
frozen teacher into a table: no second UNet in memory, no fresh rollout per update. Walks come from the frozen model, as in
the newer code of the ESD authors; their paper walks with the model being edited. Methods that noise clean images (SalUn) take
the final latents instead, without a round trip through the VAE.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.run import cache_folder, digest

Role = Literal["erase", "retain"]
IMAGES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What to ask the frozen model.

    Attributes:
        pairs: (sentence with the concept, the same without it); the second is asked for at every point of the first's walks.
        walks: guided walks in all, dealt round robin to the pairs.
        steps: DDIM steps of a walk, each giving one row.
        guidance: classifier-free guidance of the walks.
        retain: sentences to keep; walked as well, `retain_walks` in all.
        keep: "answers" keeps every step and what the model said there, "latents" only where the walks end, "nothing" walks nowhere
            and only names the sentences.
        images, retain_images: folders of real images that stand in for walks; "latents" only.
    """

    pairs: tuple[tuple[str, str], ...]
    walks: int
    steps: int
    guidance: float
    seed: int = 0
    retain: tuple[str, ...] = ()
    retain_walks: int = 0
    keep: Literal["answers", "latents", "nothing"] = "answers"
    images: str = ""
    retain_images: str = ""

    def __post_init__(self) -> None:
        for what, walks, sentences, images in (
            ("--walks", self.walks, self.pairs, self.images),
            ("--retain-walks", self.retain_walks, self.retain, self.retain_images),
        ):
            if self.keep != "nothing" and not images and walks < len(sentences):
                raise UserError(f"{walks} walks cannot cover {len(sentences)} training sentences; raise {what} or name fewer sentences.")
        if self.steps < 1:
            raise UserError(f"a walk needs at least 1 step, got --walk-steps {self.steps}.")

    def texts(self) -> list[str]:
        """Every distinct text that training may ask for, in a fixed order."""
        return list(dict.fromkeys(["", *(text for pair in self.pairs for text in pair), *self.retain]))

    def sentence(self, index: int) -> tuple[str, str]:
        """Pairs first, then retain sentences, which have no other side."""
        return self.pairs[index] if index < len(self.pairs) else (self.retain[index - len(self.pairs)], "")

    def deal(self) -> list[tuple[int, int]]:
        """(seed of the walk, index of its sentence) for every walk, those to retain after those to erase."""
        if self.keep == "nothing":
            return []
        erase = 0 if self.images else self.walks
        retain = 0 if self.retain_images else self.retain_walks
        found = [(self.seed * 1_000_003 + w, w % len(self.pairs)) for w in range(erase)]
        return found + [(self.seed * 1_000_003 + 500_000 + w, len(self.pairs) + w % len(self.retain)) for w in range(retain)]


class Batch(NamedTuple):
    """Rows of a bank."""

    x_t: Tensor  # (B, C, h, w)
    t: Tensor  # (B,)
    prompts: list[str]  # B sentences with the concept
    eps_cond: Tensor  # (B, C, h, w) the teacher on `prompts`
    eps_uncond: Tensor  # (B, C, h, w) the teacher on the sentences without the concept


class Latents(NamedTuple):
    """Final latents of walks."""

    x_0: Tensor  # (B, C, h, w)
    prompts: list[str]
    without: list[str]  # the same sentences without the concept


@dataclass(frozen=True)
class Bank:
    """R recorded rows and W final latents, in fp16 whether they come from disk or were just made, so both train alike."""

    recording: Recording
    x_t: Tensor  # (R, C, h, w); R is 0 when only latents are kept
    t: Tensor  # (R,)
    pair: Tensor  # (R,) index for recording.sentence
    eps_cond: Tensor  # (R, C, h, w)
    eps_uncond: Tensor  # (R, C, h, w)
    x_0: Tensor  # (W, C, h, w)
    x_0_pair: Tensor  # (W,)

    def __len__(self) -> int:
        return len(self.t)

    def rows(self, role: Role) -> Tensor:
        return self._of(self.pair, role)

    def latents(self, role: Role) -> Tensor:
        return self._of(self.x_0_pair, role)

    def _of(self, pair: Tensor, role: Role) -> Tensor:
        erase = pair < len(self.recording.pairs)
        return (erase if role == "erase" else ~erase).nonzero().flatten()

    def batch(self, rows: Tensor, device: torch.device) -> Batch:
        prompts = [self.recording.sentence(i)[0] for i in self.pair[rows].tolist()]
        x_t, cond, uncond = (part[rows].to(device).float() for part in (self.x_t, self.eps_cond, self.eps_uncond))
        return Batch(x_t, self.t[rows].to(device), prompts, cond, uncond)

    def noise(self, latents: Tensor, model: DiffusionModel) -> Tensor:
        """The unit noise from which these walks began."""
        dealt = self.recording.deal()
        return model.noise([dealt[i][0] for i in latents.tolist()])

    def final(self, rows: Tensor, device: torch.device) -> Latents:
        sentences = [self.recording.sentence(i) for i in self.x_0_pair[rows].tolist()]
        return Latents(self.x_0[rows].to(device).float(), [with_ for with_, _ in sentences], [without for _, without in sentences])


def bank_key(model: DiffusionModel, recording: Recording) -> str:
    """Content hash; folders of images count by what is in them."""
    asked = replace(recording, images=_content(recording.images), retain_images=_content(recording.retain_images))
    return digest({"model": model.fingerprint(), "compute": str(model.compute), "device": model.device.type, **asdict(asked)})


def obtain(model: DiffusionModel, recording: Recording, *, cache: Path | None = None, chunk: int = 16) -> Bank:
    """Load a recording from the cache, or make it; an interrupted one continues with the first missing part.

    Args:
        chunk: walks recorded at once. Parts are written when complete, so a killed process loses at most one.
    """
    folder = (cache or cache_folder()) / "banks" / bank_key(model, recording)
    folder.mkdir(parents=True, exist_ok=True)
    dealt = recording.deal()
    starts = range(0, len(dealt), chunk)
    for start in tqdm(starts, desc="recording", unit="part", disable=all(_part(folder, s).exists() for s in starts)):
        if not _part(folder, start).exists():
            _write(record(model, recording, dealt[start : start + chunk]), _part(folder, start))
    parts = [load_file(_part(folder, start)) for start in starts] or [{key: values[0] for key, values in _empty(model).items()}]
    for images, first, count in (
        (recording.images, 0, len(recording.pairs)),
        (recording.retain_images, len(recording.pairs), len(recording.retain)),
    ):
        if images:
            path = folder / f"images-{first:05d}.safetensors"
            if not path.exists():
                _write(encoded(model, Path(images), first, count), path)
            parts.append(load_file(path))
    return Bank(recording, **{key: torch.cat([part[key] for part in parts]) for key in parts[0]})


@torch.no_grad()
def record(model: DiffusionModel, recording: Recording, dealt: list[tuple[int, int]]) -> dict[str, Tensor]:
    """Walk the frozen model and keep what it saw and said; a row for every walk and step, a latent for every walk."""
    pair = torch.tensor([index for _, index in dealt])
    sentences = [recording.sentence(index) for _, index in dealt]
    cond = model.encode([with_ for with_, _ in sentences])
    empty = model.encode([""]).expand(len(dealt), -1, -1)
    asked = torch.tensor([i for i, (_, without) in enumerate(sentences) if without and recording.keep == "answers"], dtype=torch.long)
    neutral = model.encode([sentences[i][1] for i in asked.tolist()]) if len(asked) else None  # "" is answered by the walk
    rows = _empty(model)
    noise = model.noise([seed for seed, _ in dealt])
    for step in model.walk(noise, cond, empty, recording.steps, recording.guidance):
        final = step.x_next
        if recording.keep == "latents":
            continue
        times = torch.full((len(dealt),), step.t)
        eps_uncond = step.eps_uncond.clone()
        if neutral is not None:
            eps_uncond[asked] = model.predict(step.x_t[asked], times[asked].to(model.device), neutral)
        for key, value in zip(
            ("x_t", "t", "pair", "eps_cond", "eps_uncond"), (step.x_t, times, pair, step.eps_cond, eps_uncond), strict=True
        ):
            rows[key].append(value.cpu() if value.dtype == torch.int64 else value.to("cpu", torch.float16))
    rows["x_0"].append(final.to("cpu", torch.float16))
    rows["x_0_pair"].append(pair)
    return {key: torch.cat(values) for key, values in rows.items()}


def encoded(model: DiffusionModel, folder: Path, first: int, count: int) -> dict[str, Tensor]:
    """Latents of a folder of real images, dealt round robin to `count` sentences from index `first` on."""
    rows = _empty(model)
    size = 2 ** (len(model.pipe.vae.config.block_out_channels) - 1) * model.latent_shape[1]
    for i, path in enumerate(image_files(folder)):
        with Image.open(path) as image:
            picture = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS), np.float32) / 255
        rows["x_0"].append(model.encode_images(torch.from_numpy(picture).permute(2, 0, 1)[None]).to("cpu", torch.float16))
        rows["x_0_pair"].append(torch.tensor([first + i % count]))
    return {key: torch.cat(values) for key, values in rows.items()}


def image_files(folder: Path) -> list[Path]:
    """The images of a folder in order of their names.

    Raises:
        UserError: no such folder, or no image in it.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES) if folder.is_dir() else []
    if not found:
        raise UserError(f"{folder} holds no images ({', '.join(IMAGES)}); give a folder of real images, or leave the option empty.")
    return found


def recording_cost(recording: Recording) -> int:
    """UNet forwards per sample that a recording takes, whether it was just made or found."""
    third = recording.keep == "answers"
    return sum((2 + (third and bool(recording.sentence(index)[1]))) * recording.steps for _, index in recording.deal())


def remembered(model: DiffusionModel, key: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors found in the cache under what decides them, or made and kept there."""
    place = digest({"model": model.fingerprint(), "compute": str(model.compute), "device": model.device.type, **key})
    path = cache_folder() / "tensors" / f"{place}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(make(), path)
    return load_file(path)


def _empty(model: DiffusionModel) -> dict[str, list[Tensor]]:
    """Nothing recorded yet, in the shapes and dtypes of a bank."""
    none, index = torch.empty(0, *model.latent_shape, dtype=torch.float16), torch.empty(0, dtype=torch.int64)
    kinds = {"x_t": none, "t": index, "pair": index, "eps_cond": none, "eps_uncond": none, "x_0": none, "x_0_pair": index}
    return {key: [value] for key, value in kinds.items()}


def _content(folder: str) -> str:
    return digest([hashlib.sha256(path.read_bytes()).hexdigest() for path in image_files(Path(folder))]) if folder else ""


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    draft = path.with_suffix(".tmp")
    save_file(tensors, draft)
    draft.replace(path)


def _part(folder: Path, start: int) -> Path:
    return folder / f"walks-{start:05d}.safetensors"
