"""What an erasure costs: network passes, counted per sample."""

from dataclasses import asdict, dataclass


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
