"""Models without weights: networks on the meta device, from configs alone, behind the same DiffusionModel as loaded ones."""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import nn

from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.pipelines import PIPELINES, PipelineSpec
from erasure.families.placement import set_vae_mode
from erasure.families.supported_models import check_configs, check_index, config_by_part, spec_of_pipeline
from erasure.loading.loader import FLOW_FOLDER, OMITTED_COMPONENTS, POCKET_FOLDER, network_class, open_pocket_flow, read_index
from erasure.loading.model_files import resolve_folder
from erasure.loading.pipeline_configs import CONFIG_FOLDER
from erasure.memory.gpu_kernels import GpuKernels
from erasure.storage.run import read_json

META = torch.device("meta")


@dataclass(frozen=True, kw_only=True)
class PipelineRecord:
    """What a pipeline without weights is built from.

    Attributes:
        pipeline: its class in diffusers.
        networks: configs by component, in the formats of diffusers and transformers.
        scheduler: config, with the class as `_class_name`.
        settings: of the pipeline itself, such as `is_distilled`.
    """

    pipeline: str
    networks: Mapping[str, Mapping[str, Any]]
    scheduler: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> PipelineSpec:
        return PIPELINES[self.pipeline]


def read_model(source: str, config_file: str = "") -> PipelineRecord:
    """Return the record of a model: from its file in families/configs where one is named, otherwise from its own configs.

    Raises:
        UserError: as `read_folder` and `read_pocket_flow`.
    """
    if config_file:
        return read_released(config_file)
    return read_pocket_flow() if source == "pocket-flow" else read_folder(source)


def read_released(file: str) -> PipelineRecord:
    """Return the record of a released model, from its file in families/configs."""
    content = json.loads((CONFIG_FOLDER / file).read_text(encoding="utf-8"))
    spec = PIPELINES[content["pipeline"]]
    networks = {part: content[part] for part in spec.networks if content.get(part)}
    return PipelineRecord(
        pipeline=content["pipeline"], networks=networks, scheduler=content["scheduler"], settings=content.get("settings", {})
    )


def read_folder(source: str) -> PipelineRecord:
    """Return the record of a diffusers folder, or of a hub id in the local cache; no weights are read or downloaded.

    Raises:
        UserError: no such folder, or a pipeline that is not supported.
    """
    path = str(POCKET_FOLDER) if source == "pocket" else source
    if Path(path).expanduser().is_file():
        raise UserError(f"{source} is one file, which holds no configs; name the model it was made from, such as sd15, or its folder.")
    folder = resolve_folder(path, ("model_index.json",))
    if not (folder / "model_index.json").is_file():
        raise UserError(f"{source} is not a diffusers pipeline: it has no model_index.json; give the folder that holds it.")
    index = read_index(folder, source)
    spec = check_index(index, source)
    folder = resolve_folder(path, spec.config_files)
    check_configs(folder, spec, source)
    present = [part for part in spec.networks if (index.get(part) or [None])[0] is not None]
    networks = {part: read_json(folder / part / "config.json") for part in present}
    scheduler = {"_class_name": index["scheduler"][1], **read_json(folder / "scheduler" / "scheduler_config.json")}
    settings = {name: value for name, value in index.items() if not name.startswith("_") and not isinstance(value, list)}
    return PipelineRecord(pipeline=index["_class_name"], networks=networks, scheduler=scheduler, settings=settings)


def build_skeleton(record: PipelineRecord, source: str, on_gpu: bool = True) -> DiffusionModel:
    """Return a model without weights. Its networks and what it computes have shapes, dtypes and names, but no values.

    Args:
        on_gpu: weights in the dtype of the family on a GPU and autocast in bf16; otherwise fp32, as on a CPU.

    Raises:
        UserError: configs that fit no supported model.
    """
    with META:
        pipe = assemble_pipeline(record, device=torch.device("cpu"))  # schedules have values, on the CPU
    return wrap_skeleton(pipe, record.spec, source, on_gpu)


