"""How a command loads its model, from the options that several commands have."""

from typing import TYPE_CHECKING, Protocol

from erasure.config.choices import Attention, Offload, Precision, VaeMode
from erasure.errors import UserError

if TYPE_CHECKING:
    from erasure import DiffusionModel


class ModelOptions(Protocol):
    """The options of a command that decide how a model computes."""

    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> Precision: ...
    @property
    def attention(self) -> Attention: ...
    @property
    def offload(self) -> Offload: ...
    @property
    def vae(self) -> VaeMode: ...
    @property
    def resolution(self) -> int | None: ...
    @property
    def images_at_once(self) -> int | None: ...


def load_with_options(source: str, options: ModelOptions) -> "DiffusionModel":
    """Load a model as the options of a command say.

    Raises:
        UserError: a number is out of range, or as `erasure.load_model`.
    """
    for flag, value in (("--resolution", options.resolution), ("--images-at-once", options.images_at_once)):
        if value is not None and not 1 <= value <= 100_000:
            raise UserError(f"{flag} must be between 1 and 100,000, got {value}.")
    import erasure

    return erasure.load_model(
        source,
        device=options.device,
        dtype=options.dtype,
        attention=options.attention,
        offload=options.offload,
        vae=options.vae,
        resolution=options.resolution,
        images_at_once=options.images_at_once,
    )
