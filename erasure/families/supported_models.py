"""The supported models, recognized by their configs, so that any other is refused by name before its weights are loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from erasure.errors import UserError
from erasure.families.parameters import unwrap
from erasure.families.pipelines import PIPELINES, SUPPORTED_MODELS, PipelineSpec
from erasure.families.recognition import recognize_family
from erasure.storage.run import read_json

Config = Mapping[str, Any]  # a config.json, scheduler_config.json or model_index.json

UNSUPPORTED_PIPELINES = {  # part of a pipeline's class name -> the kind of model; the first match counts
    "Inpaint": "an inpainting model",
    "Fill": "an inpainting model",
    "ControlNet": "a pipeline with a ControlNet",
    "T2IAdapter": "a pipeline with an image adapter",
    "StableDiffusionAdapter": "a pipeline with an image adapter",
    "Pix2Pix": "a model that edits a given image",
    "Kontext": "a model that edits a given image",
    "Control": "a pipeline that follows a control image",
    "Redux": "a pipeline that starts from an image",
    "Video": "a video model",
    "Upscale": "an upscaler",
    "Depth2Img": "a depth-to-image model",
    "Img2Img": "a pipeline that starts from an image",
    "UnCLIP": "a model of image embeddings",
    "ImageVariation": "a model of image embeddings",
    "LatentConsistency": "a few-step distilled model",
    "OneStepPipeline": "an exported one-step generator; use the edit it was exported from",
    "Flux2": "a FLUX.2 model that is not klein",
    "ZImage": "a Z-Image model",
}
SCHEDULERS = {scheduler.name for scheduler in KarrasDiffusionSchedulers} - {"EDMEulerScheduler"}  # same alphas as DDIM
FLOW_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
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


def check_index(index: Config, source: str) -> PipelineSpec:
    """Return what a pipeline consists of, or refuse it by its model_index.json.

    Raises:
        UserError: another pipeline class, a component of another class, or one that is missing.
    """
    name = index.get("_class_name")
    if not isinstance(name, str):
        raise UserError(f"{source} is a pipeline with code of its own ({name!r}), which is never run; {SUPPORTED_MODELS}.")
    spec = spec_of(name, source)
    for part, allowed in {**{p: frozenset({c}) for p, c in spec.networks.items()}, **spec.tokenizers, "scheduler": frozenset()}.items():
        entry = index.get(part)
        library, class_name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if not class_name and part not in spec.optional:
            raise UserError(f"{source} has no {part} in its model_index.json; {SUPPORTED_MODELS}, complete.")
        if part == "scheduler" and library == "diffusers":
            _check_scheduler_class(str(class_name), source, spec)
        elif class_name and (class_name not in allowed or library not in ("diffusers", "transformers")):
            allowed = allowed or frozenset({"scheduler of diffusers"})
            raise UserError(f"the {part} of {source} is a {class_name} ({library}); it must be {' or '.join(sorted(allowed))}.")
    return spec


def spec_of(name: str, source: str) -> PipelineSpec:
    """Return what a pipeline consists of, by the name of its class.

    Raises:
        UserError: a class that is not supported.
    """
    if name not in PIPELINES:
        kind = next((description for part, description in UNSUPPORTED_PIPELINES.items() if part in name), "another kind of model")
        raise UserError(f"{source} is a {name}, {kind}; {SUPPORTED_MODELS}.")
    return PIPELINES[name]


def check_configs(folder: Path, spec: PipelineSpec, source: str) -> None:
    """Refuse a pipeline folder by the configs of its components.

    Raises:
        UserError: a missing config, or one of a model that is not supported.
    """
    index = read_json(folder / "model_index.json")
    absent = {part for part in spec.optional if (index.get(part) or [None])[0] is None}
    configs = {part: _config(folder, f"{part}/config.json", source) for part in spec.networks if part not in absent}
    check_networks(spec, configs, source)
    scheduler = _config(folder, "scheduler/scheduler_config.json", source)
    check_schedule(scheduler, str(scheduler.get("_class_name", index["scheduler"][1])), spec, source)


def _config(folder: Path, name: str, source: str) -> Config:
    """Read one config of a pipeline folder."""
    if not (folder / name).is_file():
        raise UserError(f"{source} has no {name}; the folder is incomplete. Copy or download it again.")
    config = read_json(folder / name)
    if not isinstance(config, dict):
        raise UserError(f"{name} of {source} is not a JSON object.")
    return config


def check_networks(spec: PipelineSpec, configs: Mapping[str, Config], source: str) -> None:
    """Refuse networks that need more inputs than a latent, a time and a text, do not fit together, or belong to no known family.

    Args:
        configs: of the networks by component; of an optional one only if it is there.

    Raises:
        UserError: the message names the setting.
    """
    for part in ("text_encoder", "text_encoder_2"):
        kind = configs.get(part, {}).get("model_type", "clip_text_model")
        if spec.networks.get(part, "").startswith("CLIP") and kind not in ("clip_text_model", "clip"):
            raise UserError(f"the {part} of {source} is of type {kind!r}; it must be a {spec.networks[part]}.")
    denoiser = configs[spec.denoiser]
    check = check_unet if spec.denoiser == "unet" else check_transformer
    check(denoiser, spec, configs, source)
    if not spec.family and spec.denoiser == "unet":
        recognize_family(denoiser, configs["text_encoder"], source)


def check_unet(unet: Config, spec: PipelineSpec, configs: Mapping[str, Config], source: str) -> None:
    """Refuse a UNet by its config, and by those of the networks around it."""
    channels, latent = unet.get("in_channels", 4), configs["vae"].get("latent_channels", 4)
    if channels != latent:
        kind = UNSUPPORTED_CHANNELS.get(channels, "another kind of UNet")
        raise UserError(f"the UNet of {source} takes {channels} channels where its VAE gives {latent}: {kind}; {SUPPORTED_MODELS}.")
    expected_inputs = {"addition_embed_type": "text_time"} if spec.family == "sdxl" else {}
    for setting, description in UNSUPPORTED_CONDITIONING.items():
        if (value := unet.get(setting)) is not None and value != expected_inputs.get(setting):
            raise UserError(f"the UNet of {source} needs {description} ({setting} is {value!r}); {SUPPORTED_MODELS}.")
    for setting, wanted in expected_inputs.items():
        if unet.get(setting) != wanted:
            raise UserError(f"the UNet of {source} has {setting} {unet.get(setting)!r}; that of a {spec.models} model has {wanted!r}.")
    _check_width(configs, ("text_encoder", "text_encoder_2"), unet.get("cross_attention_dim", 1280), "UNet", source)
    if spec.family == "sdxl":
        pooled = unet.get("projection_class_embeddings_input_dim", 0) - 6 * unet.get("addition_time_embed_dim", 0)
        if pooled != (width := configs["text_encoder_2"].get("projection_dim", 512)):
            raise UserError(f"the UNet of {source} takes {pooled} pooled values where its second text encoder gives {width}.")


def check_transformer(transformer: Config, spec: PipelineSpec, configs: Mapping[str, Config], source: str) -> None:
    """Refuse a transformer by its config, and by those of the networks around it."""
    patches = 1 if spec.networks["transformer"] == "SD3Transformer2DModel" else 4  # FLUX takes patches of 2 x 2 as channels
    channels, latent = transformer.get("in_channels"), configs["vae"].get("latent_channels", 4)
    if channels is not None and channels != patches * latent:
        raise UserError(
            f"the transformer of {source} takes {channels} channels where its VAE gives {patches * latent}: an inpainting or editing "
            f"model, or the VAE of another model; {SUPPORTED_MODELS}."
        )
    width = transformer.get("joint_attention_dim")
    match spec.networks["transformer"]:
        case "SD3Transformer2DModel":
            _check_width(configs, ("text_encoder_3",), width, "transformer", source)
            clip = sum(configs[part].get("hidden_size", 0) for part in ("text_encoder", "text_encoder_2"))
            if width is not None and clip > width:
                raise UserError(f"the text encoders of {source} give {clip} values a token and its transformer takes {width}.")
        case "FluxTransformer2DModel":
            _check_width(configs, ("text_encoder_2",), width, "transformer", source)
        case _:
            _check_width(configs, ("text_encoder",) * 3, width, "transformer", source)  # three layers of one encoder


def _check_width(configs: Mapping[str, Config], parts: tuple[str, ...], expected: int | None, reader: str, source: str) -> None:
    """Check that text encoders give as many values a token as a denoiser reads."""
    present = [configs[part] for part in parts if part in configs]
    widths = [config.get("hidden_size", config.get("d_model")) for config in present]
    if present and expected is not None and all(isinstance(width, int) for width in widths) and sum(widths) != expected:
        encoders = "text encoder" if len(set(parts) & configs.keys()) == 1 else "text encoders"
        raise UserError(
            f"the {encoders} of {source} {'gives' if encoders == 'text encoder' else 'give'} {sum(widths)} values a token and its {reader} "
            f"takes {expected}; they do not belong together."
        )


def _check_scheduler_class(name: str, source: str, spec: PipelineSpec) -> None:
    """Refuse schedulers of few-step models, those without a DDIM counterpart, and those of flows on diffusion models or the reverse."""
    if spec.schedule == "flow":
        if name != FLOW_SCHEDULER:
            raise UserError(f"{source} samples with {name}; {spec.models} models are flows, sampled with {FLOW_SCHEDULER}.")
        return
    if name in FEW_STEP_SCHEDULERS:
        raise UserError(f"{source} samples with {name}, the scheduler of few-step distilled models, which are not supported.")
    if "FlowMatch" in name:
        raise UserError(f"{source} samples with {name}: flow matching, which {spec.models} models were not trained with.")
    if name not in SCHEDULERS:
        raise UserError(f"{source} samples with {name}, which has no DDIM counterpart; one of {', '.join(sorted(SCHEDULERS))} is needed.")


def check_schedule(config: Config, name: str, spec: PipelineSpec, source: str) -> None:
    """Refuse a schedule that DDIM or Euler steps of a flow cannot represent, or that needs another way of sampling.

    Args:
        config: of the scheduler, with or without its defaults.
        name: the class name of the scheduler.

    Raises:
        UserError: the message names the setting.
    """
    _check_scheduler_class(name, source, spec)
    if (count := config.get("num_train_timesteps", TRAIN_TIMESTEPS)) != TRAIN_TIMESTEPS or isinstance(count, bool):
        raise UserError(f"{source} has {count!r:.40} as num_train_timesteps in its scheduler; {spec.models} models have {TRAIN_TIMESTEPS}.")
    if spec.schedule == "flow":
        for setting in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas", "stochastic_sampling"):
            if config.get(setting):
                raise UserError(f"{source} has {setting} in its scheduler; only plain Euler steps are supported: set it to false.")
        return
    prediction, zero_snr = config.get("prediction_type", "epsilon"), bool(config.get("rescale_betas_zero_snr", False))
    if prediction not in ("epsilon", "v_prediction"):
        raise UserError(f"{source} predicts {prediction!r}; Stable Diffusion models predict epsilon or v_prediction.")
    if config.get("use_flow_sigmas"):
        raise UserError(f"{source} has use_flow_sigmas in its scheduler: flow matching, which {spec.models} models were not trained with.")
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


def check_pipeline(pipe: Any, expected: str, source: str) -> None:
    """Refuse a pipeline that is already loaded, from one file or by other code.

    Args:
        expected: the pipeline class that is asked for.

    Raises:
        UserError: another class, a missing component, one of another class, or a model that is not supported.
    """
    class_names = [base.__name__ for base in type(pipe).__mro__]
    if expected not in class_names:
        spec_of(class_names[0], source)
        raise UserError(f"{source} is a {class_names[0]}; this needs a {expected}.")
    spec = PIPELINES[expected]
    for part, class_name in spec.networks.items():
        component = getattr(pipe, part, None)
        if component is None and part not in spec.optional:
            raise UserError(f"{source} has no {part}; {SUPPORTED_MODELS}, complete.")
        if component is not None and class_name not in {base.__name__ for base in type(component).__mro__}:
            raise UserError(f"the {part} of {source} is a {type(component).__name__}; it must be {class_name}.")
    for part in (*spec.tokenizers, "scheduler"):
        if getattr(pipe, part, None) is None and part not in spec.optional:
            raise UserError(f"{source} has no {part}; {SUPPORTED_MODELS}, complete.")
    check_networks(spec, config_by_part(pipe, spec), source)
    check_schedule(pipe.scheduler.config, type(pipe.scheduler).__name__, spec, source)


def spec_of_pipeline(pipe: Any) -> PipelineSpec:
    """Return what a pipeline's model consists of, by its denoiser: also for pipelines that inpaint or start from an image.

    Raises:
        UserError: a denoiser of no supported pipeline.
    """
    denoisers = [network for part in ("unet", "transformer") if (network := getattr(pipe, part, None)) is not None]
    denoiser: Any = unwrap(denoisers[0]) if denoisers else None
    class_names = {base.__name__ for base in type(denoiser).__mro__}
    specs = [spec for spec in PIPELINES.values() if spec.networks[spec.denoiser] in class_names]
    if len(specs) > 1:  # of the UNets, that of SDXL reads more than a text
        is_sdxl = denoiser.config.get("addition_embed_type") == "text_time"
        specs = [spec for spec in specs if (spec.family == "sdxl") == is_sdxl]
    if not specs:
        raise UserError(f"a {type(pipe).__name__} cannot be edited; {SUPPORTED_MODELS}.")
    return specs[0]


def config_by_part(pipe: Any, spec: PipelineSpec) -> dict[str, Config]:
    """Return the configs of a pipeline's networks by component: diffusers has mappings, transformers objects."""
    networks = {part: network for part in spec.networks if (network := getattr(pipe, part, None)) is not None}
    return {part: network.config.to_dict() if hasattr(network.config, "to_dict") else network.config for part, network in networks.items()}
