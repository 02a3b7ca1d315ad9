"""The three shapes of an erasure method: trained, training-free, guided. A method knows no optimizer, device, progress bar or file."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from erasure.concept import Concept, ConceptKind
from erasure.config.choices import Count, OptimizerName, Region, Steps
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.conditioning import Conditioning
from erasure.families.cost import Cost
from erasure.families.trajectory import check_supports_guidance
from erasure.training.teacher_cache import CacheRole, LatentBatch, TeacherBatch, TeacherCache, TeacherQuery, query_cost

Product = Literal["weights", "guidance", "one-step"]


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """An erasure method, which is its own configuration: fields become flags, YAML keys and the record in the edit.

    `recipes` maps (kind, model family) to field values that differ from the paper's defaults. Its keys "prompts" and "anchor" apply to
    concepts that have none.
    """

    paper: ClassVar[str]
    changes: ClassVar[str]  # what it changes, in a few words
    when: ClassVar[str]  # when to choose it, and its main drawback
    product: ClassVar[Product] = "weights"
    unfit: ClassVar[dict[ConceptKind, str]] = {}  # kinds of concepts on which it did badly where it was measured, and how
    version: ClassVar[int] = 1  # raised when the meaning of a field changes
    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {}

    @abstractmethod
    def forecast_cost(self, model: DiffusionModel, concepts: list[Concept]) -> Cost:
        """Return the network passes per sample of an uninterrupted run with empty caches."""

    def check_model(self, model: DiffusionModel) -> None:  # noqa: B027  # most methods serve every model
        """Check that the method serves a model.

        Raises:
            UserError: It does not; the message gives the reason and a method that does.
        """


@dataclass
class MethodResult:
    """The result of a method: tensors by parameter name in a delta format of erasure.edits, and figures for the report."""

    tensors: dict[str, Tensor]
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainingFree(Method):
    """A method without a training loop."""

    @abstractmethod
    def solve(self, model: DiffusionModel, concepts: list[Concept], seed: int) -> MethodResult:
        """Return new values, low-rank factors or zeroed entries; `model` stays unchanged.

        Raises:
            UserError: The method finds nothing to change, or the region has no layer for it.
        """


@dataclass(frozen=True, kw_only=True)
class Guided(Method):
    """A method that changes no weights: every sampling step predicts noise for one more prompt."""

    product: ClassVar[Product] = "guidance"

    def guidance_prompt(self, concepts: list[Concept]) -> str:
        """Return the prompt whose noise prediction steers the sampling: the names of the concepts."""
        return ", ".join(concept.name for concept in concepts)

    @abstractmethod
    def guide(
        self, eps_cond: Tensor, eps_uncond: Tensor, eps_concept: Tensor, guidance: float, progress: float, state: dict[str, Tensor]
    ) -> Tensor:
        """Return what to add (B, C, h, w) to the guided prediction eps_uncond + guidance (eps_cond - eps_uncond).

        Args:
            eps_cond, eps_uncond, eps_concept: predicted noise (B, C, h, w) for the prompt, the empty prompt and `guidance_prompt`.
            progress: how much of the trajectory is done, in [0, 1).
            state: empty at the first step; what is stored in it is there at the next step.
        """

    def check_model(self, model: DiffusionModel) -> None:
        check_supports_guidance(model)

    def forecast_cost(self, model: DiffusionModel, concepts: list[Concept]) -> Cost:
        return Cost()


@dataclass
class TrainableGroup:
    """Parameters that train together, and the settings of their optimizer."""

    parameters: dict[str, nn.Parameter]
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float = 0.0  # gradients are clipped to this norm; 0: never
    saved: bool = True  # whether the final values go into the edit


@dataclass
class OptimizerStep:
    """One optimizer step of one group."""

    group: str  # name of the TrainableGroup
    loss: Tensor  # scalar
    lr: float | None = None  # learning rate of this step only


@dataclass
class TrainingContext:
    """What a method sees of a training run."""

    model: DiffusionModel
    cache: TeacherCache
    encode: Callable[[list[str]], Conditioning]  # from the text encoder in its current state
    state: dict[str, Tensor] = field(default_factory=dict)  # saved in checkpoints
    masks: dict[str, Tensor] = field(default_factory=dict)  # entries that may change, by parameter name; without a mask all of them may
    notes: dict[str, Any] = field(default_factory=dict)  # figures for the report
    groups: dict[str, TrainableGroup] = field(default_factory=dict)  # what trains
    use_adapter: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext()  # switches an adapter on, for methods with some

    def sample_prompts(self, role: CacheRole, count: int) -> list[tuple[str, str]]:
        """Return random pairs (prompt, prompt without the concept) of the query."""
        query = self.cache.query
        erase, total = len(query.prompt_pairs), len(query.prompt_pairs) + len(query.retain_prompts)
        low, high = (0, erase) if role == "erase" else (erase, total)
        return [query.prompt_pair(i) for i in torch.randint(low, high, (count,)).tolist()]

    def sample_rows(self, role: CacheRole, count: int) -> TeacherBatch:
        """Return random cached rows: x_t, t and the frozen model's predictions there."""
        indices = self.cache.rows(role)
        return self.cache.gather_batch(indices[torch.randint(len(indices), (count,))], self.model.device)

    def sample_latents(self, role: CacheRole, count: int) -> LatentBatch:
        """Return random final latents of cached trajectories."""
        indices = self.cache.latent_rows(role)
        return self.cache.gather_latents(indices[torch.randint(len(indices), (count,))], self.model.device)

    def predict(self, x_t: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
        """Return the prediction (B, C, h, w) of the model in its current state."""
        return self.model.predict(x_t, t, self.encode(prompts))


@dataclass(frozen=True, kw_only=True)
class Trained(Method):
    """A method with a training loop.

    Raises:
        UserError: A learning rate, step count or batch size is not positive.
    """

    supports_gradient_checkpointing: ClassVar[bool] = True  # whether the backward pass may recompute activations
    uses_mask: ClassVar[bool] = False  # whether a mask chooses which entries of the region train
    repeatable: ClassVar[bool] = True  # whether an iteration is one optimizer step whose loss can be computed again at other weights

    region: Region  # which weights to train
    lr: float  # learning rate
    steps: Steps  # optimizer steps
    batch: Count  # samples of the concept per step
    optimizer: OptimizerName = "adam"  # adam8bit: Adam's two moments take a quarter of the memory (extra 8bit)
    protect: float = 0.0  # how common a direction of the protected prompts must be to be kept exactly (an eigenvalue); 0 protects nothing
    protect_prompts: tuple[str, ...] = ()  # prompts that must keep their effect on the weights that read text; used with --protect
    outward: float = 0.0  # how much of each step's movement away from the starting weights to remove, from 0 to 1
    drift: float = 0.0  # weight of the squared distance from the starting weights
    sharp: float = 0.0  # how far the weights are moved uphill before a step's gradient is taken, so that training ends in a flat minimum
    resist: float = 0.0  # weight of the loss after a simulated relearning of the concept
    resist_steps: Count = 3  # steps of that relearning; used with --resist
    resist_lr: float = 1e-3  # its largest learning rate; each is drawn between a tenth of it and this; used with --resist

    def __post_init__(self) -> None:
        for name in ("lr", "steps", "batch", "resist_lr"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}.")
        for name in ("protect", "outward", "drift", "sharp", "resist"):
            if not 0 <= getattr(self, name) <= (1 if name == "outward" else math.inf):
                allowed = "lie in [0, 1]" if name == "outward" else "not be negative"
                raise UserError(f"--{name} must {allowed}, got {getattr(self, name):g}.")

    def check_model(self, model: DiffusionModel) -> None:
        model.parameter_names(self.region)  # raises for a region that the model lacks

    @abstractmethod
    def query(self, concepts: list[Concept], seed: int) -> TeacherQuery:
        """Return what to record of the frozen model before the training."""

    @property
    def samples_per_backward(self) -> int:
        """How many samples one backward pass goes through; it decides the memory of a step."""
        return self.batch

    def pretraining(self) -> "Trained | None":
        """Return the training whose result this one starts from, if any; it depends on no concept and is cached and shared."""
        return None

    def trainable(self, model: DiffusionModel) -> AbstractContextManager[dict[str, TrainableGroup]]:
        """Set up what trains, and restore the model on exit; by default the method's region trains.

        Raises:
            UserError: The region is unknown or has nothing to train, or a field does not fit the model.
        """
        return self._trainable_region(model)

    @contextmanager
    def _trainable_region(self, model: DiffusionModel) -> Iterator[dict[str, TrainableGroup]]:
        with unfreeze(model, model.parameter_names(self.region)) as parameters:
            yield {"model": TrainableGroup(parameters, self.lr)}

    def prepare(self, context: TrainingContext, groups: dict[str, TrainableGroup]) -> None:
        """Set up masks and state, before the first step of a run and again when it is resumed."""

    @abstractmethod
    def step(self, context: TrainingContext) -> Iterator[OptimizerStep]:
        """Yield the optimizer steps of one iteration; the loop applies each one before it asks for the next."""

    def generate_latents(self, context: TrainingContext, prompts: list[str], seeds: list[int], steps: int) -> Tensor:
        """Return image latents (B, C, h, w) of the model at this point of the training."""
        return context.model.sample(prompts, seeds, steps=steps)

    def step_cost(self, step: int) -> Cost:
        """Return the forward and backward passes of one iteration."""
        return Cost(unet_forwards=self.batch, unet_backwards=self.batch, sample_gradients=self.batch)

    def prepare_cost(self, query: TeacherQuery) -> Cost:
        """Return the forward and backward passes of `prepare`."""
        return Cost()

    def forecast_cost(self, model: DiffusionModel, concepts: list[Concept]) -> Cost:
        query = self.query(concepts, 0)
        pretraining = self.pretraining()
        texts = len(query.all_prompts()) + (len(self.protect_prompts) if self.protect else 0)
        total = Cost(unet_forwards=query_cost(query, model.forwards_per_step), text_forwards=texts)
        total += pretraining.forecast_cost(model, []) if pretraining else Cost()
        times = 1 + bool(self.sharp) + bool(self.resist)
        for cost in (self.prepare_cost(query), *(self.step_cost(step) for step in range(self.steps) for _ in range(times))):
            total += cost
        relearned = self.steps * self.resist_steps * self.batch if self.resist else 0
        return total + Cost(unet_forwards=relearned, unet_backwards=relearned, sample_gradients=relearned)


def exclude_concepts(prompts: tuple[str, ...], concepts: list[Concept]) -> tuple[str, ...]:
    """Return the prompts that name none of the concepts and none of their aliases."""
    names = [name.lower() for concept in concepts for name in (concept.name, *concept.aliases)]
    return tuple(prompt for prompt in prompts if not any(name in prompt.lower() for name in names))


@contextmanager
def unfreeze(model: DiffusionModel, names: list[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Make parameters of the model trainable, as fp32 masters; on exit they hold their original values, bit for bit."""
    all_parameters = model.parameters()
    parameters = {name: all_parameters[name] for name in names}
    originals = {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
    try:
        for p in parameters.values():
            p.data = p.data.float()  # fp16 and bf16 weights would round small updates away
            p.requires_grad_(True)
        yield parameters
    finally:
        for name, p in parameters.items():
            p.requires_grad_(False)
            p.grad = None
            p.data = originals[name].to(p.device)
