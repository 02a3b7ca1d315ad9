"""Stable Diffusion's safety checker, for pages that strangers see. It is off in every measurement."""

from collections.abc import Callable

import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from torch import Tensor
from transformers import CLIPImageProcessor

from erasure.errors import UserError

SafetyChecker = Callable[[Tensor], list[bool]]  # pictures (N, 3, H, W) uint8 -> whether each is to be hidden


def load_safety_checker(source: str) -> SafetyChecker:
    """A checker from a hub id or folder, such as CompVis/stable-diffusion-safety-checker; safetensors only.

    Raises:
        UserError: it cannot be loaded. A public page must not run without the checker that was asked for.
    """
    try:
        network = StableDiffusionSafetyChecker.from_pretrained(source, use_safetensors=True).eval()
        processor = CLIPImageProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(f"--safety-checker {source} cannot be loaded: {str(error).splitlines()[0]}") from error

    @torch.no_grad()
    def check(pictures: Tensor) -> list[bool]:
        arrays = [picture.permute(1, 2, 0).numpy() for picture in pictures]
        pixels = processor(arrays, return_tensors="pt").pixel_values
        _, flags = network(images=[a.copy() for a in arrays], clip_input=pixels)
        return [bool(f) for f in flags]

    return check