def assemble_pipeline(record: PipelineRecord, device: torch.device | None = None) -> Any:
    """Return a pipeline whose networks are built on torch's default device and in its default dtype, with random weights if it has any.

    Its tokenizers make every text the same ids, so it is there to be measured.

    Args:
        device: what the pipeline takes for its own device; None: that of its networks.
    """
    spec = record.spec
    networks = {part: _build_network(spec.networks[part], config) for part, config in record.networks.items()}
    tokenizers = {part: BlankTokenizer(_context_of(part, record.networks)) for part in spec.tokenizers}
    absent = dict.fromkeys(part for part in spec.optional if part.replace("tokenizer", "text_encoder") not in networks)
    scheduler = getattr(diffusers, "DDIMScheduler" if spec.schedule == "diffusion" else "FlowMatchEulerDiscreteScheduler")
    pipeline_class = getattr(diffusers, record.pipeline)
    options = {**OMITTED_COMPONENTS, "add_watermarker": False, **record.settings}
    accepted = pipeline_class.__init__.__code__.co_varnames
    cls = type(record.pipeline, (pipeline_class,), {"device": device}) if device else pipeline_class
    with torch.device("cpu"):
        return cls(
            **networks,
            **{**tokenizers, **absent},
            scheduler=scheduler.from_config(dict(record.scheduler)),
            **{name: value for name, value in options.items() if name in accepted},
        )


def wrap_skeleton(pipe: Any, spec: PipelineSpec, source: str, on_gpu: bool = True, **options: Any) -> DiffusionModel:
    """Return the model around a pipeline whose networks are on the meta device.

    Args:
        options: of the model's class, such as `image_size`.
    """
    if on_gpu:
        for part in spec.networks:
            if (network := getattr(pipe, part)) is not None:
                _cast_weights(network, getattr(torch, spec.gpu_dtype))
    set_vae_mode(pipe.vae, "auto", torch.device("cuda" if on_gpu else "cpu"))
    model = spec.open(pipe, source, precision="bf16" if on_gpu else "fp32", attention="auto", **options)
    model.device = META
    # torch.autocast knows no meta device, and meta values cannot be compared
    replaced: dict[str, Any] = {
        "autocast": lambda: nullcontext() if model.compute_dtype is torch.float32 else GpuKernels(model.compute_dtype),
        "check_finite": lambda values, label: values,
    }
    vars(model).update(replaced)
    return model


def read_pocket_flow() -> PipelineRecord:
    """Return the record of pocket-flow, which is built by code and so small that it is simply loaded.

    Raises:
        UserError: it is not in this installation.
    """
    if not FLOW_FOLDER.is_dir():
        raise UserError("pocket-flow is not in this installation; use pocket, or another model of the list: erasure models.")
    pipe = open_pocket_flow(FLOW_FOLDER, torch.float32)
    networks = {part: dict(config) for part, config in config_by_part(pipe, spec_of_pipeline(pipe)).items()}
    return PipelineRecord(pipeline=type(pipe).__name__, networks=networks, scheduler=dict(pipe.scheduler.config))


def _build_network(class_name: str, config: Mapping[str, Any]) -> nn.Module:
    """Build a network on the default device; transformers keeps its configs in classes of their own."""
    cls = network_class(class_name)
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    network: nn.Module = cls.from_config(settings) if hasattr(cls, "from_config") else cls(cls.config_class(**settings))
    return network


def _cast_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Give a network the dtypes that it is loaded in: T5 keeps some layers in fp32, for fp16 overflows there."""
    kept = (getattr(network, "_keep_in_fp32_modules", None) or ()) if dtype is torch.float16 else ()
    for name, values in (*network.named_parameters(), *network.named_buffers()):
        if values.is_floating_point() and not set(kept) & set(name.split(".")):
            values.data = values.data.to(dtype)


def _context_of(tokenizer: str, networks: Mapping[str, Mapping[str, Any]]) -> int:
    """Return how many tokens the encoder beside a tokenizer reads; language models have no small limit of their own."""
    config = networks.get(tokenizer.replace("tokenizer", "text_encoder"), {})
    return int(config.get("max_position_embeddings", 512))


class BlankTokenizer:
    """Stands in for a tokenizer: every text becomes as many ids as are asked for, all of them 0."""

    added_tokens_encoder: Mapping[str, int] = {}
    all_special_ids = (0,)

    def __init__(self, context: int) -> None:
        self.model_max_length = context

    def __call__(self, texts: str | Sequence[str], max_length: int = 1, **options: Any) -> Any:
        if isinstance(texts, str):
            return SimpleNamespace(input_ids=[0])
        ids = torch.zeros(len(texts), max_length, dtype=torch.int64)
        return SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))

    def tokenize(self, text: str) -> list[str]:
        return [text]

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        return messages[0]["content"]
