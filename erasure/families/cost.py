"""What an erasure costs: network passes, counted per sample."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Cost:
    """Network passes per sample, so that they are the same on every machine."""

    unet_forwards: int = 0
    unet_backwards: int = 0
    text_forwards: int = 0
    sample_gradients: int = 0  # samples from which a trained parameter got a gradient

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(  # field by field, because a forecast adds up every training step
            self.unet_forwards + other.unet_forwards,
            self.unet_backwards + other.unet_backwards,
            self.text_forwards + other.text_forwards,
            self.sample_gradients + other.sample_gradients,
        )


def count_pass(cost: Cost, prediction: "Tensor") -> "Tensor":
    """Count a forward pass through the denoiser by its result (B, ...), and the backward passes that will go through it.

    The hook runs once for every backward pass that reaches the prediction, whoever asks for it and whatever it is a gradient of.
    """
    samples = len(prediction)
    cost.unet_forwards += samples

    def count_backward(_: "Tensor") -> None:
        cost.unet_backwards += samples

    if prediction.requires_grad:
        prediction.register_hook(count_backward)
    return prediction
