"""Open one .safetensors file as a pipeline, offline: identify the file, choose its configurations, and check that they fit.

diffusers identifies a file by a few tensors and downloads the configurations from the hub. Here they come from the file itself if this
project wrote it (see erasure.loading.pipeline_configs), otherwise from the package. Every name and shape is compared with them before a
weight is read, so that a file of other sizes is refused instead of being loaded in part. Sizes are not guessed from shapes, because shapes
do not show the number of attention heads.
"""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS, infer_diffusers_model_type
from pydantic import ValidationError
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel

from erasure.config.strict_yaml import read_strict_yaml
from erasure.errors import AssumptionWarning, UserError
from erasure.families.parameters import canonical_name
from erasure.families.pipelines import PIPELINES
from erasure.loading.original_layout import CLIP_PREFIX, OPEN_CLIP_PREFIX, UNET_PREFIX, VAE_PREFIX, places_of
from erasure.loading.pipeline_configs import PipelineConfigs, load_released_configs

CONFIGS_KEY, PREDICTION_KEY = "erasure.configs", "modelspec.prediction_type"  # keys of a file's metadata
PREDICTION_TYPES = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
# ComfyUI distinguishes the two kinds of Stable Diffusion 2 by the spread of this bias: above 0.09 means v (comfy/supported_models.py)
V_PREDICTION_BIAS, V_PREDICTION_SPREAD = f"{UNET_PREFIX}output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09
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
    ("vae", "layers_per_block"),
    ("text_encoder", "num_hidden_layers"),
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


@dataclass(frozen=True)
class SafetensorsHeader:
    """The header of a safetensors file."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]

    def has_prefix(self, prefix: str) -> bool:
        """Return whether any tensor name starts with a prefix."""
        return any(name.startswith(prefix) for name in self.shapes)


def read_header(path: Path) -> SafetensorsHeader:
    """Read names, shapes and metadata of a safetensors file; no weights.

    Raises:
        SafetensorError: a broken file.
    """
    with safe_open(path, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (safe_open is not a dict)
        return SafetensorsHeader(path, shapes, dict(file.metadata() or {}))


def open_single_file(path: Path, source: str, supported: Collection[str], dtype: torch.dtype) -> Any:
    """Open a checkpoint in the original Stable Diffusion layout as a pipeline with weights in `dtype`.

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
        tokenizer, scheduler = configs.tokenizer.build(), DDIMScheduler.from_config(configs.scheduler)
        if (words := max(tokenizer.get_vocab().values()) + 1) > (rows := configs.text_encoder["vocab_size"]):
            raise ValueError(f"the tokenizer has {words} words, the text encoder {rows}")
    with configs.temporary_folder() as folder:
        return StableDiffusionPipeline.from_single_file(
            str(path),
            config=str(folder),
            local_files_only=True,
            torch_dtype=dtype,
            tokenizer=tokenizer,
            scheduler=scheduler,
            safety_checker=None,
            requires_safety_checker=False,
        )


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
    if model_type == "xl_base":
        return load_released_configs("sdxl")
    if model_type in PIPELINE_CLASSES:
        raise UserError(unsupported_file(source, PIPELINE_CLASSES[model_type]))
    if model_type not in ("v1", "v2"):
        pretrained = DIFFUSERS_DEFAULT_PIPELINE_PATHS[model_type]["pretrained_model_name_or_path"]
        raise UserError(f"{source} is laid out like {pretrained}; supported are Stable Diffusion 1.x and 2.x.")
    if not all(header.has_prefix(part) for part in (UNET_PREFIX, VAE_PREFIX)) or not (
        header.has_prefix(CLIP_PREFIX) or header.has_prefix(OPEN_CLIP_PREFIX)
    ):
        raise UserError(f"{source} holds {_describe_contents(header)}.")
    prediction = _find_prediction_type(header, source, generation=model_type)
    configs = load_released_configs({"v1": "sd15", "v2": "sd21" if prediction == "v_prediction" else "sd21-base"}[model_type])
    zero_snr = {"rescale_betas_zero_snr": True} if "ztsnr" in header.shapes else {}
    return configs.model_copy(update={"scheduler": {**configs.scheduler, "prediction_type": prediction, **zero_snr}})


