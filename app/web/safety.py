"""Stable Diffusion's safety checker, for public pages. It is off in every measurement."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor
from transformers import CLIPImageProcessor

from erasure.errors import UserError

SafetyChecker = Callable[[Tensor], list[bool]]  # images [B, 3, H, W] uint8 -> whether to hide each


def load_safety_checker(source: str) -> SafetyChecker:
    """Load a checker from a hub id or folder, such as CompVis/stable-diffusion-safety-checker; safetensors only.

    Raises:
        UserError: It cannot be loaded. A public page must not run without the requested checker.
    """
    try:
        network: Any = StableDiffusionSafetyChecker.from_pretrained(source, use_safetensors=True)  # diffusers has no types for it
        network.eval()
        processor = CLIPImageProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(f"--safety-checker {source} cannot be loaded: {str(error).splitlines()[0]}") from error

    @torch.no_grad()
    def check(images: Tensor) -> list[bool]:
        arrays = [image.permute(1, 2, 0).numpy() for image in images]
        pixels = processor(arrays, return_tensors="pt").pixel_values
        _, flags = network(images=[a.copy() for a in arrays], clip_input=pixels)
        return [bool(f) for f in flags]

    return check
