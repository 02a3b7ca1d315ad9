"""From what a user calls a model (pocket, a hub id, a folder, one .safetensors file) to a DiffusionModel."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from erasure.errors import UserError
from erasure.families.base import Attention, DiffusionModel, Precision
from erasure.families.stable_diffusion import StableDiffusion

POCKET = Path(__file__).parent / "pocket" / "weights"
FAMILIES = {"StableDiffusionPipeline": StableDiffusion}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_model(
    source: str = "pocket", *, device: str = "auto", precision: Precision = "auto", attention: Attention = "auto"
) -> DiffusionModel:
    """Load a pipeline with its safety checker off.

    Args:
        source: "pocket", a hub id such as "stable-diffusion-v1-5/stable-diffusion-v1-5", a diffusers folder, or one .safetensors file.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        precision: what to compute in; weights are fp32 on a CPU and fp16 on a GPU, trained ones always fp32.

    Raises:
        UserError: a missing folder, a folder that is no pipeline, a broken file, an unreachable hub, a family without support.
    """
    if any(len(part) > 255 for part in Path(source).parts):
        raise UserError(f"no model at {source!r}: a name has at most 255 letters.")
    place = resolve_device(device)
    weights = torch.float16 if place.type == "cuda" else torch.float32
    with _quietly():
        pipe = _open(str(POCKET) if source == "pocket" else source, source, weights)
    name = type(pipe).__name__
    if name not in FAMILIES:
        raise UserError(f"{source} is a {name}; supported are {', '.join(FAMILIES)}.")
    pipe.set_progress_bar_config(disable=True)
    return FAMILIES[name](pipe.to(place), source, precision, attention)


def _open(path: str, source: str, dtype: torch.dtype) -> Any:
    """The pipeline behind a path or hub id; safetensors only, no pickle is ever read."""
    folder = Path(path).expanduser()
    options = {"safety_checker": None, "requires_safety_checker": False}
    try:
        if folder.is_file():
            if folder.suffix != ".safetensors":
                raise UserError(
                    f"{source} is no .safetensors file; pickled checkpoints (.ckpt, .bin, .pt) are never loaded, convert it first."
                )
            return StableDiffusionPipeline.from_single_file(str(folder), torch_dtype=dtype, **options)
        if folder.is_dir():
            if not (folder / "model_index.json").is_file():
                raise UserError(f"{source} is no diffusers pipeline: it has no model_index.json.")
            return DiffusionPipeline.from_pretrained(str(folder), dtype=dtype, use_safetensors=True, local_files_only=True, **options)
        if not HUB_ID.fullmatch(path):
            raise UserError(f"no model at {source!r}: no such folder or file, and no hub id (org/name).")
        return DiffusionPipeline.from_pretrained(path, dtype=dtype, use_safetensors=True, **options)
    except UserError:
        raise
    except SafetensorError as error:
        raise UserError(f"{source} holds a broken safetensors file ({error}); copy or download it again.") from error
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{source} {unread(folder)}: {first_line(error)}") from error


def unread(folder: Path) -> str:
    """Why nothing can be read behind a path or hub id, as the rest of a sentence."""
    if folder.is_file():
        return "cannot be read as one file (its layout is looked up on the hub; without network convert it to a diffusers folder first)"
    if folder.is_dir():
        return "cannot be read as a pipeline"
    return "is not in the local cache, and the hub cannot be reached or has no safetensors of it"


@contextmanager
def _quietly() -> Iterator[None]:
    """Loading takes seconds; its nested progress bars and warnings would bury the one line that matters."""
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity)
        diffusers_logging.enable_progress_bar()
        transformers_logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def resolve_device(device: str) -> torch.device:
    """A device that this machine has and the program computes on.

    Raises:
        UserError: no such device here, or one that holds no values, such as "meta".
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N.") from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(place.type)
    if count is None:
        raise UserError(f"device {device!r} is not one to compute on; use auto, cpu, cuda or cuda:N.")
    if count == 0:
        raise UserError(f"device {device!r} asked for, but this machine has no {place.type.upper()} device; use --device cpu.")
    if (place.index or 0) >= count:
        raise UserError(f"device {device!r} asked for, but of {place.type} this machine has {count}, counted from {place.type}:0.")
    return place