def unsupported_file(source: str, pipeline: str) -> str:
    """Return why a checkpoint of another pipeline is not opened, and what to do where its folder would be."""
    message = f"{source} is a {pipeline} in one file; of such files, Stable Diffusion 1.x and 2.x are opened."
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
        "a text encoder": header.has_prefix(CLIP_PREFIX) or header.has_prefix(OPEN_CLIP_PREFIX),
    }
    present = [part for part, is_present in parts.items() if is_present]
    missing = [part for part, is_present in parts.items() if not is_present]
    if present:
        return f"{' and '.join(present)} but not {' or '.join(missing)}; a model needs all three"
    return f"no model in a layout that is known: its first tensor is {next(iter(header.shapes), 'missing')!r}"


def _find_prediction_type(header: SafetensorsHeader, source: str, generation: str) -> str:
    """Return what the UNet predicts: by a .yaml beside the file, its metadata or a marker tensor, otherwise by the generation."""
    yaml_path = header.path.with_suffix(".yaml")
    if yaml_path.is_file():
        return _read_prediction_type(yaml_path)
    declared = header.metadata.get(PREDICTION_KEY) or header.metadata.get("modelspec.predict_key")
    if declared:
        if declared not in PREDICTION_TYPES:
            raise UserError(f"{source} says in its metadata that it predicts {declared!r}; allowed are {', '.join(PREDICTION_TYPES)}.")
        return PREDICTION_TYPES[declared]
    if "v_pred" in header.shapes:
        return "v_prediction"
    if generation == "v1":
        return "epsilon"
    with safe_open(header.path, "pt") as file:
        spread = file.get_tensor(V_PREDICTION_BIAS).float().std(correction=0).item() if V_PREDICTION_BIAS in header.shapes else 0.0
    prediction = "v_prediction" if spread > V_PREDICTION_SPREAD else "epsilon"
    AssumptionWarning.warn(
        f"{source} does not say what it predicts; taken for {prediction}, by the rule of ComfyUI (spread of one bias {spread:.3f}, "
        f"over {V_PREDICTION_SPREAD} means v). If that is wrong, put a .yaml beside it with "
        "`model: {params: {parameterization: v}}` or eps."
    )
    return prediction


def _read_prediction_type(path: Path) -> str:
    """Read the prediction type from a model's .yaml as A1111 and the original code do: model.params.parameterization, eps if missing."""
    record = read_strict_yaml(path)
    try:
        declared = record["model"]["params"].get("parameterization", "eps")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the configuration of a model: it has no model.params.") from error
    if declared not in ("eps", "v"):
        raise UserError(f"{path}: parameterization is {declared!r}; allowed are eps and v.")
    return PREDICTION_TYPES[declared]


def check_shapes(header: SafetensorsHeader, configs: PipelineConfigs, source: str) -> None:
    """Check every name and shape of UNet, VAE and text encoder against the configurations.

    Raises:
        UserError: missing or unknown tensors, or other shapes; the message names the first. Configurations that build no model.
    """
    for part, name in COUNT_SETTINGS:
        if not isinstance(count := getattr(configs, part).get(name), int) or count > max(len(header.shapes), 1000):
            raise UserError(f"{source} carries configurations that build no model ({part}.{name} is {str(count)[:40]}); export it again.")
    with _explain_build_errors(source), init_empty_weights():
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel.from_config(configs.unet),
            "vae": AutoencoderKL.from_config(configs.vae),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**configs.text_encoder)),
        }
    shapes = {part: {canonical_name(name): tuple(p.shape) for name, p in module.state_dict().items()} for part, module in parts.items()}
    expected = {name: place.shape(shapes[place.part]) for name, place in places_of(**parts).items()}
    kind = "Stable Diffusion 2" if configs.unet.get("use_linear_projection") else "Stable Diffusion 1"
    remedy = "convert it to a diffusers folder, which holds its configuration"
    for name, shape in expected.items():
        if name not in header.shapes:
            raise UserError(f"{source} lacks {name!r}, which a {kind} of these sizes has; {remedy}.")
        if (actual := _matrix_shape(name, header.shapes[name])) != _matrix_shape(name, shape):
            raise UserError(f"{source} is not a {kind} of a known size: {name!r} is {actual} there and {shape} in the release; {remedy}.")
    if extra := sorted(name for name in header.shapes if name.startswith(UNET_PREFIX) and name not in expected):
        raise UserError(f"{source} has {len(extra)} tensors that a {kind} of these sizes lacks, such as {extra[0]!r}; {remedy}.")


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
