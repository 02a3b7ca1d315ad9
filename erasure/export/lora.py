"""An edit as a LoRA file."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from erasure import forms
from erasure.edit import Edit, applied
from erasure.errors import UserError
from erasure.export.folder import make_empty
from erasure.families.base import DiffusionModel

LAYER = ".weight"


def to_lora(model: DiffusionModel, edit: Edit, out: Path, rank: int, other_base: bool = False) -> float:
    """Save the edit as pytorch_lora_weights.safetensors, which `pipe.load_lora_weights(out)` reads.

    Every moved weight matrix or convolution is replaced by its best rank-`rank` approximation (truncated SVD); edits that are low-rank
    factors already (UCE) are written as they are, whatever `rank` says.

    Returns:
        The relative error ||delta - lora||_F / ||delta||_F over all moved parameters, biases and norms included (a LoRA cannot hold them).

    Raises:
        UserError: an edit of the text encoder, a rank below 1, an edit without any weight matrix or made on top of another.
    """
    if rank < 1:
        raise UserError(f"--rank must be at least 1, got {rank}.")
    if any(name.startswith("text_encoder.") for name in edit.tensors):
        raise UserError("this edit moves the text encoder, which LoRA export does not cover; export a diffusers folder with --as folder.")
    if edit.info.product != "weights":
        raise UserError(f"{edit.name} is a {edit.info.product} edit; it has no weights that a LoRA could hold.")
    make_empty(out)
    if edit.after:
        raise UserError(f"{edit.name} was made on top of other edits ({', '.join(edit.after)}); a LoRA of it alone would mean nothing.")
    with applied(model, [edit], other_base):  # complains about another base
        pass
    factors: dict[str, Tensor] = {}
    missed, total = 0.0, 0.0
    base = model.parameters()
    for name in sorted(edit.moved()):
        original = base[name].detach().float().cpu()
        delta = forms.new(edit.tensors, name, original).float() - original
        total += delta.square().sum().item()
        if name.endswith(LAYER) and delta.ndim in (2, 4):
            up, down = forms.low_rank(edit.tensors, name) or low_rank(delta, rank)
            factors[f"{name.removeprefix('unet.').removesuffix(LAYER)}.lora_A.weight"] = down
            factors[f"{name.removeprefix('unet.').removesuffix(LAYER)}.lora_B.weight"] = up
            delta = delta - (up.flatten(1) @ down.flatten(1)).reshape(delta.shape)
        missed += delta.square().sum().item()
    if not factors:
        raise UserError("this edit moves no weight matrix, so there is nothing a LoRA could hold.")
    StableDiffusionPipeline.save_lora_weights(out, unet_lora_layers=factors, safe_serialization=True)
    return float((missed / max(total, 1e-30)) ** 0.5)


def low_rank(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Best rank-r factors (up, down) of a matrix (O, I) or convolution (O, I, k, k); their product is the approximation."""
    u, s, v = torch.linalg.svd(delta.flatten(1), full_matrices=False)
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    up, down = u[:, :rank] * root, root[:, None] * v[:rank]
    if delta.ndim == 4:
        up, down = up[..., None, None], down.reshape(rank, *delta.shape[1:])
    return up.contiguous(), down.contiguous()
