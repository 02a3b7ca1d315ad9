"""A tiny model of every family beside Stable Diffusion 1.x and 2.x, random but fixed."""

from collections.abc import Callable

from erasure.families.base import DiffusionModel
from erasure.families.flux import Flux
from erasure.families.flux2_klein import Flux2Klein
from erasure.families.stable_diffusion_3 import StableDiffusion3
from erasure.families.stable_diffusion_xl import StableDiffusionXL
from tests import tiny_families, tiny_sd3

BUILD: dict[str, Callable[[], DiffusionModel]] = {
    "sdxl": lambda: StableDiffusionXL(tiny_families.sdxl(), "tiny", "fp32"),
    "sd3": lambda: StableDiffusion3(tiny_sd3.pipeline(), "tiny", "fp32", t5_length=16),
    "flux-dev": lambda: Flux(tiny_families.flux(), "tiny", "fp32", image_size=32, t5_length=24),
    "flux-schnell": lambda: Flux(tiny_families.flux(guidance_embeds=False), "tiny", "fp32", image_size=32, t5_length=24),
    "klein-base": lambda: Flux2Klein(tiny_families.klein(), "tiny", "fp32", image_size=32, text_length=96),
    "klein": lambda: Flux2Klein(tiny_families.klein(distilled=True), "tiny", "fp32", image_size=32, text_length=96),
}
