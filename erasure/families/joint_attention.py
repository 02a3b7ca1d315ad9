"""What transformers with joint attention share: the names of their layers, the region of each, and patches of latents."""

from typing import get_args

from torch import Tensor

from erasure.config.choices import Attention
from erasure.errors import UserError, unknown_value_error
from erasure.families.conditioning import ConditioningPart

TEXT_ATTENTION = (".add_q_proj.", ".add_k_proj.", ".add_v_proj.", ".to_add_out.", ".norm_added_q.", ".norm_added_k.")
IMAGE_ATTENTION = (".to_q.", ".to_k.", ".to_v.", ".to_out.", ".norm_q.", ".norm_k.")
TEXT_PROJECTIONS = ("transformer.context_embedder.", "transformer.time_text_embed.text_embedder.")
OUTPUT_HEAD = (
    "transformer.norm_out.",
    "transformer.proj_out.",
    "transformer.time_text_embed.timestep_embedder.",
    "transformer.time_guidance_embed.timestep_embedder.",
)
CONTEXT_EMBEDDER = "transformer.context_embedder.weight"
TEXT_INPUTS: dict[str, ConditioningPart] = {  # the weights that read a conditioning itself
    CONTEXT_EMBEDDER: "sequence",
    "transformer.time_text_embed.text_embedder.linear_1.weight": "pooled",
}
# the last layers of feed-forward networks; single blocks have one matrix for attention and feed-forward together
FEED_FORWARD_OUT = (".ff.net.2.", ".ff_context.net.2.", ".ff.linear_out.", ".ff_context.linear_out.")


def in_transformer_region(name: str, region: str) -> bool:
    """Return whether a parameter of the transformer, by its full name, belongs to a region.

    Text enters through the text side of joint attention, which has its own projections, so xattn is that side. Single blocks (of FLUX)
    treat text and image with the same weights: they belong to no attention region. attn2, of SD 3.5 medium, is a second attention among
    image tokens only.
    """
    if not name.startswith("transformer."):
        return False
    match region:
        case "xattn":
            return any(part in name for part in TEXT_ATTENTION)
        case "xattn-kv":
            return ".add_k_proj." in name or ".add_v_proj." in name
        case "text-proj":
            return name.startswith(TEXT_PROJECTIONS)
        case "noxattn":
            return not any(part in name for part in TEXT_ATTENTION) and not name.startswith((*TEXT_PROJECTIONS, *OUTPUT_HEAD))
        case "selfattn":
            in_double_block = ".single_transformer_blocks." not in name
            return in_double_block and any(f"{attention}{part}" in name for attention in (".attn", ".attn2") for part in IMAGE_ATTENTION)
        case "ff-out":
            return any(part in name for part in FEED_FORWARD_OUT)
        case _:
            return region == "full"


def in_clip_region(name: str, region: str) -> bool:
    """Return whether a parameter of a CLIP text encoder belongs to the region text-encoder: its layers and final norm."""
    return region == "text-encoder" and name.startswith("text_encoder") and (".encoder.layers." in name or ".final_layer_norm." in name)


def check_joint_attention(attention: Attention, source: str) -> None:
    """Check an attention kernel; joint attention has only PyTorch's own, which is installed already.

    Raises:
        UserError: an unknown kernel, or one that does not serve joint attention.
    """
    if attention not in get_args(Attention):
        raise unknown_value_error("attention", attention, get_args(Attention))
    if attention not in ("auto", "sdpa"):
        raise UserError(f"--attention {attention} does not serve the joint attention of {source}; use sdpa.")


def check_image_size(pixels: int, patch_pixels: int) -> int:
    """Return how many patches wide an image is.

    Raises:
        UserError: it is not a positive multiple of a patch.
    """
    if pixels <= 0 or pixels % patch_pixels:
        raise UserError(f"an image of {pixels} pixels a side does not divide into patches; use a multiple of {patch_pixels}.")
    return pixels // patch_pixels


def split_patches(latents: Tensor) -> Tensor:
    """Return (B, 4 C, h / 2, w / 2) from latents (B, C, h, w): every patch of 2 x 2 becomes channels, in the order c, dy, dx."""
    patches: Tensor = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, C, h / 2, 2, w / 2, 2)
    return patches.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def merge_patches(patches: Tensor) -> Tensor:
    """Invert `split_patches`."""
    split: Tensor = patches.unflatten(1, (-1, 2, 2))
    return split.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
