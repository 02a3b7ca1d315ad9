"""Open one .safetensors file as a pipeline, offline: identify the file, choose its configurations, and check that they fit.

diffusers identifies a file by a few tensors and downloads the configurations from the hub. Here they come from the file itself if this
project wrote it (see erasure.loading.pipeline_configs), otherwise from the package. Every name and shape is compared with them before a
weight is read, so that a file of other sizes is refused instead of being loaded in part. Sizes are not guessed from shapes, because shapes
do not show the number of attention heads.
"""

import inspect
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS, infer_diffusers_model_type
from pydantic import ValidationError
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from erasure.errors import UserError
from erasure.families.parameters import canonical_name
from erasure.families.pipelines import PIPELINES, SINGLE_FILE_MODELS
from erasure.families.supported_models import SCHEDULERS
from erasure.loading.original_layout import CLIP_PREFIX, OPEN_CLIP_PREFIX, TEXT_PREFIXES, UNET_PREFIX, VAE_PREFIX, places_of
from erasure.loading.pipeline_configs import PipelineConfigs, load_released_configs
from erasure.loading.prediction_type import ZERO_SNR_MARKER, find_prediction_type
from erasure.loading.safetensors_header import SafetensorsHeader, read_header

CONFIGS_KEY = "erasure.configs"  # of a file's metadata
GENERATIONS = {  # the released model for diffusers' name of a checkpoint type and a prediction type
    "v1": {"epsilon": "sd15", "v_prediction": "sd15"},
    "v2": {"epsilon": "sd21-base", "v_prediction": "sd21"},
    "xl_base": {"epsilon": "sdxl", "v_prediction": "sdxl"},
}
NETWORK_CLASSES: dict[str, Any] = {
    "UNet2DConditionModel": diffusers.UNet2DConditionModel,
    "AutoencoderKL": diffusers.AutoencoderKL,
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
}
OMITTED = {  # arguments of the pipeline classes
    "safety_checker": None,
    "requires_safety_checker": False,
    "add_watermarker": False,
}
PIPELINE_CLASSES = {  # the pipeline class for diffusers' name of a checkpoint type
    "xl_refiner": "StableDiffusionXLImg2ImgPipeline",
    "xl_inpaint": "StableDiffusionXLInpaintPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
    "inpainting_v2": "StableDiffusionInpaintPipeline",
    "instruct-pix2pix": "StableDiffusionInstructPix2PixPipeline",
    "upscale": "StableDiffusionUpscalePipeline",
    "sd3": "StableDiffusion3Pipeline",
    "sd35_medium": "StableDiffusion3Pipeline",
    "sd35_large": "StableDiffusion3Pipeline",
    "flux-dev": "FluxPipeline",
    "flux-schnell": "FluxPipeline",
}
# settings that are counts of modules or timesteps; damaged ones could need more memory than a machine has
COUNT_SETTINGS = (
    ("unet", "layers_per_block"),
    ("unet", "transformer_layers_per_block"),
    ("vae", "layers_per_block"),
    ("text_encoder", "num_hidden_layers"),
    ("text_encoder_2", "num_hidden_layers"),
    ("scheduler", "num_train_timesteps"),
)
LORA_KEY = re.compile(r"\.lora_|^lora_|\.lora\.|lora_linear_layer|\.hada_|\.lokr_|\.dora_scale|\.alpha$")
# prefixes of names in a file that is not a checkpoint -> what it is and what to do with it; the first match counts
NOT_CHECKPOINTS = {
    ("unet.", "text_encoder."): "the tensors of an edit or a state dict, not a model; `erasure audit` takes it, beside its base as --model",
    ("down_blocks.", "input_blocks."): "a UNet alone; a model needs its VAE and text encoder as well",
    ("text_model.", "encoder.layers.", "embeddings.", "transformer.resblocks."): "a text encoder alone; a model needs UNet and VAE as well",
    ("decoder.", "encoder."): "a VAE alone; a model needs its UNet and text encoder as well",
    ("emb_params", "<"): "a textual inversion, not a model; the attack learned_embedding takes it",
}


