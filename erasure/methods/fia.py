"""FIA, "Forget It All": zero the feed-forward weights that respond to the concept and to nothing else (arXiv:2601.06163)."""

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from erasure import prompt_templates
from erasure.concept import Concept, ConceptKind
from erasure.config.choices import Region, ScheduleSteps
from erasure.edits.deltas import ZEROED, to_zeroed_indices
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.cost import Cost
from erasure.families.pipelines import RELEASED_FAMILIES
from erasure.methods.base import MethodResult, TrainingFree, exclude_concepts
from erasure.pocket import prompts as pocket_prompts
from erasure.training.activations import ActivationRecorder
from erasure.training.fill_cache import load_or_compute
from erasure.training.saliency import selected_fractions

# a UNet this small does not store a concept in its feed-forward weights alone; of the few shares that were tried, these are the largest
# that kept everything else within 20 points on the development concepts
_POCKET = {"region": "full", "trajectory_guidance": 4.0}
_POCKET_THING = {**_POCKET, "candidate_fraction": 0.2, "trajectory_steps": 20}  # records half of it: shapes form later than styles


@dataclass(frozen=True, kw_only=True)
class FIA(TrainingFree):
    """Contrastive concept saliency, agreement of rows and layer about it, and a vote over concepts.

    The released code drops the cosine of equation 1 (`saliency="wanda"`), divides the mean of equation 3 by its maximum
    (`scale_saliency`), and normalizes every token's activation. Its vote protects every entry of a single concept, so that nothing is
    pruned; here the vote is skipped for one concept. A concept's mask does not depend on other concepts and is cached, so another concept
    costs only its own mask.

    Raises:
        UserError: A fraction is outside (0, 1], or there are more recorded steps than trajectory steps.
    """

    paper: ClassVar[str] = "arXiv:2601.06163"
    changes: ClassVar[str] = "sets a small fraction of the feed-forward weights to zero"
    when: ClassVar[str] = "when concepts are added one by one, without any training"

    region: Region = "ff-out"  # linear layers whose weights may be set to zero
    saliency: Literal["full", "wanda"] = "full"  # saliency of a weight: full (equation 1), or wanda (|W| ||X|| alone)
    active_fraction: float = 0.05  # fraction of a layer's weights that counts as active at a timestep, the paper's r1
    candidate_fraction: float = 0.01  # fraction of every row and of the whole layer that may be zeroed, the paper's r2
    agnostic_fraction: float = 0.6  # weights selected by at least this fraction of the concepts are not zeroed, the paper's alpha
    scale_saliency: bool = False  # divide the mean saliency by the layer's maximum before adding the active frequency
    conditional_only: bool = False  # use activations of the conditional half only; the paper uses both halves
    record_steps: ScheduleSteps = 10  # record activations in this many first steps
    trajectory_steps: ScheduleSteps = 50  # DDIM steps of the whole trajectory
    trajectory_guidance: float = 7.5  # classifier-free guidance of the trajectory
    base_prompts: tuple[str, ...] = ()  # prompts to contrast with; empty: the training prompts without the concept

    def __post_init__(self) -> None:
        for name in ("active_fraction", "candidate_fraction", "agnostic_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} must lie in (0, 1], got {getattr(self, name)}.")
        if not 1 <= self.record_steps <= self.trajectory_steps:
            raise UserError(f"--record-steps must lie between 1 and --trajectory-steps {self.trajectory_steps}, got {self.record_steps}.")

    def solve(self, model: DiffusionModel, concepts: list[Concept], seed: int) -> MethodResult:
        if not model.linear_layers(self.region):
            raise UserError(f"--region {self.region} has no linear layer of {model.source}.")
        masks = [self.load_or_compute_mask(model, concept, seed) for concept in concepts]
        pruned = fuse_masks(masks, self.agnostic_fraction)
        if not any(mask.any() for mask in pruned.values()):
            reason = "no weight responds to the concept more than to the prompts without it"
            if len(concepts) > 1 and any(layer_mask.any() for mask in masks for layer_mask in mask.values()):
                reason = f"all {len(concepts)} concepts share every entry; raise --agnostic-fraction"
            advice = "give --prompts such as 'a {} on a table | a table', or raise --candidate-fraction"
            raise UserError(f"the mask selects nothing: {reason}; {advice}.")
        tensors = {name + ZEROED: to_zeroed_indices(mask) for name, mask in pruned.items() if mask.any()}
        return MethodResult(tensors, {"mask": selected_fractions(pruned), "zeroed": sum(int(mask.sum()) for mask in pruned.values())})

    def load_or_compute_mask(self, model: DiffusionModel, concept: Concept, seed: int) -> dict[str, Tensor]:
        """Return Q of one concept by parameter name, from the cache or computed now: bool (O, I), True where a weight may be zeroed."""
        fields = {name: value for name, value in asdict(self).items() if name != "agnostic_fraction"}
        key = {"fia": self.version, "fields": fields, "pairs": concept.prompt_pairs(), "seed": seed}
        return {name: mask.bool() for name, mask in load_or_compute(model, key, lambda: self.compute_mask(model, concept, seed)).items()}

    def compute_mask(self, model: DiffusionModel, concept: Concept, seed: int) -> dict[str, Tensor]:
        """Return the mask of one concept by parameter name (equations 1 to 7), uint8 (O, I)."""
        layers = {
            name: LayerSaliency(linear_layer.weight.detach().float(), self)
            for name, linear_layer in model.linear_layers(self.region).items()
        }
        concept_prompts, neutral_prompts = zip(*concept.prompt_pairs(), strict=True)
        base_prompts = exclude_concepts(self.base_prompts, [concept]) or neutral_prompts
        recorder = ActivationRecorder(
            model, self.trajectory_steps, self.record_steps, self.trajectory_guidance, seed, self.conditional_only
        )
        for _ in recorder.record(concept_prompts, base_prompts, {name: layer.add_activations for name, layer in layers.items()}):
            for layer in layers.values():
                layer.end_timestep()
        return {
            name: select_candidates(layer.total / self.record_steps, self.candidate_fraction).to("cpu", torch.uint8)
            for name, layer in layers.items()
        }

    def forecast_cost(self, model: DiffusionModel, concepts: list[Concept]) -> Cost:
        prompts = 0
        for concept in concepts:
            pair_count = len(concept.prompt_pairs())
            prompts += pair_count + (len(exclude_concepts(self.base_prompts, [concept])) or pair_count)
        return Cost(unet_forwards=model.forwards_per_step * prompts * self.record_steps, text_forwards=prompts + len(concepts))

    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {
        ("style", "pocket"): {
            **_POCKET,
            "candidate_fraction": 0.1,
            "saliency": "wanda",
            "base_prompts": pocket_prompts.BASE,
            "prompts": pocket_prompts.STYLE_PAIRS,
        },
        ("object", "pocket"): {**_POCKET_THING, "prompts": pocket_prompts.OBJECT_PAIRS},
        ("person", "pocket"): {**_POCKET_THING, "prompts": pocket_prompts.PERSON_PAIRS},
        # the largest fractions on neon and boat that kept most of everything else; on this model that is less than on pocket
        ("style", "pocket-flow"): {
            **_POCKET,
            "candidate_fraction": 0.03,
            "saliency": "wanda",
            "base_prompts": pocket_prompts.BASE,
            "prompts": pocket_prompts.STYLE_PAIRS,
        },
        ("object", "pocket-flow"): {**_POCKET_THING, "candidate_fraction": 0.015, "prompts": pocket_prompts.OBJECT_PAIRS},
        ("person", "pocket-flow"): {**_POCKET_THING, "candidate_fraction": 0.015, "prompts": pocket_prompts.PERSON_PAIRS},
        # fractions and prompt counts are the paper's; nothing below was run on released weights
        **{
            ("style", family): {"prompts": prompt_templates.STYLE, "candidate_fraction": 0.02, "agnostic_fraction": 0.8}
            for family in RELEASED_FAMILIES
        },
        **{("object", family): {"prompts": prompt_templates.OBJECT, "candidate_fraction": 0.007} for family in RELEASED_FAMILIES},
        **{("person", family): {"prompts": prompt_templates.PERSON, "candidate_fraction": 0.01} for family in RELEASED_FAMILIES},
        **{("nsfw", family): {"prompts": prompt_templates.NSFW, "candidate_fraction": 0.01} for family in RELEASED_FAMILIES},
    }


