"""How a bank comes about: from walks of the frozen model, folders of images or a one-step generator; cached by content."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from erasure.edits import Edit, applied
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.photos import image_files, opened, plain
from erasure.storage.files import folder_exists
from erasure.storage.run import cache_folder, digest
from erasure.storage.tensor_cache import kept
from erasure.training.teacher_cache import Bank, Recording


def bank_key(model: DiffusionModel, recording: Recording) -> str:
    """Content hash; folders of images count by what is in them."""
    return digest(
        {
            "model": model.fingerprint(),
            "compute": str(model.compute),
            "device": model.device.type,
            **asdict(recording),
            **contents(recording),
        }
    )


def contents(recording: Recording) -> dict[str, str]:
    """What lies in the folders that a recording reads, as hashes."""
    found = {key: _content(folder) for key in ("images", "retain_images") if (folder := getattr(recording, key))}
    if recording.generator is not None:
        found["generator"] = one_step_edit(recording.generator).digest()
    return found


def obtain(model: DiffusionModel, recording: Recording, *, cache: Path | None = None, chunk: int = 16) -> Bank:
    """Load a recording from the cache, or make it; an interrupted one continues with the first missing part.

    Args:
        chunk: walks recorded at once. Parts are written when complete, so a killed process loses at most one.
    """
    folder = (cache or cache_folder()) / "banks" / bank_key(model, recording)
    folder_exists(folder)
    dealt = recording.deal()
    starts = range(0, len(dealt), chunk)
    ask = record if recording.generator is None else drawn
    parts = []
    for start in tqdm(starts, desc="recording", unit="part", disable=all(_part(folder, s).exists() for s in starts)):
        some = dealt[start : start + chunk]
        parts.append(kept(_part(folder, start), partial(ask, model, recording, some)))
    parts = parts or [{key: values[0] for key, values in _empty(model).items()}]
    for images, first, count in (
        (recording.images, 0, len(recording.pairs)),
        (recording.retain_images, len(recording.pairs), len(recording.retain)),
    ):
        if images:
            ask_images = partial(encoded, model, Path(images), first, count)
            parts.append(kept(folder / f"images-{first:05d}.safetensors", ask_images))
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


@torch.no_grad()
def drawn(model: DiffusionModel, recording: Recording, dealt: list[tuple[int, int]]) -> dict[str, Tensor]:
    """Rows at `steps` noise levels of what the one-step generator draws, one from each equal part of the schedule."""
    edit = one_step_edit(recording.generator or "")
    pair = torch.tensor([index for _, index in dealt])
    texts, others = zip(*(recording.sentence(index) for _, index in dealt), strict=True)
    cond, uncond = model.encode(texts), model.encode(others)
    noise = model.noise([seed for seed, _ in dealt])
    with applied(model, [edit]):
        x_0 = model.one_step(noise, cond, int(edit.info.fields["start"]))
    rows = _empty(model)
    generator = torch.Generator().manual_seed(dealt[0][0])
    for part in range(recording.steps):
        t = ((part + torch.rand(len(dealt), generator=generator)) * 1000 / recording.steps).long()
        x_t = model.noised(x_0, torch.randn(x_0.shape, generator=generator).to(x_0), t.to(model.device))
        both = [model.predict(x_t, t.to(model.device), text) for text in (cond, uncond)]
        for key, value in zip(("x_t", "t", "pair", "eps_cond", "eps_uncond"), (x_t, t, pair, *both), strict=True):
            rows[key].append(value if value.dtype == torch.int64 else value.to("cpu", torch.float16))
    rows["x_0"].append(x_0.to("cpu", torch.float16))
    rows["x_0_pair"].append(pair)
    return {key: torch.cat(values) for key, values in rows.items()}


def one_step_edit(folder: str) -> Edit:
    """The edit whose generator draws.

    Raises:
        UserError: no folder, or an edit of another kind.
    """
    if not folder:
        raise UserError("--generator needs the folder of an SFD edit; make one with: erasure erase --method sfd.")
    edit = Edit.load(folder)
    if edit.info.product != "one-step":
        raise UserError(f"--generator {folder} is an edit by {edit.info.method}, no one-step generator; give an SFD edit.")
    return edit


def encoded(model: DiffusionModel, folder: Path, first: int, count: int) -> dict[str, Tensor]:
    """Latents of a folder of real images, dealt round robin to `count` sentences from index `first` on."""
    rows = _empty(model)
    scale, (_, height, width) = 2 ** (len(model.pipe.vae.config.block_out_channels) - 1), model.latent_shape
    for i, path in enumerate(image_files(folder)):
        picture = np.asarray(opened(path).resize((scale * width, scale * height), Image.Resampling.LANCZOS), np.float32) / 255
        rows["x_0"].append(model.encode_images(torch.from_numpy(picture).permute(2, 0, 1)[None]).to("cpu", torch.float16))
        rows["x_0_pair"].append(torch.tensor([first + i % count]))
    return {key: torch.cat(values) for key, values in rows.items()}


def remembered(model: DiffusionModel, key: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors found in the cache under what decides them, or made and kept there; damaged ones are named and made anew."""
    place = digest({"model": model.fingerprint(), "compute": str(model.compute), "device": model.device.type, **key})
    return kept(cache_folder() / "tensors" / f"{place}.safetensors", make)


def _empty(model: DiffusionModel) -> dict[str, list[Tensor]]:
    """Nothing recorded yet, in the shapes and dtypes of a bank."""
    none, index = torch.empty(0, *model.latent_shape, dtype=torch.float16), torch.empty(0, dtype=torch.int64)
    kinds = {"x_t": none, "t": index, "pair": index, "eps_cond": none, "eps_uncond": none, "x_0": none, "x_0_pair": index}
    return {key: [value] for key, value in kinds.items()}


def _content(folder: str) -> str:
    """Hash of a folder of images. One that is not read as it was before EXIF, 16 bits and transparency counted has another."""
    files = image_files(Path(folder))
    return digest([hashlib.sha256(path.read_bytes()).hexdigest() + ("" if plain(path) else ", as seen") for path in files])


def _part(folder: Path, start: int) -> Path:
    return folder / f"walks-{start:05d}.safetensors"
