"""Export an edit as a LoRA file: low-rank factors of its changes, and how much of them they hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from erasure.config.choices import LoraLayout
from erasure.edits import Edit, apply_edits, deltas
from erasure.errors import UserError
from erasure.export.folder import ensure_empty_folder
from erasure.export.lora_file import LORA_FILE, build_lora_metadata, serialize_lora
from erasure.export.lora_names import Factors, check_layout, default_layout, describe_skipped_layers, name_factors
from erasure.families.base import DiffusionModel
from erasure.families.parameters import canonical_name
from erasure.families.pipelines import FAMILY_PIPELINES, SINGLE_FILE_PIPELINES
from erasure.storage.run import write_bytes

DEFAULT_RANK = 16  # of edits that are not low-rank factors already
# largest relative error that is not a failure: 96% of the squared norm is in the file; docs/results/exports.md has its effect on pocket
MAX_ERROR = 0.2
MIN_RANK = 2  # stable-diffusion.cpp divides alpha by the layer's width at rank 1, so such factors are padded with zeros
OVERSAMPLING, POWER_ITERATIONS = 16, 4  # of the randomized SVD; docs/results/exports.md compares its error with the exact SVD's


@dataclass(frozen=True, kw_only=True)
class LoraReport:
    """What a LoRA file holds of its edit."""

    included: int  # number of moved parameters that the file holds
    moved: int  # number of all moved parameters
    rank: int  # of every layer in the file
    error: float  # ||delta - lora||_F / ||delta||_F over all moved parameters, from the fp16 values in the file
    full_rank_error: float  # the same for a LoRA of full rank: the share of norms, biases and embeddings, which no LoRA holds
    notes: tuple[str, ...]  # why the rank differs from the requested one; what some programs skip
    whole: str  # the formats that hold all of the edit

    @property
    def is_faithful(self) -> bool:
        """Whether the error is at most `MAX_ERROR`."""
        return self.error <= MAX_ERROR

    @property
    def summary(self) -> str:
        """The figures in words."""
        return f"carries {self.included} of {self.moved} tensors, error {self.error:.2g} at rank {self.rank}"

    def describe(self) -> str:
        """Return the figures and, if too much is lost, what the maker of the LoRA can do."""
        if self.is_faithful:
            return self.summary
        higher = "" if self.full_rank_error > MAX_ERROR else "a higher --rank loses less; "
        return f"{self.summary} (more than {MAX_ERROR}); {higher}use --format {self.whole} for all of it"


def to_lora(
    model: DiffusionModel, edit: Edit, out: Path, rank: int | None = None, layout: LoraLayout | None = None, other_base: bool = False
) -> LoraReport:
    """Save the edit as pytorch_lora_weights.safetensors, fp16.

    Every moved matrix of a linear layer or convolution becomes its best approximation of rank `rank` (truncated SVD, on the model's
    device). Edits that are low-rank factors already (UCE) are written as they are, unless `rank` is smaller. All layers of a file have
    one rank, padded with zeros, because not every loader gives each layer a scale of 1 if ranks differ.

    Args:
        rank: None takes the rank of the edit's own factors, or 16.
        layout: "kohya" or "diffusers"; None takes the one of this family that most of diffusers and ComfyUI read
            (`erasure.export.lora_names`). The notes of the report say what some programs skip.

    Raises:
        UserError: a rank below 1 or above that of every layer, an edit that changes no matrix of a layer, that is not a weights edit, or
            that was made on top of other edits or on another base; a layout that no program reads; a folder that is not empty.
    """
    layout = layout or default_layout(model.family)
    check_layout(model.family, layout)
    if rank is not None and rank < 1:
        raise UserError(f"--rank must be at least 1, got {rank}.")
    if edit.info.product != "weights":
        raise UserError(f"{edit.name} is a {edit.info.product} edit; it has no weights that a LoRA could hold.")
    if edit.after:
        raise UserError(f"{edit.name} was made on top of other edits ({', '.join(edit.after)}); a LoRA of it alone would mean nothing.")
    with apply_edits(model, [edit], other_base):  # raises for another base
        pass
    layer_names = sorted(edit.moved_parameters() & lora_targets_of(model))
    if not layer_names:
        raise UserError("this edit moves no matrix of a linear layer or convolution, so there is nothing a LoRA could hold.")
    parameters = model.parameters()
    max_rank = max(min(parameters[name].flatten(1).shape) for name in layer_names)
    if rank is not None and rank > max_rank:
        raise UserError(f"--rank {rank} is more than any layer of this edit can have; give at most {max_rank}.")
    ensure_empty_folder(out)
    factors, notes = factorize({name: parameters[name] for name in layer_names}, edit, rank)
    report = measure_lora(parameters, edit, factors, (*notes, *describe_skipped_layers(factors, layout, model)))
    figures = {f"erasure.{key}": str(getattr(report, key)) for key in ("included", "moved", "error", "full_rank_error", "whole")}
    tensors = name_factors(factors, layout, model)
    write_bytes(out / LORA_FILE, serialize_lora(tensors, {**build_lora_metadata(model, edit, report.rank, layout), **figures}))
    return report


def read_lora_report(folder: Path) -> LoraReport:
    """Read the figures of an exported LoRA from its metadata; without notes."""
    with safe_open(folder / LORA_FILE, "pt") as file:
        fields = file.metadata()
    return LoraReport(
        included=int(fields["erasure.included"]),
        moved=int(fields["erasure.moved"]),
        rank=int(fields["ss_network_dim"]),
        error=float(fields["erasure.error"]),
        full_rank_error=float(fields["erasure.full_rank_error"]),
        notes=(),
        whole=fields["erasure.whole"],
    )


def lora_targets_of(model: DiffusionModel) -> set[str]:
    """Return the parameters that a LoRA can hold: weights of linear layers and plain convolutions, not of embeddings or norms."""
    return {
        f"{part}.{canonical_name(name)}.weight"
        for part, network in model.networks.items()
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    }


def delta_of(edit: Edit, name: str, parameter: Tensor) -> Tensor:
    """Return what the edit adds to a parameter of the base, in its shape, in fp32 on its device."""
    original = parameter.detach().float()
    if factors := deltas.factors_of(edit.tensors, name):  # their product, without the rounding of adding and subtracting the base
        up, down = (factor.to(original.device) for factor in factors)
        return (up.flatten(1) @ down.flatten(1)).reshape(original.shape)
    return deltas.apply_delta(edit.tensors, name, original).float() - original


def factorize(weights: Mapping[str, Tensor], edit: Edit, rank: int | None) -> tuple[Factors, list[str]]:
    """Return fp16 factors of one rank for all these weights of the base, and notes on why it is not the requested rank."""
    factors: Factors = {}
    for name, weight in weights.items():
        existing = deltas.factors_of(edit.tensors, name)
        if existing and (rank is None or len(existing[1]) <= rank):
            factors[name] = existing
        else:
            factors[name] = truncated_svd(delta_of(edit, name, weight), rank or DEFAULT_RANK)
    max_rank = max(len(down) for _, down in factors.values())
    padded_rank = max(max_rank, MIN_RANK)
    notes = []
    if rank is not None and max_rank < rank:
        notes.append(f"rank {rank} was asked for; this edit has rank {max_rank}, more would be zeros")
    if padded_rank > max_rank:
        notes.append(f"rank {max_rank} is padded to {padded_rank} with zeros, because stable-diffusion.cpp misreads alpha at rank 1")
    return {name: pad_factors(up.half(), down.half(), padded_rank) for name, (up, down) in factors.items()}, notes


def pad_factors(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Pad up (O, r, ...) and down (r, ...) with zeros to a rank; their product stays the same."""
    extra = rank - len(down)
    return torch.cat((up, up.new_zeros(len(up), extra, *up.shape[2:])), 1), torch.cat((down, down.new_zeros(extra, *down.shape[1:])))


