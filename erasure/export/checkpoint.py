"""Export an edit as one .safetensors file in the original layout of Stable Diffusion and SDXL.

A1111, ComfyUI and stable-diffusion.cpp load such files.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from erasure.edits import Edit, apply_edits
from erasure.errors import AssumptionWarning, UserError
from erasure.export.folder import ensure_empty_folder
from erasure.export.transformers_compat import write_tensors
from erasure.families.base import DiffusionModel
from erasure.families.parameters import canonical_name
from erasure.families.pipelines import PIPELINES, SINGLE_FILE_MODELS, SINGLE_FILE_PIPELINES
from erasure.families.sampling import own_network_call
from erasure.loading.original_layout import places_of
from erasure.loading.pipeline_configs import PipelineConfigs, configs_of, load_released_configs
from erasure.loading.prediction_type import PREDICTION_KEY, V_MARKER, V_PREDICTION_SPREAD, ZERO_SNR_MARKER
from erasure.loading.single_file import CONFIGS_KEY

# names of the ModelSpec; an architecture of other sizes has none
ARCHITECTURES = {
    ("sd15", "epsilon"): "stable-diffusion-v1",
    ("sd15", "v_prediction"): "stable-diffusion-v1",
    ("sd21", "epsilon"): "stable-diffusion-v2-512",
    ("sd21", "v_prediction"): "stable-diffusion-v2-768-v",
    ("sdxl", "epsilon"): "stable-diffusion-xl-v1-base",
    ("sdxl", "v_prediction"): "stable-diffusion-xl-v1-base",
}
REFUSED_PRODUCTS = {
    "guidance": "it changes how a model samples and none of its weights, so the checkpoint would be the base. Use the edit itself.",
    "one-step": "a one-step generator is sampled unlike any model that other programs know. Use --format folder.",
}


def to_checkpoint(model: DiffusionModel, edit: Edit, out: Path, other_base: bool = False) -> Path:
    """Save the edited model as one fp16 file in `out`, with its configurations in the metadata; `model` is not changed.

    The file is named after the method and the concepts. What its readers will get wrong is reported as a warning (`predict_misreadings`).

    Returns:
        The path of the file.

    Raises:
        UserError: a model of another family, an edit that weights cannot hold, weights outside the range of fp16, or a model that the
            layout has no names for.
    """
    if type(model.pipe).__name__ not in SINGLE_FILE_PIPELINES:
        raise UserError(
            f"--format checkpoint is for {SINGLE_FILE_MODELS}, and {model.source} is none of them; use --format folder or lora."
        )
    if edit.info.product in REFUSED_PRODUCTS:
        raise UserError(f"{edit.name} cannot be a checkpoint: {REFUSED_PRODUCTS[edit.info.product]}")
    configs = configs_of(model.pipe)
    with apply_edits(model, [edit], other_base):
        tensors = {**to_original_layout(model), **prediction_markers(configs)}
        metadata = {
            **build_checkpoint_metadata(model, edit, configs),
            "erasure.fingerprint": model.fingerprint(),
            CONFIGS_KEY: configs.model_dump_json(),
        }
        notes = predict_misreadings(model, configs)
    ensure_empty_folder(out)
    path = out / f"{file_name_of(edit)}.safetensors"
    write_tensors(path, tensors, metadata)
    for note in notes:
        AssumptionWarning.warn(note)
    return path


def to_original_layout(model: DiffusionModel) -> dict[str, Tensor]:
    """Return UNet, VAE and text encoders under the names of the original layout, in fp16 on the CPU.

    Raises:
        UserError: values outside the range of fp16, or a parameter that the layout has no name for.
    """
    parts = {part: getattr(model.pipe, part) for part in PIPELINES[type(model.pipe).__name__].networks}
    values = {part: {canonical_name(name): value for name, value in module.state_dict().items()} for part, module in parts.items()}
    tensors = {}
    for name, place in places_of(**parts).items():
        half = place.gather(values[place.part]).to("cpu", torch.float16).contiguous()
        if not half.isfinite().all():
            raise UserError(f"{place.part}.{place.parameters[0]} holds values that fp16 cannot (over 65504, or NaN); use --format folder.")
        tensors[name] = half
    return tensors


def prediction_markers(configs: PipelineConfigs) -> dict[str, Tensor]:
    """Return the empty tensors by which ComfyUI and others recognize v-prediction and zero terminal SNR; they do so in SDXL alone."""
    if generation_of(configs) != "sdxl" or configs.scheduler["prediction_type"] != "v_prediction":
        return {}
    names = (V_MARKER, ZERO_SNR_MARKER) if configs.scheduler.get("rescale_betas_zero_snr") else (V_MARKER,)
    return {name: torch.zeros(0) for name in names}


def build_checkpoint_metadata(model: DiffusionModel, edit: Edit, configs: PipelineConfigs) -> dict[str, str]:
    """Return the metadata of the file (Stability AI, ModelSpec 1.0.0)."""
    generation, prediction = generation_of(configs), configs.scheduler["prediction_type"]
    other_sizes = bool(configs.list_differences(load_released_configs(generation)))
    scale = 2 ** (len(configs.vae["block_out_channels"]) - 1)
    height, width = (side * scale for side in model.latent_shape[-2:])
    concepts = "; ".join(concept["name"] for concept in edit.info.concepts)
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "latent-diffusion" if other_sizes else ARCHITECTURES[generation, prediction],
        "modelspec.implementation": "sgm",
        "modelspec.title": f"{concepts}, erased with {edit.info.method}",
        "modelspec.resolution": f"{width}x{height}",
        PREDICTION_KEY: "v" if prediction == "v_prediction" else prediction,
        "erasure.edits": edit.digest(),
    }


def predict_misreadings(model: DiffusionModel, configs: PipelineConfigs) -> list[str]:
    """Return what other programs will get wrong about a model, and what to do about it, one note each.

    They take every size from the generation, and guess what the UNet predicts: noise for Stable Diffusion 1; for Stable Diffusion 2 v if
    one bias spreads widely (ComfyUI) or if the UNet's prediction for a constant is strongly negative (A1111 and stable-diffusion.cpp); for
    SDXL what the markers in the file say, which not every program reads.
    """
    generation = generation_of(configs)
    if differences := configs.list_differences(load_released_configs(generation)):
        # they also know two models that leave out blocks of SDXL
        name, others = ("SDXL", "Unless it has those of SSD-1B or Vega, only") if generation == "sdxl" else ("Stable Diffusion", "Only")
        return [
            f"A1111, ComfyUI and stable-diffusion.cpp know {name} at its released sizes only, and this model differs in "
            f"{', '.join(differences[:3])}{' and more' if len(differences) > 3 else ''}. {others} this project opens the file, "
            "and diffusers if it is given the model's configurations."
        ]
    if generation == "sdxl":
        return _predict_unread_markers(configs)
    velocity = configs.scheduler["prediction_type"] == "v_prediction"
    comfyui_takes_v, others_take_v = (_is_v_for_comfyui(model), _is_v_for_others(model)) if generation == "sd21" else (False, False)
    prediction_names, option = {True: "v", False: "epsilon"}, {True: "v", False: "eps"}[velocity]
    notes = []
    if comfyui_takes_v != velocity:
        node = "v_prediction" if velocity else "eps"
        notes.append(
            f"ComfyUI will take the file for {prediction_names[comfyui_takes_v]}-prediction: "
            f"add its node ModelSamplingDiscrete, set to {node}."
        )
    if others_take_v != velocity:
        notes.append(
            f"A1111 and stable-diffusion.cpp will take the file for {prediction_names[others_take_v]}-prediction: for A1111 put the "
            f"generation's .yaml with parameterization {option} beside it, for stable-diffusion.cpp add --prediction {option}."
        )
    return notes


def _predict_unread_markers(configs: PipelineConfigs) -> list[str]:
    """Return which programs do not read the markers of an SDXL checkpoint, as of A1111 1.10.1 and stable-diffusion.cpp 97d2990."""
    notes, markers = [], prediction_markers(configs)
    if V_MARKER in markers:
        notes.append(
            f"A1111 up to 1.10.1 does not read the tensor {V_MARKER} and will take the file for epsilon-prediction: put a copy of its "
            "sd_xl_base.yaml beside it, under the file's name, with VScaling for EpsScaling."
        )
    if ZERO_SNR_MARKER in markers:
        notes.append(
            f"stable-diffusion.cpp and A1111 up to 1.10.1 do not read the tensor {ZERO_SNR_MARKER} and will sample without zero terminal "
            "SNR: for A1111 set the noise schedule Zero Terminal SNR in its settings; stable-diffusion.cpp has no such setting."
        )
    return notes


def generation_of(configs: PipelineConfigs) -> str:
    """Return the released model that other programs take this one for: "sd15", "sd21" or "sdxl".

    They tell by the second text encoder, and without one by the UNet's projections.
    """
    if "text_encoder_2" in configs.networks:
        return "sdxl"
    return "sd21" if configs.unet["use_linear_projection"] else "sd15"


def _is_v_for_comfyui(model: DiffusionModel) -> bool:
    """Return whether ComfyUI takes the model for v-prediction; erasure.loading.single_file explains its rule."""
    bias = model.pipe.unet.up_blocks[-1].attentions[-1].transformer_blocks[0].norm1.bias
    return bool(bias.float().std(correction=0) > V_PREDICTION_SPREAD)


@torch.no_grad()
def _is_v_for_others(model: DiffusionModel) -> bool:
    """Return whether A1111 and stable-diffusion.cpp take the model for v-prediction.

    Their rule is mean(UNet(x, 999, c) - x) < -1 for x and c of 0.5: where nearly all is noise, v is about -x_0.
    """
    unet = model.pipe.unet
    x = torch.full((1, unet.config.in_channels, 8, 8), 0.5, device=model.device)
    cond = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, device=model.device)
    with model.autocast(), own_network_call():
        out = unet(x.to(unet.dtype), 999, encoder_hidden_states=cond.to(unet.dtype)).sample
    return bool((out.float() - x).mean() < -1)


def file_name_of(edit: Edit) -> str:
    """Return method and concepts as a file name of lower-case letters, digits and dashes."""
    words = re.sub(r"[^a-z0-9]+", "-", " ".join([edit.info.method, *(c["name"] for c in edit.info.concepts)]).lower())
    return words.strip("-")[:60].rstrip("-")