def open_single_file(path: Path, source: str, supported: Collection[str], dtype: torch.dtype) -> Any:
    """Open a checkpoint in the original layout of Stable Diffusion or SDXL as a pipeline with weights in `dtype`.

    Args:
        source: the name that the user gave, for messages.
        supported: names of the pipeline classes that can be used.

    Raises:
        UserError: a file that holds something else, a model that is not supported, or sizes of no known configuration.
        SafetensorError: a broken file.
    """
    header = read_header(path)
    configs = identify_configs(header, source)
    if configs.pipeline not in supported:
        raise UserError(unsupported_file(source, configs.pipeline))
    check_shapes(header, configs, source)
    with _explain_build_errors(source):
        components = {**_build_tokenizers(configs), "scheduler": _build_scheduler(configs)}
    options = {**OMITTED, **(configs.settings.model_dump() if configs.settings else {})}
    pipeline_class = getattr(diffusers, configs.pipeline)
    accepted = inspect.signature(pipeline_class).parameters
    options = {name: value for name, value in options.items() if name in accepted}
    with configs.temporary_folder() as folder:
        return pipeline_class.from_single_file(
            str(path), config=str(folder), local_files_only=True, torch_dtype=dtype, **components, **options
        )


def _build_tokenizers(configs: PipelineConfigs) -> dict[str, Any]:
    """Build the tokenizers; raise ValueError where one has ids that its text encoder has no embedding for."""
    tokenizers = {part: config.build() for part, config in configs.tokenizers.items()}
    for part, tokenizer in tokenizers.items():
        rows = configs.networks[part.replace("tokenizer", "text_encoder")]["vocab_size"]
        if (words := max(tokenizer.get_vocab().values()) + 1) > rows:
            raise ValueError(f"the {part} has {words} words, its text encoder {rows}")
    return tokenizers


def _build_scheduler(configs: PipelineConfigs) -> Any:
    """Build the scheduler; raise ValueError for a class that is not one of those that folders may name."""
    name = configs.scheduler.get("_class_name", "DDIMScheduler")
    if name not in SCHEDULERS:
        raise ValueError(f"the scheduler is {name!r:.40}")
    return getattr(diffusers, name).from_config({key: value for key, value in configs.scheduler.items() if key != "_class_name"})


def identify_configs(header: SafetensorsHeader, source: str) -> PipelineConfigs:
    """Return the configurations of a checkpoint: its own if it has them, otherwise those of the released model with this layout.

    Raises:
        UserError: not a checkpoint of a model with known configurations; the message says what it is instead.
    """
    if CONFIGS_KEY in header.metadata:
        try:
            return PipelineConfigs.model_validate_json(header.metadata[CONFIGS_KEY])
        except ValidationError as error:
            raise UserError(
                f"{source} carries configurations that cannot be read ({error.errors()[0]['msg']}); export it again."
            ) from error
    model_type = _infer_model_type(header, source)
    if model_type in PIPELINE_CLASSES:
        raise UserError(unsupported_file(source, PIPELINE_CLASSES[model_type]))
    if model_type not in GENERATIONS:
        pretrained = DIFFUSERS_DEFAULT_PIPELINE_PATHS[model_type]["pretrained_model_name_or_path"]
        raise UserError(f"{source} is laid out like {pretrained}; supported are {SINGLE_FILE_MODELS}.")
    if not all(header.has_prefix(part) for part in (UNET_PREFIX, VAE_PREFIX)) or not header.has_prefix(*TEXT_PREFIXES):
        raise UserError(f"{source} holds {_describe_contents(header)}.")
    prediction = find_prediction_type(header, source, generation=model_type)
    configs = load_released_configs(GENERATIONS[model_type][prediction])
    zero_snr = {"rescale_betas_zero_snr": True} if ZERO_SNR_MARKER in header.shapes else {}
    return configs.model_copy(update={"scheduler": {**configs.scheduler, "prediction_type": prediction, **zero_snr}})


def unsupported_file(source: str, pipeline: str) -> str:
    """Return why a checkpoint of another pipeline is not opened, and what to do where its folder would be."""
    message = f"{source} is a {pipeline} in one file; of such files, {SINGLE_FILE_MODELS} are opened."
    if pipeline in PIPELINES:
        message += f" Make a folder of it: diffusers.{pipeline}.from_single_file(FILE).save_pretrained(FOLDER)."
    return message


def _infer_model_type(header: SafetensorsHeader, source: str) -> str:
    """Return diffusers' name for the layout of a checkpoint; "v1" also for an unknown one."""
    try:
        model_type: str = infer_diffusers_model_type({name: torch.empty(shape, device="meta") for name, shape in header.shapes.items()})
    except (LookupError, UnboundLocalError) as error:  # keys of two layouts at once, or keys of one with other shapes
        raise UserError(f"{source} holds no model in a layout that is known.") from error
    return model_type


