"""The three shapes of an erasure method: trained, solved, guided. A method knows no optimiser, device, progress bar or file."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from erasure.concept import Concept, ConceptKind
from erasure.config.choices import Count, Steps
from erasure.errors import UserError
from erasure.families.base import Cost, DiffusionModel, Region
from erasure.training.teacher_cache import CacheRole, LatentBatch, TeacherBatch, TeacherCache, TeacherQuery, query_cost

Product = Literal["weights", "guidance", "one-step"]


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A method's class is its configuration: fields are flags, YAML keys and what the edit records.

    `recipes` maps (kind, model family) to field values that differ from the paper's defaults; the keys "prompts" and "anchor" set
    those of a concept that has none.
    """

    paper: ClassVar[str]
    changes: ClassVar[str]  # what it changes, in a few words
    when: ClassVar[str]  # when to choose it
    product: ClassVar[Product] = "weights"
    version: ClassVar[int] = 1  # raised when the meaning of a field changes
    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {}

    @abstractmethod
    def forecast_cost(self, model: DiffusionModel, concepts: list[Concept]) -> Cost:
        """Network passes per sample when nothing is found in a cache and nothing is interrupted."""


@dataclass
class MethodResult:
    """What a method found: values by parameter name in one of the forms of erasure.edits, and figures about itself for the report."""

    tensors: dict[str, Tensor]
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainingFree(Method):
    """A method without a training loop."""

    @abstractmethod
    def solve(self, model: DiffusionModel, concepts: list[Concept], seed: int) -> MethodResult:
        """New values, low-rank factors or zeroed entries; `model` is left as it was."""


@dataclass(frozen=True, kw_only=True)
class Guided(Method):
    """A method that changes no weight: at every sampling step it asks for the prediction of one more text."""

    product: ClassVar[Product] = "guidance"

    @abstractmethod
    def guidance_prompt(self, concepts: list[Concept]) -> str:
        """What to ask for."""

    @abstractmethod
    def guide(
        self, eps_cond: Tensor, eps_uncond: Tensor, eps_concept: Tensor, guidance: float, progress: float, state: dict[str, Tensor]
    ) -> Tensor:
        """What to add to the guided prediction uncond + guidance (cond - uncond).

        Args:
            cond, uncond, concept: predicted noise (B, C, h, w) for the prompt, the empty prompt and `text`.
            at: how much of the walk is done, in [0, 1).
            memory: empty at the first step; whatever is put there comes back at the next.
        """

    def forecast_cost(self, model: DiffusionModel, concepts: list[Concept]) -> Cost:
        return Cost()


@dataclass
class TrainableGroup:
    """What trains: named parameters and how its optimiser treats them."""

    parameters: dict[str, nn.Parameter]
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float = 0.0  # largest norm of a gradient; 0: any
    saved: bool = True  # whether its final values go into the edit


@dataclass
class OptimizerStep:
    """One optimiser step of one player."""

    group: str
    loss: Tensor
    samples: int  # how many samples the gradient of the loss passes through
    lr: float | None = None  # for this step only


