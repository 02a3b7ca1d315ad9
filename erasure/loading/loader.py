"""Load a DiffusionModel from pocket, a hub id, a folder or one .safetensors file."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import diffusers
import torch
import transformers
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging
from typing_extensions import Doc

from erasure.config.arguments import check_arguments
from erasure.config.choices import Attention, Count, Offload, Precision, VaeMode
from erasure.config.launcher import local_rank, process_count
from erasure.errors import AssumptionWarning, UserError, is_out_of_memory
from erasure.families.base import DiffusionModel
from erasure.families.pipelines import SINGLE_FILE_PIPELINES
from erasure.families.placement import TILE_PIXELS, place, set_vae_mode
from erasure.families.resolution import resolution_of, set_resolution
from erasure.families.supported_models import check_configs, check_index, spec_of_pipeline
from erasure.loading.model_files import find_weights, resolve_folder
from erasure.loading.model_source import check_model_source
from erasure.loading.single_file import open_single_file
from erasure.pocket.flow import build_pipeline
from erasure.storage.run import read_json

POCKET_FOLDER = Path(__file__).parent.parent / "pocket" / "weights"
FLOW_FOLDER = POCKET_FOLDER.parent / "flow_weights"
OMITTED_COMPONENTS: dict[str, Any] = {
    "safety_checker": None,
    "requires_safety_checker": False,
    "feature_extractor": None,
    "image_encoder": None,
}


ModelOrSource = Annotated[DiffusionModel | str | Path, Doc("what erasure.load_model returns, or a source such as 'pocket'")]


@check_arguments
def load_model(
    source: str | Path = "pocket",
    *,
    device: str | torch.device = "auto",
    dtype: Precision = "auto",
    attention: Attention = "auto",
    offload: Offload = "auto",
    vae: VaeMode = "auto",
    images_at_once: Count | None = None,
    resolution: Count | None = None,
) -> DiffusionModel:
    """Load a model with its safety checker off.

    Args:
        source: "pocket" or "pocket-flow", a hub id such as "stable-diffusion-v1-5/stable-diffusion-v1-5" (a subfolder may follow), a
            diffusers folder, or one .safetensors file.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        dtype: of the computation; weights are fp32 on a CPU and fp16 on a GPU (FLUX: bf16), trained ones always fp32.
        attention: the attention implementation.
        offload: which components wait in main memory while others compute: "none", "text" (text encoders and VAE) or "all"; "auto" decides
            by their sizes and the card's.
        vae: how latents become images: "whole", "sliced" (one image at a time; "auto" on a GPU) or "tiled", which blends large images from
            tiles and changes them a little.
        images_at_once: generated together; None means a number for the size of the images, and less where a GPU has too little memory.
        resolution: height and width of the images in pixels; None means the model's own.

    Raises:
        UserError: an unknown device, an offload without a GPU, a missing folder, a folder without a pipeline, a broken file, an unreachable
            hub, a resolution that the model cannot make, or, before its weights are loaded, a model that is not supported.
    """
    source = str(source)
    check_model_source(source)
    torch_device = resolve_device(device)
    with _quiet_loading():
        pipe = _open_pipeline(source, torch_device)
        spec = spec_of_pipeline(pipe)
        place(pipe, spec.denoiser, torch_device, offload)
        model = spec.open(pipe, source, precision=dtype, attention=attention)
    set_vae_mode(pipe.vae, vae, torch_device)
    model.images_at_once = images_at_once
    if resolution is not None:
        set_resolution(model, resolution)
    if vae == "tiled" and resolution_of(model) <= TILE_PIXELS:
        AssumptionWarning.warn(f"--vae tiled changes nothing at {resolution_of(model)} pixels: a tile has {TILE_PIXELS}.")
    pipe.set_progress_bar_config(disable=True)
    return model


def resolve_model(model: ModelOrSource) -> DiffusionModel:
    """Return the model, loaded with the defaults of `load_model` where a source is given; every function that takes either calls this."""
    return model if isinstance(model, DiffusionModel) else load_model(model)


def _open_pipeline(source: str, device: torch.device) -> Any:
    """Open the pipeline behind a model source; safetensors only, pickles are never loaded."""
    path = str(POCKET_FOLDER) if source == "pocket" else source
    local_path = Path(path).expanduser()
    try:
        if source == "pocket-flow":
            return open_pocket_flow(FLOW_FOLDER, torch.float16 if device.type == "cuda" else torch.float32)
        if local_path.is_file():
            return _open_file(local_path, source, torch.float16 if device.type == "cuda" else torch.float32)
        return _open_folder(path, source, device)
    except UserError:
        raise
    except SafetensorError as error:
        raise UserError(f"{source} holds a broken safetensors file ({error}); copy or download it again.") from error
    # what diffusers, transformers and torch raise for configs and weights that do not fit together
    except (OSError, ValueError, LookupError, AttributeError, TypeError, NotImplementedError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{source} {describe_unreadable(local_path)}: {first_line_of(error)}") from error


def _open_file(file: Path, source: str, dtype: torch.dtype) -> Any:
    """Open a pipeline in one .safetensors file."""
    if file.suffix != ".safetensors":
        raise UserError(f"{source} is not a .safetensors file; pickled checkpoints (.ckpt, .bin, .pt) are never loaded, convert it first.")
    return open_single_file(file, source, SINGLE_FILE_PIPELINES, dtype)


def open_pocket_flow(transformer_folder: Path, dtype: torch.dtype) -> Any:
    """Open pocket-flow: its transformer beside pocket's other components."""
    transformer = diffusers.SD3Transformer2DModel.from_pretrained(str(transformer_folder), use_safetensors=True, local_files_only=True)
    return build_pipeline(POCKET_FOLDER, transformer, dtype)