class LayerSaliency:
    """Accumulates one layer's saliency: sums over prompts within a timestep, then over timesteps."""

    def __init__(self, weight: Tensor, method: FIA) -> None:
        self.weight, self.method = weight.abs(), method
        self.total = torch.zeros_like(self.weight)  # (O, I), the sum of equation 3 over the timesteps so far
        self._reset_sums()

    def _reset_sums(self) -> None:
        self.sums = {concept: torch.zeros_like(self.weight) for concept in (True, False)}
        self.squares, self.counts = torch.zeros_like(self.weight), {True: 0, False: 0}

    def add_activations(self, x: Tensor, y: Tensor, concept: bool) -> None:
        """Add the activations of B prompts: inputs x (B, N, I) and outputs y (B, N, O) without bias."""
        responses = channel_response(x, y, self.method.saliency)
        self.sums[concept] += responses.sum(0)
        self.counts[concept] += len(x)
        if not concept:
            self.squares += responses.square_().sum(0)

    def end_timestep(self) -> None:
        """Add this timestep to the total (equations 2 and 3). |W| scales mean and deviation alike, so it is applied here."""
        n = self.counts[False]
        mu_c, mu_b = self.sums[True] / self.counts[True], self.sums[False] / n
        sigma_b = (self.squares / n - mu_b.square()).clamp(min=0).sqrt()
        s = self.weight * (mu_c - mu_b - sigma_b).clamp(min=0)
        active = s > kth_largest(s, self.method.active_fraction)
        mean = s / s.max().clamp(min=1e-30) if self.method.scale_saliency else s
        self.total += 0.5 * mean + 0.5 * active
        self._reset_sums()


