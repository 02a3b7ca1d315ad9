"""External erasures as edits, so that they can be audited: what was published, compared with the base parameter by parameter.

The formats are diffusers folders and hub ids (a subfolder may follow), folders with one UNet or text encoder, PEFT adapters, LoRA files,
state dicts of some or all parameters of the UNet and the text encoder, and checkpoints in the original layout; safetensors only. Of a
pipeline, only the UNet and the text encoder are read. Values are stored in fp16, as in every edit.
"""

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from erasure.concept import Concept
from erasure.edits import Edit, EditInfo
from erasure.edits.external.adapter_config import parse_adapter_config
from erasure.edits.external.lora import read_factors
from erasure.edits.external.lora_families import check_family
from erasure.edits.external.lora_keys import has_adapter_keys
from erasure.edits.external.state_dicts import check_whole_network, convert_state_dict, name_network_tensors
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.cost import Cost
from erasure.families.supported_models import check_configs, check_index, check_networks, config_by_part, spec_of_pipeline
from erasure.loading.loader import first_line_of, read_index
from erasure.loading.model_files import list_model_files, load_component, resolve_folder
from erasure.loading.model_source import is_hub_id
from erasure.storage.run import read_json

ADAPTER_CONFIG, ADAPTER_WEIGHTS, LORA_FILE = "adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"
PEFT_PREFIX = "base_model.model."
READABLE = "a diffusers folder or hub id, a folder with a UNet, a text encoder or a PEFT adapter, a LoRA, or a .safetensors file"


