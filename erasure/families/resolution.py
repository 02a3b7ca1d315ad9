"""The size of the images that a model makes."""

from erasure.errors import UserError
from erasure.families.base import DiffusionModel


def resolution_of(model: DiffusionModel) -> int:
    """Return how many pixels wide the model's images are."""
    return model.latent_shape[-1] * model.pixels_per_latent


def set_resolution(model: DiffusionModel, pixels: int) -> None:
    """Let a model make images of this height and width.

    Raises:
        UserError: latents have no such size, or the model no positions for it.
    """
    config, patch = model.denoiser.config, 1
    if model.family in ("sd3", "pocket-flow", "flux"):  # patches of 2 x 2 latent pixels
        patch = 2
    elif "unet" in model.networks:  # halved by every level but the last, and put together again
        patch = 2 ** (len(config.block_out_channels) - 1)  # type: ignore[union-attr, arg-type]
    step = model.pixels_per_latent * patch
    largest = int(getattr(config, "pos_embed_max_size", 0) or 0) * step
    if pixels < step or pixels % step or (largest and pixels > largest):
        limit = f" up to {largest}" if largest else ""
        raise UserError(f"{model.source} makes no images of {pixels} pixels a side; use a multiple of {step}{limit}.")
    side = pixels // model.pixels_per_latent
    model.latent_shape, model.resolution = (model.latent_shape[0], side, side), pixels