def _describe_contents(header: SafetensorsHeader) -> str:
    """Return what a file that is not a complete model holds, as the rest of a sentence."""
    if any(LORA_KEY.search(name) for name in header.shapes):
        return "a LoRA, not a model; audit it with `erasure audit FILE --model BASE`"
    for prefixes, description in NOT_CHECKPOINTS.items():
        if any(name.startswith(prefixes) for name in header.shapes):
            return description
    parts = {
        "a UNet": header.has_prefix(UNET_PREFIX),
        "a VAE": header.has_prefix(VAE_PREFIX),
        "a text encoder": header.has_prefix(*TEXT_PREFIXES),
    }
    present = [part for part, is_present in parts.items() if is_present]
    missing = [part for part, is_present in parts.items() if not is_present]
    if present:
        return f"{' and '.join(present)} but not {' or '.join(missing)}; a model needs all three"
    return f"no model in a layout that is known: its first tensor is {next(iter(header.shapes), 'missing')!r}"


def check_shapes(header: SafetensorsHeader, configs: PipelineConfigs, source: str) -> None:
    """Check every name and shape of UNet, VAE and text encoder against the configurations.

    Raises:
        UserError: missing or unknown tensors, or other shapes; the message names the first. Configurations that build no model.
    """
    with _explain_build_errors(source):
        for part, name in COUNT_SETTINGS:
            for count in _list_counts(getattr(configs, part).get(name, 1) if getattr(configs, part) else 1):
                if not isinstance(count, int) or count > max(len(header.shapes), 1000):
                    raise ValueError(f"{part}.{name} is {str(count)[:40]}")
        with init_empty_weights():
            parts = {part: _build_network(PIPELINES[configs.pipeline].networks[part], config) for part, config in configs.networks.items()}
    shapes = {part: {canonical_name(name): tuple(p.shape) for name, p in module.state_dict().items()} for part, module in parts.items()}
    expected = {name: place.shape(shapes[place.part]) for name, place in places_of(**parts).items()}
    is_xl = "text_encoder_2" in parts
    kind = "an SDXL model" if is_xl else f"a Stable Diffusion {2 if configs.unet.get('use_linear_projection') else 1}"
    remedy = "convert it to a diffusers folder, which holds its configuration"
    for name, shape in expected.items():
        if name not in header.shapes:
            raise UserError(f"{source} lacks {name!r}, which {kind} of these sizes has; {remedy}.")
        if (actual := _matrix_shape(name, header.shapes[name])) != _matrix_shape(name, shape):
            raise UserError(f"{source} is not {kind} of a known size: {name!r} is {actual} there and {shape} in the release; {remedy}.")
    # diffusers would read a text encoder under the names of Stable Diffusion in place of both of SDXL's
    unique = (UNET_PREFIX, CLIP_PREFIX, OPEN_CLIP_PREFIX) if is_xl else (UNET_PREFIX,)
    if extra := sorted(name for name in header.shapes if name.startswith(unique) and name not in expected):
        raise UserError(f"{source} has {len(extra)} tensors that {kind} of these sizes lacks, such as {extra[0]!r}; {remedy}.")


def _list_counts(setting: Any) -> list[Any]:
    """Return the numbers in a setting, which may be one number, a list of them, or a list of lists."""
    return [count for item in setting for count in _list_counts(item)] if isinstance(setting, list) else [setting]


def _build_network(class_name: str, config: dict[str, Any]) -> Any:
    """Build a network from its configuration."""
    network_class = NETWORK_CLASSES[class_name]
    return network_class.from_config(config) if hasattr(network_class, "from_config") else network_class(CLIPTextConfig(**config))


@contextmanager
def _explain_build_errors(source: str) -> Iterator[None]:
    """Report any error in the block as an error of the configurations in a file."""
    try:
        yield
    except Exception as error:  # diffusers, transformers and tokenizers validate configurations only by using them
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        raise UserError(f"{source} carries configurations that build no model ({reason}); export it again.") from error


def _matrix_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without trailing ones if it is of a matrix that some programs store as a 1x1 convolution."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) and (".attn_1." in name) else shape