def _open_folder(path: str, source: str, device: torch.device) -> Any:
    """Open a diffusers folder, local or on the hub: first its index, then its configs, and its weights only if it is supported."""
    folder = resolve_folder(path, ("model_index.json",))
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"{source} is not a diffusers pipeline: it has no model_index.json; "
            "give the folder that holds it, or one .safetensors checkpoint."
        )
    index = read_index(folder, source)
    spec = check_index(index, source)
    check_configs(resolve_folder(path, spec.config_files), spec, source)
    dtype = getattr(torch, spec.gpu_dtype) if device.type == "cuda" else torch.float32
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    parts: dict[str, Any] = {part: None for part in spec.optional if (index.get(part) or [None])[0] is None}
    for part, class_name in spec.networks.items():
        if part not in parts:
            variant = find_weights(path, f"{part}/")[1]
            network = network_class(class_name).from_pretrained
            loaded = network(str(folder), subfolder=part, variant=variant, output_loading_info=True, **options)
            parts[part] = _check_complete(loaded, f"the {part} of {source}")
    pipeline_class = getattr(diffusers, index["_class_name"])
    omitted = {key: value for key, value in OMITTED_COMPONENTS.items() if key in inspect.signature(pipeline_class.__init__).parameters}
    return pipeline_class.from_pretrained(str(folder), **parts, **options, **omitted)


def network_class(name: str) -> Any:
    """Return a class of diffusers or transformers."""
    return getattr(diffusers, name, None) or getattr(transformers, name)


def _check_complete(loaded: Any, description: str) -> Any:
    """Check that all values of a network came from its files; the libraries would initialize the others at random.

    Raises:
        UserError: parameters that the files lack.
    """
    network, info = loaded
    if missing := sorted(set(info["missing_keys"]) & network.state_dict().keys()):
        raise UserError(f"{description} lacks {len(missing)} parameters in its files, such as {missing[0]!r}; copy or download it again.")
    return network


def read_index(folder: Path, source: str) -> dict[str, Any]:
    """Return the content of model_index.json.

    Raises:
        UserError: it cannot be read or is not a JSON object.
    """
    index = read_json(folder / "model_index.json")
    if not isinstance(index, dict):
        raise UserError(f"model_index.json of {source} is not a JSON object.")
    return index


def describe_unreadable(folder: Path) -> str:
    """Return what a path or hub id cannot be read as, as the rest of a sentence."""
    if folder.is_file():
        return "cannot be read as one file"
    return "cannot be read as a pipeline"


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Silence the libraries while a model is loaded, which takes seconds; progress bars and warnings would hide the line that matters."""
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


def first_line_of(error: Exception) -> str:
    """Return the first line of an error's message, at most 200 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def resolve_device(device: str | torch.device) -> torch.device:
    """Return a device of this machine on which the program can compute.

    Raises:
        UserError: no such device here, or one that does not compute, such as "meta".
    """
    if device == "auto":
        own_gpu = f"cuda:{local_rank()}" if process_count() > 1 else "cuda"  # of several processes, one each
        return torch.device(own_gpu if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N.") from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(resolved.type)
    if count is None:
        raise UserError(f"device {device!r} is not one to compute on; use auto, cpu, cuda or cuda:N.")
    if count == 0:
        raise UserError(f"device {device!r} asked for, but this machine has no {resolved.type.upper()} device; use --device cpu.")
    if (resolved.index or 0) >= count:
        raise UserError(f"device {device!r} asked for, but of {resolved.type} this machine has {count}, counted from {resolved.type}:0.")
    return resolved