def measure_lora(base: Mapping[str, Tensor], edit: Edit, factors: Factors, notes: tuple[str, ...]) -> LoraReport:
    """Measure over all moved parameters, relative to the norm of the edit, what the factors miss and what no factors could hold."""
    total, missed, not_targeted = 0.0, 0.0, 0.0
    for name in sorted(edit.moved_parameters()):
        delta = delta_of(edit, name, base[name])
        total += delta.double().square().sum().item()
        if name in factors:
            up, down = (factor.float().to(delta.device) for factor in factors[name])
            delta = delta - (up.flatten(1) @ down.flatten(1)).reshape(delta.shape)
        else:
            not_targeted += delta.double().square().sum().item()
        missed += delta.double().square().sum().item()
    squared_norm = max(total, 1e-30)
    rank = max(len(down) for _, down in factors.values())
    return LoraReport(
        included=len(factors),
        moved=len(edit.moved_parameters()),
        rank=rank,
        error=(missed / squared_norm) ** 0.5,
        full_rank_error=(not_targeted / squared_norm) ** 0.5,
        notes=notes,
        whole="checkpoint or folder" if FAMILY_PIPELINES[edit.info.base["family"]] in SINGLE_FILE_PIPELINES else "folder",
    )


def truncated_svd(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return rank-r factors (up, down) of a matrix (O, I) or convolution (O, I, k, k): (O, r) and (r, I), or (O, r, 1, 1) and (r, I, k, k).

    The SVD is exact unless the rank is far below the shorter side; then it is randomized with power iterations (Halko, Martinsson and
    Tropp, arXiv:0909.4061, algorithm 4.4), from a fixed seed.
    """
    matrix = delta.flatten(1)
    if rank + OVERSAMPLING <= min(matrix.shape) // 4:
        with torch.random.fork_rng([matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(matrix, rank + OVERSAMPLING, POWER_ITERATIONS)
            v = v.T
    else:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    up, down = u[:, :rank] * root, root[:, None] * v[:rank]
    if delta.ndim == 4:
        up, down = up[..., None, None], down.reshape(-1, *delta.shape[1:])
    return up.contiguous(), down.contiguous()
