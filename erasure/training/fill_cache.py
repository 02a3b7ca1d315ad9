"""Fill a teacher cache from trajectories of the frozen model, folders of images or a one-step generator; stored by content hash."""

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

from erasure.edits import Edit, apply_edits
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.batching import images_at_once
from erasure.storage.claims import claim_in_turn
from erasure.storage.files import ensure_folder
from erasure.storage.run import cache_folder, hash_record
from erasure.storage.tensor_files import load_or_make
from erasure.training.teacher_cache import TeacherCache, TeacherQuery
from erasure.user_images import is_plain_image, list_images, load_image

ROW_COLUMNS = ("x_t", "t", "prompt_index", "pred_cond", "pred_neutral")  # columns of TeacherCache with one entry per row


def teacher_cache_key(model: DiffusionModel, query: TeacherQuery) -> str:
    """Return the content hash of a query on a model; folders of images count by their contents."""
    return hash_record(
        {
            "model": model.fingerprint(),
            **model.compute_key(),
            "columns": ROW_COLUMNS,
            **asdict(query),
            **source_digests(query),
        }
    )


def source_digests(query: TeacherQuery) -> dict[str, str]:
    """Return hashes of the contents of the folders that a query reads.

    Raises:
        UserError: A folder is missing, or does not hold what the query needs.
    """
    digests = {key: _hash_images(folder) for key in ("images", "retain_images") if (folder := getattr(query, key))}
    if query.generator is not None:
        digests["generator"] = load_generator(query.generator).digest()
    return digests


def load_or_fill(model: DiffusionModel, query: TeacherQuery, *, root: Path | None = None, chunk_size: int | None = None) -> TeacherCache:
    """Load the result of a query from disk, or compute it; an interrupted computation continues with the first missing part.

    Of several processes that want the same result, each computes some of the parts.

    Args:
        root: the cache folder; None means the default one.
        chunk_size: trajectories computed at once; None means `trajectories_at_once`. Parts are written when complete, so a killed
            process loses at most one.
    """
    folder = (root or cache_folder()) / "teacher-caches" / teacher_cache_key(model, query)
    ensure_folder(folder)
    trajectory_starts, chunk_size = query.trajectory_starts(), chunk_size or trajectories_at_once(model)
    offsets = range(0, len(trajectory_starts), chunk_size)
    fill = fill_from_trajectories if query.generator is None else fill_from_generator
    is_filled = all(_part_path(folder, offset).exists() for offset in offsets)
    turns = claim_in_turn(offsets, lambda offset: None if _part_path(folder, offset).exists() else f"{folder.name}-{offset:05d}")
    by_offset: dict[int, dict[str, Tensor]] = {}
    for offset in tqdm(turns, desc="teacher cache", unit="part", total=len(offsets), disable=is_filled):
        chunk_starts = trajectory_starts[offset : offset + chunk_size]
        by_offset[offset] = load_or_make(_part_path(folder, offset), partial(fill, model, query, chunk_starts))
    parts = [by_offset[offset] for offset in offsets]
    parts = parts or [{key: values[0] for key, values in _empty_rows(model).items()}]
    for images, first_index, count in (
        (query.images, 0, len(query.prompt_pairs)),
        (query.retain_images, len(query.prompt_pairs), len(query.retain_prompts)),
    ):
        if images:
            fill_images = partial(fill_from_images, model, Path(images), first_index, count)
            parts.append(load_or_make(folder / f"images-{first_index:05d}.safetensors", fill_images))
    return join_parts(query, parts)


