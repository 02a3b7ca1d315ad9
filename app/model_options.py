"""How a command loads its model, from the options that several commands have."""

from typing import TYPE_CHECKING, Protocol

from erasure.config.choices import Attention, Offload, Precision, VaeMode

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
    """Load a model as the options of a command say; raises as `erasure.load_model`."""
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
