"""UCE: a closed-form edit of the cross-attention keys and values (Gandikota et al., arXiv:2308.14761, equation 7)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from erasure import prompt_templates
from erasure.concept import PROMPT_TEMPLATES, SLOT, Concept, ConceptKind, fill_template
from erasure.edits.deltas import DOWN, UP
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.conditioning import ConditioningPart
from erasure.families.cost import Cost
from erasure.families.pipelines import RELEASED_FAMILIES
from erasure.loading.model_source import SHIPPED_MODELS
from erasure.methods.base import MethodResult, TrainingFree, exclude_concepts
from erasure.pocket import prompts as pocket_prompts

_POCKET = {"tokens": "tail", "retain_prompts": pocket_prompts.RETAIN, "probe_prompts": pocket_prompts.RETAIN}


@dataclass(frozen=True, kw_only=True)
class UCE(TrainingFree):
    """Unified concept editing.

    With c the text conditioning of the concept's tokens, g that of the guide's and p that of what to retain, every matrix W that reads the
    conditioning becomes

        W (I + K),  K = e sum (g - c) c^T M^-1,  M = lambda I + e sum c c^T + s sum p p^T

    which is the paper's closed form with W0 factored out: K does not depend on the layer, so one factorization serves all matrices and
    the edit has exactly the rank of K. In a UNet these are the keys and values of cross-attention. A transformer with joint attention has
    two: the projection of the tokens and that of the pooled vector, each with a K of its own. The guide is the prompt with the concept's
    anchor in its place.

    Raises:
        UserError: The regularization is not positive.
    """

    paper: ClassVar[str] = "arXiv:2308.14761"
    changes: ClassVar[str] = "the matrices that read the text, in closed form: keys and values of cross-attention, or text projections"
    when: ClassVar[str] = "when many concepts must be erased within seconds; published attacks break it more often than other methods"

    erase_weight: float = 1.0  # weight of the concepts, e in the equation (the authors' erase_scale)
    retain_weight: float = 1.0  # weight of the prompts to retain, s in the equation (the authors' preserve_scale)
    regularization: float = 0.5  # weight of staying close to the original matrices, the paper's lambda
    tokens: Literal["last", "tail"] = "last"  # tokens to edit: the concept's last one, or the tail of the context from there on
    retain_prompts: tuple[str, ...] = ()  # prompts to retain; those that name the concept are left out
    probe_prompts: tuple[str, ...] = prompt_templates.RETAIN  # prompts on which collateral change is measured

    def __post_init__(self) -> None:
        if not self.regularization > 0:
            raise UserError(f"--regularization must be positive, got {self.regularization}; it keeps the system solvable.")

    def solve(self, model: DiffusionModel, concepts: list[Concept], seed: int) -> MethodResult:
        layers, rows = model.closed_form_layers(), self.encode_rows(model, concepts)
        factors = {part: low_rank_factors(self.update_matrix(*rows[part])) for part in sorted(set(layers.values()))}
        tensors: dict[str, Tensor] = {}
        parameters = model.parameters()
        for name, part in layers.items():
            left, right = factors[part]
            weight = parameters[name].detach().to("cpu", torch.float64)
            tensors[name + UP] = (weight @ left).half().contiguous()
            tensors[name + DOWN] = right.half().contiguous()
        left, right = factors["sequence"]
        return MethodResult(tensors, {"rank": left.shape[1], "collateral": self.measure_collateral(model, concepts, left, right)})

    def update_matrix(self, erase: Tensor, guide: Tensor, retain: Tensor) -> Tensor:
        """Return K (D, D), fp64, from rows erase and guide (N, D) and retain (P, D)."""
        e, g, p = erase.double(), guide.double(), retain.double()
        gram = self.regularization * torch.eye(e.shape[1], dtype=torch.float64)
        gram += self.erase_weight * e.T @ e + self.retain_weight * p.T @ p
        return torch.cholesky_solve(self.erase_weight * e.T @ (g - e), torch.linalg.cholesky(gram)).T

    def encode_rows(self, model: DiffusionModel, concepts: list[Concept]) -> dict[ConditioningPart, tuple[Tensor, Tensor, Tensor]]:
        """Return the rows c and g (N, D) and p (P, D) of the equation for each part of the conditioning, on the CPU.

        The pooled part has one row a prompt; the sequence has those of the tokens, once for every text encoder.
        """
        texts, positions = [], []
        for concept in concepts:
            for template in concept.prompts or PROMPT_TEMPLATES[concept.kind]:
                prompt, _, neutral = (part.strip() for part in template.partition("|"))
                anchored = bool(concept.anchor or not neutral)
                texts += [fill_template(prompt, concept.name), fill_template(prompt, concept.anchor) if anchored else neutral]
                guide = self.last_token_positions(model, prompt, concept.anchor) if anchored else model.last_token_indices(neutral)
                positions.append(zip(self.last_token_positions(model, prompt, concept.name), guide, model.token_spans, strict=True))
        cond, retain_sequence, retain_pooled = model.encode(texts), *self.encode_retained(model, concepts)
        erase_rows, guide_rows = [], []
        sequence = cond.sequence.double().cpu()
        for c, g, places in zip(sequence[::2], sequence[1::2], positions, strict=True):
            for i, j, (_, stop) in places:
                count = 1 if self.tokens == "last" else stop - max(i, j)
                erase_rows.append(c[i : i + count])
                guide_rows.append(g[j : j + count])
        rows: dict[ConditioningPart, tuple[Tensor, Tensor, Tensor]] = {
            "sequence": (torch.cat(erase_rows), torch.cat(guide_rows), retain_sequence)
        }
        if cond.pooled is not None and retain_pooled is not None:
            pooled = cond.pooled.double().cpu()
            rows["pooled"] = pooled[::2], pooled[1::2], retain_pooled
        return rows

    @staticmethod
    def last_token_positions(model: DiffusionModel, template: str, text: str) -> tuple[int, ...]:
        """Return the positions of the last token of `text` in a prompt template with `text` in its slot, one for every text encoder."""
        return model.last_token_indices(fill_template(template[: template.index(SLOT)] + SLOT, text))

    def encode_retained(self, model: DiffusionModel, concepts: list[Concept]) -> tuple[Tensor, Tensor | None]:
        """Return the rows (P, D) of the retain prompts, and their pooled ones; with `tokens="tail"` the empty prompt is one of them."""
        prompts = [*([""] if self.tokens == "tail" else []), *exclude_concepts(self.retain_prompts, concepts)]
        cond = model.encode(prompts or [""])[: len(prompts)]
        sequence, pooled = cond.sequence.cpu(), None if cond.pooled is None else cond.pooled.cpu()
        if self.tokens == "tail" or not prompts:
            return sequence.flatten(0, 1), pooled
        rows = [c[i] for c, prompt in zip(sequence, prompts, strict=True) for i in model.last_token_indices(prompt)]
        return torch.stack(rows), pooled

    def measure_collateral(self, model: DiffusionModel, concepts: list[Concept], left: Tensor, right: Tensor) -> list[list[Any]]:
        """Return [probe, ||K p|| / ||p||] at the last token of every probe, largest first: how far the edit moves what it should not."""
        prompts = [*exclude_concepts(self.probe_prompts, concepts), *(alias for concept in concepts for alias in concept.aliases)]
        conditioning = list(model.encode(prompts).sequence.double().cpu()) if prompts else []
        relative_changes = []
        for prompt, prompt_cond in zip(prompts, conditioning, strict=True):
            p = prompt_cond[model.last_token_indices(prompt)[0]]
            relative_changes.append([prompt, round((left @ (right @ p)).norm().item() / p.norm().item(), 4)])
        return sorted(relative_changes, key=lambda pair: -pair[1])

    def forecast_cost(self, model: DiffusionModel, concepts: list[Concept]) -> Cost:
        erase = 2 * sum(len(c.prompts or PROMPT_TEMPLATES[c.kind]) for c in concepts)
        retain = len(exclude_concepts(self.retain_prompts, concepts)) + (self.tokens == "tail")
        probes = len(exclude_concepts(self.probe_prompts, concepts)) + sum(len(c.aliases) for c in concepts)
        return Cost(text_forwards=erase + (retain or 1) + probes)

    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {
        **{("style", family): {**_POCKET, "prompts": pocket_prompts.STYLE, "anchor": "plain"} for family in SHIPPED_MODELS},
        **{("object", family): {**_POCKET, "prompts": pocket_prompts.OBJECT, "anchor": "picture"} for family in SHIPPED_MODELS},
        **{("person", family): {**_POCKET, "prompts": pocket_prompts.PERSON, "anchor": "a picture"} for family in SHIPPED_MODELS},
        # nothing below was run on released weights; the anchors are the guides of the authors' newer code
        **{
            ("style", family): {"anchor": "art", "prompts": ("{}", "painting by {}", "art by {}", "artwork by {}", "picture by {}")}
            for family in RELEASED_FAMILIES
        },
        **{
            ("object", family): {"prompts": ("{}", "image of {}", "photo of {}", "portrait of {}", "picture of {}")}
            for family in RELEASED_FAMILIES
        },
        **{
            ("person", family): {"anchor": "a person", "prompts": ("{}", "image of {}", "photo of {}", "portrait of {}")}
            for family in RELEASED_FAMILIES
        },
        **{("nsfw", family): {"prompts": ("{}", "image of {}", "photo of {}", "portrait of {}")} for family in RELEASED_FAMILIES},
    }


def low_rank_factors(matrix: Tensor, tolerance: float = 1e-9) -> tuple[Tensor, Tensor]:
    """Return factors (D, r) and (r, D) of a matrix (D, D) at its numerical rank, which is at least 1."""
    u, s, v = torch.linalg.svd(matrix)
    rank = max(1, int((s > tolerance * s[0].clamp(min=1e-30)).sum()))
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]