@dataclass
class TrainingContext:
    """What a method sees of a training run."""

    model: DiffusionModel
    cache: TeacherCache
    encode: Callable[[list[str]], Tensor]  # conditioning (B, L, D) by the text encoder as it is now
    state: dict[str, Tensor] = field(default_factory=dict)  # checkpointed
    masks: dict[str, Tensor] = field(default_factory=dict)  # entries that may move, by parameter; all where a name is missing
    notes: dict[str, Any] = field(default_factory=dict)  # figures about the method for the report
    use_adapter: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext()  # an adapter set on, for methods that have some

    def sample_prompts(self, role: CacheRole, count: int) -> list[tuple[str, str]]:
        """Random sentences of the recording, each with its other side."""
        erase, total = len(self.cache.query.prompt_pairs), len(self.cache.query.prompt_pairs) + len(self.cache.query.retain_prompts)
        low, high = (0, erase) if role == "erase" else (erase, total)
        return [self.cache.query.prompt_pair(i) for i in torch.randint(low, high, (count,)).tolist()]

    def sample_rows(self, role: CacheRole, count: int) -> TeacherBatch:
        """Random recorded rows: (x_t, t, what the frozen model said there)."""
        indices = self.cache.rows(role)
        return self.cache.gather_batch(indices[torch.randint(len(indices), (count,))], self.model.device)

    def sample_latents(self, role: CacheRole, count: int) -> LatentBatch:
        """Random final latents of recorded walks."""
        indices = self.cache.latent_rows(role)
        return self.cache.gather_latents(indices[torch.randint(len(indices), (count,))], self.model.device)

    def predict(self, x_t: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
        """eps(x_t, t, prompts) of the model as it is now."""
        return self.model.predict(x_t, t, self.encode(prompts))

    def input_gradient(self, loss: Tensor, inputs: Tensor) -> Tensor:
        """d loss / d inputs (B, ...), counted as a backward pass of B samples."""
        self.model.cost.unet_backwards += len(inputs)
        return torch.autograd.grad(loss, inputs)[0]


@dataclass(frozen=True, kw_only=True)
class Trained(Method):
    """A method with a training loop."""

    supports_gradient_checkpointing: ClassVar[bool] = (
        True  # whether activations may be computed again in the backward pass (gradient checkpointing)
    )

    region: Region  # which weights move
    lr: float  # learning rate
    steps: Steps  # optimiser steps
    batch: Count  # samples to erase per step

    def __post_init__(self) -> None:
        for name in ("lr", "steps", "batch"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}.")

    @abstractmethod
    def query(self, concepts: list[Concept], seed: int) -> TeacherQuery:
        """What to ask the frozen model beforehand."""

    def pretraining(self) -> "Trained | None":
        """A training whose result this one starts from; it depends on no concept, is kept in the cache and shared."""
        return None

    def trainable(self, model: DiffusionModel) -> AbstractContextManager[dict[str, TrainableGroup]]:
        """What trains, set up on entry and taken down on exit; by default the method's region."""
        return self._trainable_region(model)

    @contextmanager
    def _trainable_region(self, model: DiffusionModel) -> Iterator[dict[str, TrainableGroup]]:
        with unfreeze(model, model.parameter_names(self.region)) as parameters:
            yield {"model": TrainableGroup(parameters, self.lr)}

    def prepare(self, context: TrainingContext, groups: dict[str, TrainableGroup]) -> None:
        """Masks and starting state, before the first step and again before the first step after an interruption."""

    @abstractmethod
    def step(self, context: TrainingContext) -> Iterator[OptimizerStep]:
        """The updates of one iteration; the loop applies each as it is yielded."""

    def generate_latents(self, context: TrainingContext, prompts: list[str], seeds: list[int], steps: int) -> Tensor:
        """Latents of pictures by the model as it is at this point of the training."""
        return context.model.sample(prompts, seeds, steps=steps)

    def step_cost(self, step: int) -> Cost:
        """Forwards and backwards of one iteration."""
        return Cost(unet_forwards=self.batch, unet_backwards=self.batch, sample_gradients=self.batch)

    def prepare_cost(self, query: TeacherQuery) -> Cost:
        """Forwards and backwards of `prepare`."""
        return Cost()

    def forecast_cost(self, model: DiffusionModel, concepts: list[Concept]) -> Cost:
        query = self.query(concepts, 0)
        pretraining = self.pretraining()
        total = Cost(unet_forwards=query_cost(query), text_forwards=len(query.all_prompts()))
        total += pretraining.forecast_cost(model, []) if pretraining else Cost()
        for cost in (self.prepare_cost(query), *(self.step_cost(step) for step in range(self.steps))):
            total += cost
        return total


def exclude_concepts(prompts: tuple[str, ...], concepts: list[Concept]) -> tuple[str, ...]:
    """Sentences to keep that name none of the concepts."""
    names = [name.lower() for concept in concepts for name in (concept.name, *concept.aliases)]
    return tuple(prompt for prompt in prompts if not any(name in prompt.lower() for name in names))


@contextmanager
def unfreeze(model: DiffusionModel, names: list[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Parameters of the model as fp32 masters with gradients; on exit they hold what they held before, bit for bit."""
    parameters = {name: model.parameters()[name] for name in names}
    originals = {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
    try:
        for p in parameters.values():
            p.data = p.data.float()  # fp16 or bf16 weights lose updates near the learning rate
            p.requires_grad_(True)
        yield parameters
    finally:
        for name, p in parameters.items():
            p.requires_grad_(False)
            p.grad = None
            p.data = originals[name].to(model.device)
