"""An edit as a LoRA file: low-rank factors of what moved, and how much of it they keep."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from erasure.config.choices import Layout
from erasure.edits import Edit, applied
from erasure.edits import deltas as forms
from erasure.errors import UserError
from erasure.export.folder import make_empty
from erasure.export.lora_file import FILE, Factors, metadata, named, serialized, skipped
from erasure.families.base import DiffusionModel, canonical
from erasure.storage.run import write_bytes

RANK = 16  # of edits that are not low-rank factors already
BOUND = 0.2  # largest relative error that is not a failure: 96 % of the squared norm is there; docs/exports.md has what it does on pocket
LEAST = 2  # stable-diffusion.cpp divides alpha by the layer's width at rank 1, so such factors get a row of zeros
OVERSAMPLING, POWER_ITERATIONS = 16, 4  # of the randomized SVD; docs/exports.md has its error beside the exact one's


@dataclass(frozen=True, kw_only=True)
class LoraReport:
    """What a LoRA file holds of its edit."""

    carried: int  # moved parameters that the file holds
    moved: int  # all moved parameters
    rank: int  # of every layer in the file
    error: float  # ||delta - lora||_F / ||delta||_F over all moved parameters, from the fp16 values in the file
    beyond: float  # the same for a LoRA of full rank: the share of norms, biases and embeddings, which no LoRA holds
    notes: tuple[str, ...]  # why the rank is another than was asked for; what some programs skip

    @property
    def faithful(self) -> bool:
        return self.error <= BOUND

    def sentence(self) -> str:
        """Figures and, where too much is lost, the way out."""
        kept = f"carries {self.carried} of {self.moved} tensors, error {self.error:.2g} at rank {self.rank}"
        if self.faithful:
            return kept
        higher = "" if self.beyond > BOUND else "a higher --rank loses less; "
        return f"{kept} (more than {BOUND}); {higher}use --as checkpoint for all of it"


def to_lora(
    model: DiffusionModel, edit: Edit, out: Path, rank: int | None = None, layout: Layout = "kohya", other_base: bool = False
) -> LoraReport:
    """Save the edit as pytorch_lora_weights.safetensors, fp16.

    Every moved matrix of a linear layer or convolution becomes its best approximation of rank `rank` (truncated SVD, on the model's
    device). Edits that are low-rank factors already (UCE) are written as they are, unless `rank` is smaller. All layers of a file have
    one rank, padded with zeros, because not every loader keeps a scale of 1 for each layer where ranks differ.

    Args:
        rank: None takes the edit's own rank, or 16.
        layout: "kohya" for ComfyUI, A1111, kohya's tools, stable-diffusion.cpp and diffusers; "diffusers" for that and PEFT.

    Raises:
        UserError: a rank below 1 or above that of every layer, an edit without a layer's matrix, of guidance, on another edit or base.
    """
    if rank is not None and rank < 1:
        raise UserError(f"--rank must be at least 1, got {rank}.")
    if edit.info.product != "weights":
        raise UserError(f"{edit.name} is a {edit.info.product} edit; it has no weights that a LoRA could hold.")
    if edit.after:
        raise UserError(f"{edit.name} was made on top of other edits ({', '.join(edit.after)}); a LoRA of it alone would mean nothing.")
    with applied(model, [edit], other_base):  # complains about another base
        pass
    held = sorted(edit.moved() & layer_weights(model))
    if not held:
        raise UserError("this edit moves no matrix of a linear layer or convolution, so there is nothing a LoRA could hold.")
    widest = max(min(model.parameters()[name].flatten(1).shape) for name in held)
    if rank is not None and rank > widest:
        raise UserError(f"--rank {rank} is more than any layer of this edit can have; give at most {widest}.")
    make_empty(out)
    factors, notes = factorized(model, edit, held, rank)
    report = measured(model, edit, factors, (*notes, *skipped(factors, layout, model.family)))
    figures = {f"erasure.{key}": str(getattr(report, key)) for key in ("carried", "moved", "error", "beyond")}
    tensors = named(factors, layout)
    write_bytes(out / FILE, serialized(tensors, {**metadata(model, edit, report.rank, layout), **figures}))
    return report


def read_report(folder: Path) -> LoraReport:
    """The figures of an exported LoRA, from its metadata."""
    with safe_open(folder / FILE, "pt") as file:
        found = file.metadata()
    return LoraReport(
        carried=int(found["erasure.carried"]),
        moved=int(found["erasure.moved"]),
        rank=int(found["ss_network_dim"]),
        error=float(found["erasure.error"]),
        beyond=float(found["erasure.beyond"]),
        notes=(),
    )


def layer_weights(model: DiffusionModel) -> set[str]:
    """The parameters that a LoRA can hold: weights of linear layers and plain convolutions, not of embeddings or norms."""
    return {
        f"{part}.{canonical(name)}.weight"
        for part, network in model.modules.items()
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    }


def moved_by(model: DiffusionModel, edit: Edit, name: str) -> Tensor:
    """What the edit adds to a parameter, in fp32 on the model's device."""
    original = model.parameters()[name].detach().float()
    if factors := forms.low_rank(edit.tensors, name):  # their product, without the rounding of adding it to the base and taking that off
        up, down = (factor.to(original.device) for factor in factors)
        return (up.flatten(1) @ down.flatten(1)).reshape(original.shape)
    return forms.new(edit.tensors, name, original).float() - original


