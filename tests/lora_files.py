"""LoRA files of other people, and what they change in the tiny model."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model

from erasure.concept import Concept
from erasure.edits import apply_edits
from erasure.edits.external.external_edit import load_external
from erasure.families.parameters import canonical_name
from erasure.families.stable_diffusion import StableDiffusion

CAT = [Concept(name="cat", kind="object")]
Weights = dict[str, torch.Tensor]
ATTENTION = ["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"]


def factors_of(
    layers: dict[str, tuple[int, int]], rank: int = 2, spelling: tuple[str, str] = ("lora_B", "lora_A"), alpha: float = 0
) -> Weights:
    """A file with random factors of layers (O, I)."""
    torch.manual_seed(1)
    tensors: Weights = {}
    for name, (out, width) in layers.items():
        tensors |= {f"{name}.{spelling[0]}.weight": torch.randn(out, rank), f"{name}.{spelling[1]}.weight": torch.randn(rank, width)}
        tensors |= {f"{name}.alpha": torch.tensor(alpha)} if alpha else {}
    return tensors


def copy_weights(pipe: StableDiffusionPipeline) -> Weights:
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    return {f"{part}.{canonical_name(name)}": p.detach().clone() for part, module in parts.items() for name, p in module.named_parameters()}


def changes_between(before: Weights, after: Weights) -> Weights:
    return {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}


def our_changes(model: StableDiffusion, path: Path) -> Weights:
    before = copy_weights(model.pipe)
    with apply_edits(model, [load_external(model, str(path), CAT)]):
        return changes_between(before, copy_weights(model.pipe))


def save_peft_folder(pipe: StableDiffusionPipeline, part: str, config: LoraConfig, path: Path) -> None:
    torch.manual_seed(2)
    peft = get_peft_model(getattr(pipe, part), config)
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_" in name:
                p.normal_(0, 0.1)
    peft.save_pretrained(path)
