"""FIA, "Forget It All": zero the feed-forward weights that answer to the concept and to nothing else (arXiv:2601.06163)."""

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from erasure import prompt_templates as sentences
from erasure.concept import Concept, ConceptKind
from erasure.config.choices import ScheduleSteps
from erasure.edits.deltas import ZEROED, to_zeroed_indices
from erasure.errors import UserError
from erasure.families.base import Cost, DiffusionModel, Region
from erasure.methods.base import MethodResult, TrainingFree, exclude_concepts
from erasure.pocket import prompts as pocket
from erasure.training import activations as neurons
from erasure.training.fill_cache import load_or_compute
from erasure.training.saliency import selected_fractions

# so small a UNet does not keep a concept in its feed-forward weights alone; the shares are the largest of the few
# tried that kept the rest within 20 points on the development concepts
_POCKET = {"layers": "full", "walk_guidance": 4.0}
_POCKET_THING = {**_POCKET, "r2": 0.2, "walk_steps": 20}  # half of the walk: shapes take form later than looks


@dataclass(frozen=True, kw_only=True)
class FIA(TrainingFree):
    """Contrastive concept saliency, its agreement over channels and layer, and a vote over concepts.

    The released code drops the cosine of equation 1 (`saliency="wanda"`), divides the mean of equation 3 by its maximum (`scaled`), and
    normalises every token's activation; its vote keeps every entry of a single concept, so that nothing is pruned. Here the vote is
    skipped for one concept. The mask of a concept depends on no other concept and is remembered: a further one costs only its own.
    """

    paper: ClassVar[str] = "arXiv:2601.06163"
    changes: ClassVar[str] = "zeroes a small share of the feed-forward weights"
    when: ClassVar[str] = "many concepts without any training, added one by one"

    region: Region = "ff-out"  # linear layers whose weights may be zeroed
    saliency: Literal["full", "wanda"] = "full"  # equation 1, or |W| ||X|| alone
    active_fraction: float = 0.05  # share of a layer that counts as active at a timestep
    candidate_fraction: float = 0.01  # share of every row and of the whole layer that is a candidate
    agnostic_fraction: float = 0.6  # an entry that this share of the concepts selects is no concept's, and stays
    scale_saliency: bool = False  # divide the mean saliency by its largest value in the layer before it meets the frequency
    conditional_only: bool = False  # activations of the conditional half only; the paper's guided walk has both
    record_steps: ScheduleSteps = 10  # first timesteps in which activations are recorded
    trajectory_steps: ScheduleSteps = 50  # DDIM steps of the whole walk
    trajectory_guidance: float = 7.5  # classifier-free guidance of the walk
    base_prompts: tuple[str, ...] = ()  # base sentences; those that name the concept are left out; none: the other sides of the prompts

    def __post_init__(self) -> None:
        for name in ("r1", "r2", "alpha"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"--{name} is a share in (0, 1], got {getattr(self, name)}.")
        if not 1 <= self.record_steps <= self.trajectory_steps:
            raise UserError(f"--record-steps must lie between 1 and --walk-steps {self.trajectory_steps}, got {self.record_steps}.")

    def solve(self, model: DiffusionModel, concepts: list[Concept], seed: int) -> MethodResult:
        if not model.linear_layers(self.region):
            raise UserError(f"--layers {self.region} holds no linear layer of {model.source}.")
        masks = [self.load_or_compute_mask(model, concept, seed) for concept in concepts]
        pruned = fuse_masks(masks, self.agnostic_fraction)
        if not any(mask.any() for mask in pruned.values()):
            reason = "no weight answers to the concept more than to the sentences without it"
            if len(concepts) > 1 and any(layer_mask.any() for mask in masks for layer_mask in mask.values()):
                reason = f"all {len(concepts)} concepts share every entry; raise --alpha"
            raise UserError(f"the mask selects nothing: {reason}; give --prompts such as 'a {{}} on a table | a table', or raise --r2.")
        tensors = {name + ZEROED: to_zeroed_indices(mask) for name, mask in pruned.items() if mask.any()}
        return MethodResult(tensors, {"mask": selected_fractions(pruned), "zeroed": sum(int(mask.sum()) for mask in pruned.values())})

    def load_or_compute_mask(self, model: DiffusionModel, concept: Concept, seed: int) -> dict[str, Tensor]:
        """Q of one concept, found in the cache or made."""
        fields = {name: value for name, value in asdict(self).items() if name != "alpha"}
        key = {"fia": self.version, "fields": fields, "pairs": concept.prompt_pairs(), "seed": seed}
        return {name: mask.bool() for name, mask in load_or_compute(model, key, lambda: self.compute_mask(model, concept, seed)).items()}

    def compute_mask(self, model: DiffusionModel, concept: Concept, seed: int) -> dict[str, Tensor]:
        """Equations 1 to 7 for one concept."""
        layers = {
            name: LayerSaliency(linear_layer.weight.detach().float(), self)
            for name, linear_layer in model.linear_layers(self.region).items()
        }
        concept_prompts, neutral_prompts = zip(*concept.prompt_pairs(), strict=True)
        base_prompts = exclude_concepts(self.base_prompts, [concept]) or neutral_prompts
        recorder = neurons.ActivationRecorder(
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
        return Cost(unet_forwards=2 * prompts * self.record_steps, text_forwards=prompts + len(concepts))

    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {
        ("style", "pocket"): {**_POCKET, "r2": 0.1, "saliency": "wanda", "against": pocket.BASE, "prompts": pocket.STYLE_PAIRS},
        ("object", "pocket"): {**_POCKET_THING, "prompts": pocket.OBJECT_PAIRS},
        ("person", "pocket"): {**_POCKET_THING, "prompts": pocket.PERSON_PAIRS},
        # shares and prompt counts are the paper's; nothing below was run on real SD weights
        **{("style", family): {"prompts": sentences.STYLE, "r2": 0.02, "alpha": 0.8} for family in ("sd1", "sd2")},
        **{("object", family): {"prompts": sentences.OBJECT, "r2": 0.007} for family in ("sd1", "sd2")},
        **{("person", family): {"prompts": sentences.PERSON, "r2": 0.01} for family in ("sd1", "sd2")},
        **{("nsfw", family): {"prompts": sentences.NSFW, "r2": 0.01} for family in ("sd1", "sd2")},
    }


class LayerSaliency:
    """One layer's saliency while the walks go on: sums over prompts within a timestep, then over timesteps."""

    def __init__(self, weight: Tensor, method: FIA) -> None:
        self.weight, self.method = weight.abs(), method
        self.total = torch.zeros_like(self.weight)
        self._reset_sums()

    def _reset_sums(self) -> None:
        self.sums = {concept: torch.zeros_like(self.weight) for concept in (True, False)}
        self.squares, self.counts = torch.zeros_like(self.weight), {True: 0, False: 0}

    def add_activations(self, x: Tensor, y: Tensor, concept: bool) -> None:
        """Activations of B prompts: inputs x (B, N, I) and outputs y (B, N, O) without bias."""
        responses = channel_response(x, y, self.method.saliency)
        self.sums[concept] += responses.sum(0)
        self.counts[concept] += len(x)
        if not concept:
            self.squares += responses.square_().sum(0)

    def end_timestep(self) -> None:
        """End of a timestep: equations 2 and 3. |W| multiplies mean and deviation alike, so it comes in here."""
        n = self.counts[False]
        mu_c, mu_b = self.sums[True] / self.counts[True], self.sums[False] / n
        sigma_b = (self.squares / n - mu_b.square()).clamp(min=0).sqrt()
        s = self.weight * (mu_c - mu_b - sigma_b).clamp(min=0)
        active = s > kth_largest(s, self.method.active_fraction)
        mean = s / s.max().clamp(min=1e-30) if self.method.scale_saliency else s
        self.total += 0.5 * mean + 0.5 * active
        self._reset_sums()


def channel_response(x: Tensor, y: Tensor, kind: str) -> Tensor:
    """Equation 1 without |W_ij|: ||X_j|| |<X_j, Y_i>| / (||X_j|| ||Y_i||), (B, O, I); the Wanda form is ||X_j||, (B, 1, I)."""
    if kind == "wanda":
        return x.float().norm(dim=1, keepdim=True)
    unit = y / (y.float().norm(dim=1, keepdim=True) + 1e-12).to(y.dtype)
    return (unit.transpose(1, 2) @ x).float().abs_()


def kth_largest(values: Tensor, fraction: float) -> Tensor:
    """The value that a share of all entries exceeds."""
    count = values.numel()
    return values.flatten().kthvalue(max(1, count - int(fraction * count))).values


def select_candidates(a: Tensor, fraction: float) -> Tensor:
    """Equations 4 to 7: entries among the top r2 of their row and among the top r2 of the layer; never one without any saliency."""
    rows = torch.zeros_like(a, dtype=torch.bool)
    rows.scatter_(1, a.topk(max(1, int(fraction * a.shape[1])), dim=1).indices, True)
    layer = torch.zeros_like(rows).flatten()
    layer[a.flatten().topk(max(1, int(fraction * a.numel()))).indices] = True
    return rows & layer.reshape(a.shape) & (a > 0)


def fuse_masks(masks: list[dict[str, Tensor]], agnostic_fraction: float) -> dict[str, Tensor]:
    """Equation 8: entries that some concept selects, but fewer than alpha C of them; with one concept all it selects."""
    if len(masks) == 1:
        return masks[0]
    agnostic_votes = math.ceil(agnostic_fraction * len(masks))
    votes = {name: torch.stack([mask[name] for mask in masks]).sum(0) for name in masks[0]}
    return {name: (count > 0) & (count < agnostic_votes) for name, count in votes.items()}