def factorized(model: DiffusionModel, edit: Edit, names: list[str], rank: int | None) -> tuple[Factors, list[str]]:
    """fp16 factors of one rank for all layers, and why it is not the one asked for."""
    found: Factors = {}
    for name in names:
        own = forms.low_rank(edit.tensors, name)
        if own and (rank is None or len(own[1]) <= rank):
            found[name] = own
        else:
            found[name] = low_rank(moved_by(model, edit, name), rank or RANK)
    widest = max(len(down) for _, down in found.values())
    size = max(widest, LEAST)
    notes = []
    if rank is not None and widest < rank:
        notes.append(f"rank {rank} was asked for; this edit has rank {widest}, more would be zeros")
    if size > widest:
        notes.append(f"rank {widest} is padded to {size} with zeros, because stable-diffusion.cpp misreads alpha at rank 1")
    return {name: padded(up.half(), down.half(), size) for name, (up, down) in found.items()}, notes


def padded(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors with columns and rows of zeros up to a rank; their product stays."""
    missing = rank - len(down)
    return torch.cat((up, up.new_zeros(len(up), missing, *up.shape[2:])), 1), torch.cat((down, down.new_zeros(missing, *down.shape[1:])))


def measured(model: DiffusionModel, edit: Edit, factors: Factors, notes: tuple[str, ...]) -> LoraReport:
    """Norms over all moved parameters: of the edit, of what the factors miss, and of what no factors could hold."""
    total, missed, beyond = 0.0, 0.0, 0.0
    for name in sorted(edit.moved()):
        delta = moved_by(model, edit, name)
        total += delta.double().square().sum().item()
        if name in factors:
            up, down = (factor.float().to(delta.device) for factor in factors[name])
            delta = delta - (up.flatten(1) @ down.flatten(1)).reshape(delta.shape)
        else:
            beyond += delta.double().square().sum().item()
        missed += delta.double().square().sum().item()
    share = max(total, 1e-30)
    rank = max(len(down) for _, down in factors.values())
    return LoraReport(
        carried=len(factors), moved=len(edit.moved()), rank=rank, error=(missed / share) ** 0.5, beyond=(beyond / share) ** 0.5, notes=notes
    )


def low_rank(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Rank-r factors (up, down) of a matrix (O, I) or convolution (O, I, k, k): (O, r) and (r, I), or (O, r, 1, 1) and (r, I, k, k).

    Exact SVD where the rank is not far below the shorter side, else the randomized one with power iterations (Halko, Martinsson and
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
