"""One .safetensors file as a pipeline, without any network: what the file is, which configurations fit it, and whether they do.

diffusers looks the configurations up on the hub by a few tensors. Here they come from the file itself where this project wrote it
(erasure.loading.pipeline_configs says why), else from those in the package; and every name and shape is compared with them before a weight
is read, so that a file of other sizes is refused instead of being loaded in part.
Sizes are not guessed from shapes: the number of attention heads has none.
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
from erasure.families.base import canonical_name
from erasure.loading.original_layout import CLIP_PREFIX, OPEN_CLIP_PREFIX, UNET_PREFIX, VAE_PREFIX, places_of
from erasure.loading.pipeline_configs import PipelineConfigs, load_released_configs

CONFIGS_KEY, PREDICTION_KEY = "erasure.loading.pipeline_configs", "modelspec.prediction_type"  # keys of a file's metadata
PREDICTION_TYPES = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
# ComfyUI tells the two Stable Diffusion 2 apart by the spread of this bias, above 0.09 in those that predict v (comfy/supported_models.py)
V_PREDICTION_BIAS, V_PREDICTION_SPREAD = f"{UNET_PREFIX}output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09
PIPELINE_CLASSES = {  # what diffusers calls the kinds of checkpoint that it tells apart
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
# how often a configuration makes something; a damaged one could ask for more than a machine holds
COUNT_SETTINGS = (
    ("unet", "layers_per_block"),
    ("vae", "layers_per_block"),
    ("text_encoder", "num_hidden_layers"),
    ("scheduler", "num_train_timesteps"),
)
LORA_KEY = re.compile(r"\.lora_|^lora_|\.lora\.|lora_linear_layer|\.hada_|\.lokr_|\.dora_scale|\.alpha$")
# what a file holds that is not a checkpoint, by how some of its names start, and what to do with it; the first that fits counts
NOT_CHECKPOINTS = {
    ("unet.", "text_encoder."): "the tensors of an edit or a state dict, not a model; `erasure audit` takes it, beside its base as --model",
    ("down_blocks.", "input_blocks."): "a UNet alone; a model needs its VAE and text encoder as well",
    ("text_model.", "encoder.layers.", "embeddings.", "transformer.resblocks."): "a text encoder alone; a model needs UNet and VAE as well",
    ("decoder.", "encoder."): "a VAE alone; a model needs its UNet and text encoder as well",
    ("emb_params", "<"): "a textual inversion, not a model; the attack learned_embedding takes it",
}


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a safetensors file says before its weights."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]

    def has_prefix(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.shapes)


def read_header(path: Path) -> SafetensorsHeader:
    """Names, shapes and metadata of a safetensors file; no weights.

    Raises:
        SafetensorError: a broken file.
    """
    with safe_open(path, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
        return SafetensorsHeader(path, shapes, dict(file.metadata() or {}))


def open_single_file(path: Path, source: str, supported: Collection[str], dtype: torch.dtype) -> Any:
    """The pipeline that a checkpoint in the original Stable Diffusion layout holds, in `dtype`.

    Args:
        source: what the user called it.
        supported: names of the pipeline classes that can be used.

    Raises:
        UserError: a file that holds something else, a model that is not supported, or sizes that fit no known configuration.
        SafetensorError: a broken file.
    """
    header = read_header(path)
    configs = identify_configs(header, source)
    if configs.pipeline not in supported:
        raise UserError(f"{source} is a {configs.pipeline}; supported are {', '.join(supported)}.")
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
    """The configurations of a checkpoint: its own where it carries them, else those of the released model that it is laid out like.

    Raises:
        UserError: a file that is not a checkpoint of a model with known configurations; says what it is instead.
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
        raise UserError(f"{source} is a {PIPELINE_CLASSES[model_type]} in one file; supported are Stable Diffusion 1.x and 2.x.")
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


def _infer_model_type(header: SafetensorsHeader, source: str) -> str:
    """diffusers' name for what a checkpoint is laid out like; "v1" also for what it does not know."""
    try:
        model_type: str = infer_diffusers_model_type({name: torch.empty(shape, device="meta") for name, shape in header.shapes.items()})
    except (LookupError, UnboundLocalError) as error:  # the signs of two kinds at once, or of one with other shapes
        raise UserError(f"{source} holds no model in a layout that is known.") from error
    return model_type


def _describe_contents(header: SafetensorsHeader) -> str:
    """What a file holds that is no whole model, as the rest of a sentence."""
    if any(LORA_KEY.search(name) for name in header.shapes):
        return "a LoRA, not a model; audit it with `erasure audit FILE --model BASE`"
    for prefixes, description in NOT_CHECKPOINTS.items():
        if any(name.startswith(prefixes) for name in header.shapes):
            return description
    parts = {
        "a UNet": header.has_prefix(UNET_PREFIX),
        "a VAE_PREFIX": header.has_prefix(VAE_PREFIX),
        "a text encoder": header.has_prefix(CLIP_PREFIX) or header.has_prefix(OPEN_CLIP_PREFIX),
    }
    if present := [part for part, is_present in parts.items() if is_present]:
        return f"{' and '.join(present)} but not {' or '.join(part for part, is_present in parts.items() if not is_present)}; a model needs all three"
    return f"no model in a layout that is known: its first tensor is {next(iter(header.shapes), 'missing')!r}"


def _find_prediction_type(header: SafetensorsHeader, source: str, generation: str) -> str:
    """What the UNet predicts: as a .yaml beside the file, its metadata or a marker say, else by the generation's usual sign."""
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
        f"{source} does not say what it predicts; taken for {prediction}, by the sign that ComfyUI goes by (spread of one bias {spread:.3f}, "
        f"over {V_PREDICTION_SPREAD} means v). If that is wrong, put a .yaml beside it with `model: {{params: {{parameterization: v}}}}` or eps."
    )
    return prediction


def _read_prediction_type(path: Path) -> str:
    """The prediction in a model's .yaml, as A1111 and the original code read it: model.params.parameterization, eps where it is missing."""
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
        UserError: tensors missing, of other shapes, or unknown ones; the first is named.
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
    remedy = "convert it to a diffusers folder, which carries its configuration"
    for name, shape in expected.items():
        if name not in header.shapes:
            raise UserError(f"{source} lacks {name!r}, which a {kind} of these sizes has; {remedy}.")
        if (actual := _matrix_shape(name, header.shapes[name])) != _matrix_shape(name, shape):
            raise UserError(f"{source} is no {kind} of known size: {name!r} is {actual} there and {shape} in the release; {remedy}.")
    if extra := sorted(name for name in header.shapes if name.startswith(UNET_PREFIX) and name not in expected):
        raise UserError(f"{source} has {len(extra)} tensors that a {kind} of these sizes lacks, such as {extra[0]!r}; {remedy}.")


@contextmanager
def _explain_build_errors(source: str) -> Iterator[None]:
    """Whatever goes wrong inside is the fault of the configurations in a file."""
    try:
        yield
    except Exception as error:  # diffusers, transformers and tokenizers check a record by using it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        raise UserError(f"{source} carries configurations that build no model ({reason}); export it again.") from error


def _matrix_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without trailing ones where some programs keep a matrix as a 1x1 convolution and others as it is."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) and (".attn_1." in name) else shape