def join_parts(query: TeacherQuery, parts: list[dict[str, Tensor]]) -> TeacherCache:
    """Return the cache of a query from its parts, each of which holds its trajectories step by step."""
    columns = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    indices, first = [], 0
    for part in parts:
        count = len(part["x_0"])
        indices.append(first + torch.arange(count).repeat(len(part["t"]) // max(count, 1)))
        first += count
    return TeacherCache(query, **columns, latent_index=torch.cat(indices))


def trajectories_at_once(model: DiffusionModel) -> int:
    """Return how many trajectories are sampled at once: fewer above 768 x 768 pixels, where 16 need more memory than most cards have."""
    return images_at_once(model, 16 if model.latent_shape[-1] * model.pixels_per_latent <= 768 else 4)


@torch.no_grad()
def fill_from_trajectories(model: DiffusionModel, query: TeacherQuery, starts: list[tuple[int, int]]) -> dict[str, Tensor]:
    """Sample trajectories of the frozen model: a row for every trajectory and step, a final latent for every trajectory.

    Args:
        starts: (seed, prompt index) of every trajectory.
    """
    prompt_index = torch.tensor([index for _, index in starts])
    prompt_pairs = [query.prompt_pair(index) for _, index in starts]
    cond = model.encode([concept_prompt for concept_prompt, _ in prompt_pairs])
    empty_cond = model.encode_for_guidance([""]).expand(len(starts))
    # classifier-free guidance predicts without a prompt anyway
    is_asked = [query.store == "predictions" and (bool(neutral) or model.forwards_per_step == 1) for _, neutral in prompt_pairs]
    neutral_rows = torch.tensor(is_asked).nonzero().flatten()
    neutral_cond = model.encode_for_guidance([prompt_pairs[i][1] for i in neutral_rows]) if len(neutral_rows) else None
    rows = _empty_rows(model)
    noise = model.sample_noise([seed for seed, _ in starts])
    for step in model.trajectory(noise, cond, empty_cond, query.steps, query.guidance):
        last_latents = step.x_next
        if query.store == "latents":
            continue
        timesteps = torch.full((len(starts),), step.t)
        pred_neutral = torch.empty_like(step.x_t) if step.pred_uncond is None else step.pred_uncond.clone()
        if neutral_cond is not None:
            pred_neutral[neutral_rows] = model.predict(step.x_t[neutral_rows], timesteps[neutral_rows].to(model.device), neutral_cond)
        for key, value in zip(ROW_COLUMNS, (step.x_t, timesteps, prompt_index, step.pred_cond, pred_neutral), strict=True):
            rows[key].append(_to_stored(key, value))
    rows["x_0"].append(last_latents.to("cpu", torch.float16))
    rows["latent_prompt_index"].append(prompt_index)
    return {key: torch.cat(values) for key, values in rows.items()}


@torch.no_grad()
def fill_from_generator(model: DiffusionModel, query: TeacherQuery, starts: list[tuple[int, int]]) -> dict[str, Tensor]:
    """Noise images of the one-step generator at `steps` levels, one from each equal part of the schedule; a row for every level.

    Args:
        starts: (seed, prompt index) of every image.
    """
    edit = load_generator(query.generator or "")
    prompt_index = torch.tensor([index for _, index in starts])
    prompts, neutral_prompts = zip(*(query.prompt_pair(index) for _, index in starts), strict=True)
    cond, neutral_cond = model.encode(prompts), model.encode_for_guidance(neutral_prompts)
    noise = model.sample_noise([seed for seed, _ in starts])
    with apply_edits(model, [edit]):
        x_0 = model.sample_one_step(noise, cond, int(edit.info.fields["init_timestep"]))
    rows = _empty_rows(model)
    generator = torch.Generator().manual_seed(starts[0][0])
    for level in range(query.steps):
        t = ((level + torch.rand(len(starts), generator=generator)) * model.num_timesteps / query.steps).long()
        x_t = model.add_noise(x_0, torch.randn(x_0.shape, generator=generator).to(x_0), t.to(model.device))
        predictions = [model.predict(x_t, t.to(model.device), prompt_cond) for prompt_cond in (cond, neutral_cond)]
        for key, value in zip(ROW_COLUMNS, (x_t, t, prompt_index, *predictions), strict=True):
            rows[key].append(_to_stored(key, value))
    rows["x_0"].append(x_0.to("cpu", torch.float16))
    rows["latent_prompt_index"].append(prompt_index)
    return {key: torch.cat(values) for key, values in rows.items()}


def load_generator(folder: str) -> Edit:
    """Return the edit that holds a one-step generator.

    Raises:
        UserError: There is no folder, or it holds another kind of edit.
    """
    if not folder:
        raise UserError("--generator needs the folder of an SFD edit; make one with: erasure erase --method sfd.")
    edit = Edit.load(folder)
    if edit.info.product != "one-step":
        raise UserError(f"--generator {folder} is an edit by {edit.info.method}, not a one-step generator; give an SFD edit.")
    return edit


def fill_from_images(model: DiffusionModel, folder: Path, first_index: int, prompt_count: int) -> dict[str, Tensor]:
    """Encode a folder of n real images, dealt round robin to `prompt_count` prompts from index `first_index` on: latents (n, C, h, w).

    Raises:
        UserError: The folder is missing or has no images, or one of them is broken.
    """
    rows = _empty_rows(model)
    scale, (_, height, width) = model.pixels_per_latent, model.latent_shape
    for i, path in enumerate(list_images(folder)):
        pixels = np.asarray(load_image(path).resize((scale * width, scale * height), Image.Resampling.LANCZOS), np.float32) / 255
        rows["x_0"].append(model.encode_images(torch.from_numpy(pixels).permute(2, 0, 1)[None]).to("cpu", torch.float16))
        rows["latent_prompt_index"].append(torch.tensor([first_index + i % prompt_count]))
    return {key: torch.cat(values) for key, values in rows.items()}


def load_or_compute(model: DiffusionModel, key: dict[str, Any], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors from the cache, or compute and store them; damaged ones are reported and computed again.

    Args:
        key: everything besides the model that decides the tensors.
    """
    name = hash_record({"model": model.fingerprint(), **model.compute_key(), **key})
    return load_or_make(cache_folder() / "tensors" / f"{name}.safetensors", compute)


def _empty_rows(model: DiffusionModel) -> dict[str, list[Tensor]]:
    """Return empty columns in the shapes and dtypes of a teacher cache."""
    no_latents, no_indices = torch.empty(0, *model.latent_shape, dtype=torch.float16), torch.empty(0, dtype=torch.int64)
    columns = {
        "x_t": no_latents,
        "t": model.random_times(0).cpu(),
        "prompt_index": no_indices,
        "pred_cond": no_latents,
        "pred_neutral": no_latents,
        "x_0": no_latents,
        "latent_prompt_index": no_indices,
    }
    return {key: [value] for key, value in columns.items()}


def _to_stored(key: str, value: Tensor) -> Tensor:
    """Return a column's values as a cache stores them: latents and predictions in fp16, indices and times as they are."""
    return value.cpu() if key in ("t", "prompt_index") else value.to("cpu", torch.float16)


def _hash_images(folder: str) -> str:
    """Return a hash of a folder of images.

    Images with EXIF rotation, 16 bits or transparency are marked: earlier versions read them differently, so their hash must differ.
    """
    images = list_images(Path(folder))
    return hash_record([hashlib.sha256(path.read_bytes()).hexdigest() + ("" if is_plain_image(path) else ", as seen") for path in images])


def _part_path(folder: Path, offset: int) -> Path:
    return folder / f"trajectories-{offset:05d}.safetensors"
