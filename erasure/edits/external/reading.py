"""Other people's erasures as edits: what they shipped, compared with the base parameter by parameter, so that it can be audited.

Read are diffusers folders and hub ids (a subfolder may follow), folders with one UNet or text encoder, PEFT adapters, LoRA files, state
dicts of some or all parameters of the UNet and the text encoder, and checkpoints in the original layout; safetensors only. Of a pipeline
the UNet and the text encoder count. Values are kept in fp16, as in every edit.
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
from erasure.edits.edit import RECORD, TENSORS
from erasure.edits.external.lora import adapter_config, factors, is_lora
from erasure.edits.external.networks import state, text_encoder, unet, whole
from erasure.errors import UserError
from erasure.families.base import Cost, DiffusionModel
from erasure.loading.addresses import is_hub_id
from erasure.loading.loader import SMALL, first_line, read_index
from erasure.loading.sources import files_of, folder_of, tensors_of
from erasure.loading.supported import check_configs, check_index, check_networks
from erasure.storage.run import read_json

ADAPTER, ADAPTER_WEIGHTS, LORA = "adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"
PEFT_PREFIX = "base_model.model."
READABLE = "a diffusers folder or hub id, a folder with a UNet, a text encoder or a PEFT adapter, a LoRA, or a .safetensors file"


def is_edit(path: str) -> bool:
    """Whether a path is an edit of this project, not an erasure made elsewhere."""
    place = Path(path)
    return (place / RECORD).is_file() or (place.name in (TENSORS, RECORD) and (place.parent / RECORD).is_file())


def foreign(model: DiffusionModel, source: str, concepts: Sequence[Concept]) -> Edit:
    """The erasure behind a path or hub id as an edit of `model`, which is its base.

    Args:
        concepts: what it is said to erase.

    Raises:
        UserError: nothing readable there, parameters that the base does not have, or an erasure that equals the base.
    """
    try:
        found = _read(model, source)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{source} cannot be read as an erasure: {first_line(error)}") from error
    tensors = _moved(model, source, found)
    return Edit(
        tensors,
        EditInfo(
            method="foreign",
            product="weights",
            fields={"source": Path(source).name},
            concepts=[concept.record() for concept in concepts],
            base={"source": model.source, "fingerprint": model.fingerprint(), "family": model.family, "after": []},
            seed=0,
            precision="fp16",
            versions={name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")},
            cost=Cost().record(),
            known=[],
            notes={},
        ),
    )


def _read(model: DiffusionModel, source: str) -> dict[str, Tensor]:
    """Values or factors by the names of erasure.edits.deltas."""
    path = Path(source).expanduser()
    if path.is_file():
        if (path.parent / ADAPTER).is_file() and path.name == ADAPTER_WEIGHTS:
            return _adapter(model, source, path, path.parent / ADAPTER)
        return _file(model, source, path)
    if not path.is_dir() and not is_hub_id(source):
        raise UserError(f"no erasure at {source}: expected an edit, or {READABLE}.")
    folder = folder_of(source, ("model_index.json", "config.json", ADAPTER))
    if (folder / "model_index.json").is_file():
        return _pipeline(model, source, folder)
    if (folder / ADAPTER).is_file():
        return _adapter(model, source, folder_of(source, (ADAPTER_WEIGHTS,)) / ADAPTER_WEIGHTS, folder / ADAPTER)
    if (folder / "config.json").is_file():
        return _network(model, source, read_json(folder / "config.json"))
    names = [name for name in files_of(source) if name.endswith(".safetensors")]
    name = LORA if LORA in names else names[0] if len(names) == 1 else ""
    if not name:
        raise UserError(f"no erasure at {source}: it has {len(names)} .safetensors files and no config; expected {READABLE}.")
    return _file(model, source, folder_of(source, (name,)) / name)


def _pipeline(model: DiffusionModel, source: str, folder: Path) -> dict[str, Tensor]:
    check_index(read_index(folder, source), source)
    folder = folder_of(source, SMALL)
    check_configs(folder, source)
    _same_schedule(model, source, read_json(folder / "scheduler" / "scheduler_config.json"))
    return {
        **whole(model, source, unet(tensors_of(source, "unet/")), "unet"),
        **whole(model, source, text_encoder(tensors_of(source, "text_encoder/")), "text_encoder"),
    }


def _same_schedule(model: DiffusionModel, source: str, config: dict[str, Any]) -> None:
    """Shapes alone do not tell a model that predicts noise from one that predicts velocity.

    Raises:
        UserError: a model that is sampled in another way than its base.
    """
    for setting, default in (("prediction_type", "epsilon"), ("rescale_betas_zero_snr", False)):
        there, here = (c.get(setting, default) for c in (config, model.pipe.scheduler.config))
        if there != here:
            raise UserError(
                f"{source} has {setting} {there!r} in its scheduler and {model.source} has {here!r}; give its own base with --model."
            )


def _network(model: DiffusionModel, source: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """A folder with one network: a UNet as diffusers saves it, or a CLIP text encoder as transformers does."""
    name, kind = config.get("_class_name", ""), config.get("model_type", "")
    if name == "UNet2DConditionModel":
        check_networks(config, {}, model.pipe.vae.config, source)
        return whole(model, source, unet(tensors_of(source)), "unet")
    if kind in ("clip", "clip_text_model"):
        tensors = {key: value for key, value in tensors_of(source).items() if not key.startswith(("vision_model.", "visual_projection."))}
        return whole(model, source, text_encoder(tensors), "text_encoder")
    raise UserError(f"{source} holds a {name or kind or 'model without a type'}; of single networks UNets and CLIP text encoders are read.")


def _file(model: DiffusionModel, source: str, path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise UserError(f"{source} is not a .safetensors file; pickled weights (.pt, .bin, .ckpt) are never loaded, convert them first.")
    tensors, header = load_file(path), _header(path)
    if not is_lora(tensors):
        return state(model, source, tensors)
    if LORA_ADAPTER_METADATA_KEY not in header and any(key.startswith(PEFT_PREFIX) for key in tensors):
        raise UserError(f"{source} is a PEFT adapter without its {ADAPTER}, which says how strongly it counts; put both into one folder.")
    said = json.loads(header[LORA_ADAPTER_METADATA_KEY]) if LORA_ADAPTER_METADATA_KEY in header else {}
    if not isinstance(said, dict):
        raise UserError(f"{LORA_ADAPTER_METADATA_KEY} in the header of {source} is not a JSON object.")
    parts = {key.partition(".")[0] for key in said}
    if strange := parts - model.modules.keys():
        raise UserError(
            f"{LORA_ADAPTER_METADATA_KEY} in the header of {source} is about {', '.join(sorted(strange))}, which {model.source} lacks."
        )
    configs = {part: {key.partition(".")[2]: value for key, value in said.items() if key.startswith(f"{part}.")} for part in parts}
    return factors(model, source, tensors, {part: adapter_config(config, source) for part, config in configs.items()}, header)


def _adapter(model: DiffusionModel, source: str, weights: Path, config: Path) -> dict[str, Tensor]:
    """A PEFT adapter: its config says nothing about the network it is for, the names of its layers do."""
    if not weights.is_file():
        raise UserError(
            f"{source} has {ADAPTER} and no {ADAPTER_WEIGHTS}; pickled adapters (.bin) are never loaded, save it as safetensors."
        )
    read = adapter_config(read_json(config), source)
    return factors(model, source, load_file(weights), dict.fromkeys(model.modules, read), _header(weights))


def _header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _moved(model: DiffusionModel, source: str, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """What differs from the base, in fp16."""
    base = model.parameters()
    if missing := sorted({key.partition("::")[0] for key in found} - base.keys()):
        raise UserError(
            f"{source} has {len(missing)} parameters that {model.source} lacks, such as {missing[0]!r}; give its own base with --model."
        )
    tensors = {}
    for key, value in found.items():
        half = value.to("cpu", torch.float16)
        if not half.isfinite().all():
            raise UserError(f"{source}: {key} holds NaN, Inf, or values that fp16 does not hold (above 65,504); it cannot be audited.")
        if key in base:
            here = base[key].detach()
            if here.shape != half.shape:
                raise UserError(
                    f"{source}: {key} is {tuple(half.shape)} there and {tuple(here.shape)} in {model.source}; give its own base."
                )
            if torch.equal(here.to("cpu", torch.float16), half):
                continue
        tensors[key] = half.contiguous()
    if not tensors:
        raise UserError(f"{source} equals {model.source} in every parameter; there is nothing to audit.")
    return tensors
