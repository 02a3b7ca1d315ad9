"""The supported models, recognized by their configs, so that any other is refused by name before its weights are loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from erasure.errors import UserError
from erasure.families.recognition import recognize_family
from erasure.storage.run import read_json

Config = Mapping[str, Any]  # a config.json, scheduler_config.json or model_index.json

PIPELINE_CLASS = "StableDiffusionPipeline"
SUPPORTED_MODELS = f"supported are {PIPELINE_CLASS} models of Stable Diffusion 1.x and 2.x (text to image)"
UNSUPPORTED_PIPELINES = {  # part of a pipeline's class name -> the kind of model; the first match counts
    "Inpaint": "an inpainting model",
    "ControlNet": "a pipeline with a ControlNet",
    "T2IAdapter": "a pipeline with an image adapter",
    "StableDiffusionAdapter": "a pipeline with an image adapter",
    "Pix2Pix": "a model that edits a given image",
    "Video": "a video model",
    "Upscale": "an upscaler",
    "Depth2Img": "a depth-to-image model",
    "Img2Img": "a pipeline that starts from an image",
    "UnCLIP": "a model of image embeddings",
    "ImageVariation": "a model of image embeddings",
    "LatentConsistency": "a few-step distilled model",
    "StableDiffusionXL": "an SDXL model",
    "StableDiffusion3": "an SD3 model",
    "Flux": "a FLUX model",
    "OneStepPipeline": "an exported one-step generator; use the edit it was exported from",
}
SCHEDULERS = {scheduler.name for scheduler in KarrasDiffusionSchedulers} - {"EDMEulerScheduler"}  # same alphas as DDIM
ALLOWED_CLASSES = {
    "unet": {"UNet2DConditionModel"},
    "text_encoder": {"CLIPTextModel"},
    "tokenizer": {"CLIPTokenizer", "CLIPTokenizerFast"},
    "vae": {"AutoencoderKL"},
    "scheduler": SCHEDULERS,
}
UNSUPPORTED_CHANNELS = {5: "a depth-to-image UNet", 7: "an upscaler's UNet", 8: "a UNet that edits a given image", 9: "an inpainting UNet"}
UNSUPPORTED_CONDITIONING = {  # settings of a UNet that needs more inputs than a text -> those inputs
    "time_cond_proj_dim": "the guidance scale as an input, like few-step distilled models (LCM)",
    "addition_embed_type": "an additional embedding, like SDXL",
    "class_embed_type": "class labels",
    "num_class_embeds": "class labels, like upscalers",
    "encoder_hid_dim": "projected text or image embeddings",
    "encoder_hid_dim_type": "projected text or image embeddings",
}
FEW_STEP_SCHEDULERS = {"LCMScheduler", "TCDScheduler"}
TRAIN_TIMESTEPS = 1000  # number of timesteps in the schedule of Stable Diffusion
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")  # what DDIM can represent


def check_index(index: Config, source: str) -> None:
    """Refuse a pipeline by its model_index.json.

    Raises:
        UserError: another pipeline class, a component of another class, or one that is missing.
    """
    name = index.get("_class_name")
    if not isinstance(name, str):
        raise UserError(f"{source} is a pipeline with code of its own ({name!r}), which is never run; {SUPPORTED_MODELS}.")
    check_pipeline_class(name, source)
    for part, allowed in ALLOWED_CLASSES.items():
        entry = index.get(part)
        library, class_name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if not class_name:
            raise UserError(f"{source} has no {part} in its model_index.json; {SUPPORTED_MODELS}, complete.")
        if part == "scheduler" and library == "diffusers":
            _check_scheduler_class(str(class_name), source)
        elif class_name not in allowed or library not in ("diffusers", "transformers"):
            raise UserError(f"the {part} of {source} is a {class_name} ({library}); it must be {' or '.join(sorted(allowed))}.")


def check_pipeline_class(name: str, source: str) -> None:
    """Refuse a pipeline by the name of its class.

    Raises:
        UserError: any class but StableDiffusionPipeline.
    """
    if name != PIPELINE_CLASS:
        kind = next((description for part, description in UNSUPPORTED_PIPELINES.items() if part in name), "another kind of model")
        raise UserError(f"{source} is a {name}, {kind}; {SUPPORTED_MODELS}.")


def check_configs(folder: Path, source: str) -> None:
    """Refuse a pipeline folder by the configs of its components.

    Raises:
        UserError: a missing config, or one of a model that is not supported.
    """
    unet, text_encoder, vae = (_config(folder, f"{part}/config.json", source) for part in ("unet", "text_encoder", "vae"))
    check_networks(unet, text_encoder, vae, source)
    scheduler = _config(folder, "scheduler/scheduler_config.json", source)
    check_schedule(scheduler, str(scheduler.get("_class_name", read_json(folder / "model_index.json")["scheduler"][1])), source)


def _config(folder: Path, name: str, source: str) -> Config:
    """Read one config of a pipeline folder."""
    if not (folder / name).is_file():
        raise UserError(f"{source} has no {name}; the folder is incomplete. Copy or download it again.")
    config = read_json(folder / name)
    if not isinstance(config, dict):
        raise UserError(f"{name} of {source} is not a JSON object.")
    return config


def check_networks(unet: Config, text_encoder: Config, vae: Config, source: str) -> None:
    """Refuse networks that need more inputs than a latent, a timestep and a CLIP text, do not fit together, or belong to no known family.

    Raises:
        UserError: the message names the setting.
    """
    channels, latent = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latent:
        kind = UNSUPPORTED_CHANNELS.get(channels, "another kind of UNet")
        raise UserError(f"the UNet of {source} takes {channels} channels where its VAE gives {latent}: {kind}; {SUPPORTED_MODELS}.")
    for setting, description in UNSUPPORTED_CONDITIONING.items():
        if unet.get(setting) is not None:
            raise UserError(f"the UNet of {source} needs {description} ({setting} is {unet[setting]!r}); {SUPPORTED_MODELS}.")
    kind = text_encoder.get("model_type", "clip_text_model")
    if kind not in ("clip_text_model", "clip"):
        raise UserError(f"the text encoder of {source} is of type {kind!r}; it must be a CLIPTextModel.")
    width, expected = text_encoder.get("hidden_size"), unet.get("cross_attention_dim")
    if width is not None and width != expected:
        raise UserError(
            f"the text encoder of {source} gives {width} values a token and its UNet takes {expected}; they do not belong together."
        )
    recognize_family(unet, text_encoder, source)


def _check_scheduler_class(name: str, source: str) -> None:
    """Refuse schedulers of few-step and flow-matching models, and those without a DDIM counterpart."""
    if name in FEW_STEP_SCHEDULERS:
        raise UserError(f"{source} samples with {name}, the scheduler of few-step distilled models, which are not supported.")
    if "FlowMatch" in name:
        raise UserError(f"{source} samples with {name}: a flow-matching model, which is not supported; {SUPPORTED_MODELS}.")
    if name not in SCHEDULERS:
        raise UserError(f"{source} samples with {name}, which has no DDIM counterpart; one of {', '.join(sorted(SCHEDULERS))} is needed.")


def check_schedule(config: Config, name: str, source: str) -> None:
    """Refuse a schedule that DDIM cannot represent, or that needs another way of sampling.

    Args:
        config: of the scheduler, with or without its defaults.
        name: the class name of the scheduler.

    Raises:
        UserError: the message names the setting.
    """
    _check_scheduler_class(name, source)
    prediction, zero_snr = config.get("prediction_type", "epsilon"), bool(config.get("rescale_betas_zero_snr", False))
    if prediction not in ("epsilon", "v_prediction"):
        raise UserError(f"{source} predicts {prediction!r}; Stable Diffusion models predict epsilon or v_prediction.")
    if (count := config.get("num_train_timesteps", TRAIN_TIMESTEPS)) != TRAIN_TIMESTEPS or isinstance(count, bool):
        raise UserError(
            f"{source} has {count!r:.40} as num_train_timesteps in its scheduler; Stable Diffusion models have {TRAIN_TIMESTEPS}."
        )
    if config.get("use_flow_sigmas"):
        raise UserError(
            f"{source} has use_flow_sigmas in its scheduler: a flow-matching model, which is not supported; {SUPPORTED_MODELS}."
        )
    if config.get("thresholding"):
        raise UserError(f"{source} has thresholding in its scheduler, which is for models of pixels, not of latents; set it to false.")
    if config.get("trained_betas") is None and config.get("beta_schedule", "linear") not in BETA_SCHEDULES:
        raise UserError(f"{source} has the beta_schedule {config['beta_schedule']!r}; DDIM knows {', '.join(BETA_SCHEDULES)}.")
    spacing = config.get("timestep_spacing", "leading")
    if spacing not in ("leading", "trailing", "linspace"):
        raise UserError(f"{source} has the timestep_spacing {spacing!r}; DDIM knows leading, trailing and linspace.")
    if zero_snr and prediction == "epsilon":
        raise UserError(f"{source} predicts noise under a schedule with zero terminal SNR, where noise says nothing about the image.")
    if spacing == "trailing" and name.startswith("Euler") and prediction == "epsilon" and not zero_snr:
        raise UserError(
            f"{source} samples with {name} at trailing timesteps, like SD-Turbo: few-step distilled models are not supported. "
            "If it is an ordinary model, set timestep_spacing to 'leading' in its scheduler_config.json."
        )


def check_pipeline(pipe: Any, source: str) -> None:
    """Refuse a pipeline that is already loaded, from one file or by other code.

    Raises:
        UserError: a missing component, one of another class, or a model that is not supported.
    """
    for part, allowed in ALLOWED_CLASSES.items():
        component = getattr(pipe, part, None)
        if component is None:
            raise UserError(f"{source} has no {part}; {SUPPORTED_MODELS}, complete.")
        if part in ("unet", "text_encoder", "vae") and not {base.__name__ for base in type(component).__mro__} & allowed:
            raise UserError(f"the {part} of {source} is a {type(component).__name__}; it must be {' or '.join(sorted(allowed))}.")
    check_networks(pipe.unet.config, pipe.text_encoder.config.to_dict(), pipe.vae.config, source)
    check_schedule(pipe.scheduler.config, type(pipe.scheduler).__name__, source)
