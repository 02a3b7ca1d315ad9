"""What families with a UNet share: regions, attention kernels and the size of latents."""

from typing import Any, get_args

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from erasure.config.choices import Attention
from erasure.errors import UserError, unknown_value_error


def in_unet_region(name: str, region: str) -> bool:
    """Return whether a parameter of the UNet, by its full name, belongs to a region.

    noxattn leaves out the time embedding and the output head, as the ESD authors' first code does (arXiv:2303.07345).
    """
    if not name.startswith("unet."):
        return False
    match region:
        case "xattn":
            return ".attn2." in name
        case "xattn-kv":
            return ".attn2.to_k." in name or ".attn2.to_v." in name
        case "text-proj":
            return name.startswith("unet.add_embedding.")
        case "noxattn":
            return ".attn2." not in name and not name.startswith(("unet.time_embedding.", "unet.conv_out.", "unet.conv_norm_out."))
        case "selfattn":
            return ".attn1." in name
        case "ff-out":
            return ".ff.net.2." in name
        case _:
            return region == "full"


def set_unet_attention(unet: Any, attention: Attention, training: bool, device: torch.device) -> None:
    """Install an attention kernel; "auto" depends on whether gradients will flow through it.

    Raises:
        UserError: an unknown kernel, or one that does not run on this device.
    """
    if attention == "auto":
        # on a CPU the backward pass of fused attention is slower than that of plain attention at small resolutions
        attention = "eager" if training and device.type == "cpu" else "sdpa"
    match attention:
        case "sdpa":
            unet.set_attn_processor(AttnProcessor2_0())
        case "eager":
            unet.set_attn_processor(AttnProcessor())
        case "xformers":
            if device.type != "cuda":
                raise UserError(f"--attention xformers needs a CUDA device, this is {device.type!r}; use sdpa or eager.")
            unet.enable_xformers_memory_efficient_attention()
        case _:
            raise unknown_value_error("attention", attention, get_args(Attention))


def latent_size(pipe: Any, source: str) -> tuple[int, int]:
    """Return height and width of a latent, from the UNet's config or else from the VAE's.

    Raises:
        UserError: neither config gives a usable size.
    """
    sample_size, image_size = pipe.unet.config.sample_size, pipe.vae.config.sample_size
    factor = vae_factor(pipe)
    if sample_size is None and image_size is not None:
        sample_size = [side // factor for side in image_size] if isinstance(image_size, list | tuple) else image_size // factor
    height, width = sample_size if isinstance(sample_size, list | tuple) and len(sample_size) == 2 else (sample_size, sample_size)
    if not all(isinstance(side, int) and side > 0 for side in (height, width)):
        raise UserError(
            f"{source} has the sample_size {sample_size!r} in unet/config.json; it must be a size in latent pixels, or [height, width]."
        )
    return height, width


def vae_factor(pipe: Any) -> int:
    """Return how many pixels one latent pixel is wide."""
    return int(2 ** (len(pipe.vae.config.block_out_channels) - 1))