def channel_response(x: Tensor, y: Tensor, kind: str) -> Tensor:
    """Return equation 1 without |W_ij|: ||X_j|| |<X_j, Y_i>| / (||X_j|| ||Y_i||), (B, O, I); the Wanda form is ||X_j||, (B, 1, I)."""
    if kind == "wanda":
        norms: Tensor = x.float().norm(dim=1, keepdim=True)
        return norms
    unit: Tensor = y / (y.float().norm(dim=1, keepdim=True) + 1e-12).to(y.dtype)
    return (unit.transpose(1, 2) @ x).float().abs_()


def kth_largest(values: Tensor, fraction: float) -> Tensor:
    """Return the value that a fraction of all entries exceeds (scalar tensor)."""
    count = values.numel()
    return values.flatten().kthvalue(max(1, count - int(fraction * count))).values


def select_candidates(a: Tensor, fraction: float) -> Tensor:
    """Return entries (O, I) with saliency in the top fraction r2 both of their row and of the layer (equations 4 to 7)."""
    rows = torch.zeros_like(a, dtype=torch.bool)
    rows.scatter_(1, a.topk(max(1, int(fraction * a.shape[1])), dim=1).indices, True)
    layer = torch.zeros_like(rows).flatten()
    layer[a.flatten().topk(max(1, int(fraction * a.numel()))).indices] = True
    return rows & layer.reshape(a.shape) & (a > 0)


def fuse_masks(masks: list[dict[str, Tensor]], agnostic_fraction: float) -> dict[str, Tensor]:
    """Return entries, bool (O, I), that some of C concepts select, but fewer than alpha C (equation 8); of one concept all it selects."""
    if len(masks) == 1:
        return masks[0]
    agnostic_votes = math.ceil(agnostic_fraction * len(masks))
    votes = {name: torch.stack([mask[name] for mask in masks]).sum(0) for name in masks[0]}
    return {name: (count > 0) & (count < agnostic_votes) for name, count in votes.items()}