def load_external(model: DiffusionModel, source: str, concepts: Sequence[Concept]) -> Edit:
    """Return the erasure behind a path or hub id as an edit of `model`, its base.

    Args:
        concepts: what it is meant to erase.

    Raises:
        UserError: nothing readable there, parameters that the base does not have, or an erasure that equals the base.
    """
    try:
        values = _read_values(model, source)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{source} cannot be read as an erasure: {first_line_of(error)}") from error
    tensors = _select_moved(model, source, values)
    return Edit(
        tensors,
        EditInfo(
            method="external",
            product="weights",
            fields={"source": Path(source).name},
            concepts=[concept.to_dict() for concept in concepts],
            base={"source": model.source, "fingerprint": model.fingerprint(), "family": model.family, "after": []},
            seed=0,
            precision="fp16",
            versions={name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")},
            cost=Cost().to_dict(),
            concept_checks=[],
            notes={},
        ),
    )


def _read_values(model: DiffusionModel, source: str) -> dict[str, Tensor]:
    """Read values or factors, by the names of erasure.edits.deltas."""
    path = Path(source).expanduser()
    if path.is_file():
        if (path.parent / ADAPTER_CONFIG).is_file() and path.name == ADAPTER_WEIGHTS:
            return _read_adapter(model, source, path, path.parent / ADAPTER_CONFIG)
        return _read_file(model, source, path)
    if not path.is_dir() and not is_hub_id(source):
        raise UserError(f"no erasure at {source}: expected an edit, or {READABLE}.")
    folder = resolve_folder(source, ("model_index.json", "config.json", ADAPTER_CONFIG))
    if (folder / "model_index.json").is_file():
        return _read_pipeline(model, source, folder)
    if (folder / ADAPTER_CONFIG).is_file():
        return _read_adapter(model, source, resolve_folder(source, (ADAPTER_WEIGHTS,)) / ADAPTER_WEIGHTS, folder / ADAPTER_CONFIG)
    if (folder / "config.json").is_file():
        return _read_network(model, source, read_json(folder / "config.json"))
    names = [name for name in list_model_files(source) if name.endswith(".safetensors")]
    name = LORA_FILE if LORA_FILE in names else names[0] if len(names) == 1 else ""
    if not name:
        raise UserError(f"no erasure at {source}: it has {len(names)} .safetensors files and no config; expected {READABLE}.")
    return _read_file(model, source, resolve_folder(source, (name,)) / name)


def _read_pipeline(model: DiffusionModel, source: str, folder: Path) -> dict[str, Tensor]:
    spec, base = check_index(read_index(folder, source), source), spec_of_pipeline(model.pipe)
    if spec != base:
        raise UserError(f"{source} is a {spec.models} model and {model.source} is one of {base.models}; give its own base with --model.")
    folder = resolve_folder(source, spec.config_files)
    check_configs(folder, spec, source)
    _check_same_schedule(model, source, read_json(folder / "scheduler" / "scheduler_config.json"))
    values: dict[str, Tensor] = {}
    for part in model.networks:
        values |= check_whole_network(model, source, name_network_tensors(model, load_component(source, f"{part}/"), part), part)
    return values


def _check_same_schedule(model: DiffusionModel, source: str, config: dict[str, Any]) -> None:
    """Check that a pipeline is sampled like its base: shapes alone do not tell noise prediction from velocity prediction.

    Raises:
        UserError: another prediction type, or only one of the two has zero terminal SNR.
    """
    for setting, default in (("prediction_type", "epsilon"), ("rescale_betas_zero_snr", False)):
        external_value, base_value = (c.get(setting, default) for c in (config, model.pipe.scheduler.config))
        if external_value != base_value:
            raise UserError(
                f"{source} has {setting} {external_value!r} in its scheduler and {model.source} has {base_value!r}; "
                "give its own base with --model."
            )


def _read_network(model: DiffusionModel, source: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """Read a folder with one network: a denoiser as diffusers saves it, or a CLIP text encoder as transformers does."""
    name, kind, spec = config.get("_class_name", ""), config.get("model_type", ""), spec_of_pipeline(model.pipe)
    if name == spec.networks[spec.denoiser]:
        check_networks(spec, {**config_by_part(model.pipe, spec), spec.denoiser: config}, source)
        return check_whole_network(model, source, name_network_tensors(model, load_component(source), spec.denoiser), spec.denoiser)
    if kind in ("clip", "clip_text_model"):
        tensors = {
            key: value for key, value in load_component(source).items() if not key.startswith(("vision_model.", "visual_projection."))
        }
        part = _text_encoder_like(model, config)
        return check_whole_network(model, source, name_network_tensors(model, tensors, part), part)
    raise UserError(
        f"{source} holds a {name or kind or 'model without a type'}; of single networks, only a {spec.networks[spec.denoiser]} and CLIP "
        "text encoders can be read."
    )


def _text_encoder_like(model: DiffusionModel, config: dict[str, Any]) -> str:
    """Return which text encoder of the base has the width of a config; the first if none has, so that shapes tell what differs."""
    width = config.get("text_config", config).get("hidden_size")
    parts = [part for part in model.networks if part.startswith("text_encoder")]
    return next((part for part in parts if getattr(model.pipe, part).config.hidden_size == width), "text_encoder")


def _read_file(model: DiffusionModel, source: str, path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise UserError(f"{source} is not a .safetensors file; pickled weights (.pt, .bin, .ckpt) are never loaded, convert them first.")
    tensors, header = load_file(path), _read_header(path)
    if not has_adapter_keys(model, tensors):
        return convert_state_dict(model, source, tensors)
    check_family(model, source, tensors, header)
    if LORA_ADAPTER_METADATA_KEY not in header and any(key.startswith(PEFT_PREFIX) for key in tensors):
        raise UserError(f"{source} is a PEFT adapter without its {ADAPTER_CONFIG}, which holds its scale; put both into one folder.")
    adapter_metadata = json.loads(header[LORA_ADAPTER_METADATA_KEY]) if LORA_ADAPTER_METADATA_KEY in header else {}
    if not isinstance(adapter_metadata, dict):
        raise UserError(f"{LORA_ADAPTER_METADATA_KEY} in the header of {source} is not a JSON object.")
    parts = {key.partition(".")[0] for key in adapter_metadata}
    if unknown_parts := parts - model.networks.keys():
        raise UserError(
            f"{LORA_ADAPTER_METADATA_KEY} in the header of {source} is about {', '.join(sorted(unknown_parts))}, "
            f"which {model.source} lacks."
        )
    configs = {
        part: {key.partition(".")[2]: value for key, value in adapter_metadata.items() if key.startswith(f"{part}.")} for part in parts
    }
    return read_factors(model, source, tensors, {part: parse_adapter_config(config, source) for part, config in configs.items()}, header)


def _read_adapter(model: DiffusionModel, source: str, weights: Path, config: Path) -> dict[str, Tensor]:
    """Read a PEFT adapter. Its config does not say for which network it is; the names of its layers do."""
    if not weights.is_file():
        raise UserError(
            f"{source} has {ADAPTER_CONFIG} and no {ADAPTER_WEIGHTS}; pickled adapters (.bin) are never loaded, save it as safetensors."
        )
    parsed_config, tensors, header = parse_adapter_config(read_json(config), source), load_file(weights), _read_header(weights)
    check_family(model, source, tensors, header)
    return read_factors(model, source, tensors, dict.fromkeys(model.networks, parsed_config), header)


def _read_header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _select_moved(model: DiffusionModel, source: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what differs from the base, in fp16 on the CPU."""
    base = model.parameters()
    if missing := sorted({key.partition("::")[0] for key in values} - base.keys()):
        raise UserError(
            f"{source} has {len(missing)} parameters that {model.source} lacks, such as {missing[0]!r}; give its own base with --model."
        )
    tensors = {}
    for key, value in values.items():
        half = value.to("cpu", torch.float16)
        if not half.isfinite().all():
            raise UserError(f"{source}: {key} holds NaN, Inf, or values that fp16 does not hold (above 65,504); it cannot be audited.")
        if key in base:
            base_value = base[key].detach()
            if base_value.shape != half.shape:
                raise UserError(
                    f"{source}: {key} is {tuple(half.shape)} there and {tuple(base_value.shape)} in {model.source}; give its own base."
                )
            if torch.equal(base_value.to("cpu", torch.float16), half):
                continue
        tensors[key] = half.contiguous()
    if not tensors:
        raise UserError(f"{source} equals {model.source} in every parameter; there is nothing to audit.")
    return tensors
