"""The memory of sampling and of an erasure, as a formula: sums of what is alive at once, in bytes.

    sampling    weights + what one pass keeps alive, then weights + what the decoder keeps alive: the larger one counts;
                with an offload, only the weights of what computes then
    training    weights + fp32 copies of what trains + Adam's two moments + masks (+ the original values, where these are on a CPU anyway)
                + the largest of three: last step's gradients and the forward pass; the backward pass and what it has of new gradients;
                  the gradients and what Adam's update takes for a moment

Sizes of weights are counted from the networks. What passes keep alive is counted too, on tensors without values (erasure.memory.counts),
so nothing here is fitted to a measurement. Only `RESERVED` is assumed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from erasure.config.choices import Offload

GIB = 2**30
CARDS = (8, 16, 24, 80)  # GiB of common cards
RESERVED = GIB  # of a card, taken by the driver, libraries, and gaps between tensors: an assumption
FP32 = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What an erasure trains.

    Attributes:
        count: numbers that train.
        largest: numbers of the largest tensor among them.
        stored_bytes: their size before the training, inside of the weights; 0 for adapters, which are new.
        has_mask: whether a mask says which of them may change, one byte each.
    """

    count: int
    largest: int
    stored_bytes: int
    has_mask: bool = False

    @property
    def copies(self) -> int:
        """How much the weights grow, because trained ones are fp32."""
        return FP32 * self.count - self.stored_bytes

    @property
    def gradients(self) -> int:
        return FP32 * self.count

    @property
    def moments(self) -> int:
        """Adam's running means of the gradient and of its square."""
        return 2 * FP32 * self.count

    @property
    def mask(self) -> int:
        return self.count if self.has_mask else 0

    def update(self, on_gpu: bool) -> int:
        """Return what Adam takes for a moment: on a GPU a root of every second moment at once, on a CPU two tensors of one weight."""
        return FP32 * (self.count if on_gpu else 2 * self.largest)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A forward pass, with a backward pass or alone.

    Attributes:
        forward: bytes alive beside the weights at the peak of the forward pass.
        backward: the same of the backward pass, with the gradients that it has made by then; 0 without one.
    """

    forward: int
    backward: int = 0


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the work that begins with nothing but the weights in memory.

    Attributes:
        name: such as "training" or "teacher cache".
        weights: components as they are loaded, those that are on the device by the offload.
        work: what runs.
        least: what runs where memory is short, if the number of samples may shrink.
        trained: what trains; None where nothing does.
    """

    name: str
    weights: Mapping[Offload, int]
    work: Pass
    least: Pass | None = None
    trained: Trained | None = None
    on_gpu: bool = True

    def parts(self, offload: Offload = "none") -> Mapping[str, int]:
        """Return bytes by what they hold, at the peak."""
        weights = self.weights[offload]
        if self.trained is None:
            return {"weights": weights, "activations": self.work.forward}
        trained = self.trained
        gradients, activations = max(
            (trained.gradients, self.work.forward),
            (0, self.work.backward),  # which holds the gradients made so far
            (trained.gradients, trained.update(self.on_gpu)),
            key=sum,
        )
        return {
            "weights": weights,
            "fp32 copies": trained.copies,
            "moments": trained.moments,
            "mask": trained.mask,
            "originals": 0 if self.on_gpu else trained.stored_bytes,  # always kept on the CPU
            "gradients": gradients,
            "activations": activations,
        }

    def peak(self, offload: Offload = "none") -> int:
        return sum(self.parts(offload).values())

    @property
    def smallest(self) -> "Phase":
        """The phase with as few samples at once as possible: what a card must hold."""
        return self if self.least is None else replace(self, work=self.least, least=None)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The memory of sampling or of one method.

    Attributes:
        name: "sampling", or the method's.
        phases: one after the other.
        refusal: why the method does not run on the model; "" if it does.
        offloads: what `--offload auto` is on each card.
        checkpointed: the same with gradient checkpointing, where that is possible.
    """

    name: str
    phases: tuple[Phase, ...] = ()
    refusal: str = ""
    offloads: Mapping[int, Offload] = field(default_factory=lambda: dict.fromkeys(CARDS, "none"))
    checkpointed: "Forecast | None" = field(default=None, repr=False)

    @property
    def cards(self) -> list[int]:
        """The cards that are enough, in GiB."""
        return [card for card in CARDS if self.fits(card)]

    @property
    def card(self) -> int:
        """The smallest card that is enough, or the largest of all."""
        return min(self.cards, default=CARDS[-1])

    @property
    def offload(self) -> Offload:
        return self.offloads[self.card]

    @property
    def largest(self) -> Phase:
        """The phase that needs most of `card`, at its smallest."""
        return max((phase.smallest for phase in self.phases), key=lambda phase: phase.peak(self.offload))

    @property
    def peak(self) -> int:
        """Bytes that are needed of `card`."""
        return self.largest.peak(self.offload)

    def fits(self, card: int) -> bool:
        """Return whether a card with so many GiB is enough."""
        return not self.refusal and all(phase.smallest.peak(self.offloads[card]) + RESERVED <= card * GIB for phase in self.phases)
