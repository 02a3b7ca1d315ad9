"""UCE: a closed-form edit of the cross-attention keys and values (Gandikota et al., arXiv:2308.14761, equation 7)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from erasure import prompt_templates
from erasure.concept import PROMPT_TEMPLATES, SLOT, Concept, ConceptKind, fill_template
from erasure.config.choices import PositiveWeight, Weight
from erasure.edits.deltas import DOWN, UP
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.conditioning import ConditioningPart
from erasure.families.cost import Cost
from erasure.families.pipelines import RELEASED_FAMILIES
from erasure.loading.model_source import SHIPPED_MODELS
from erasure.methods.base import MethodResult, TrainingFree, exclude_concepts
from erasure.pocket import prompts as pocket_prompts
from erasure.training.subspaces import frequent_directions, orthonormal_basis

FREE_SHARE = 1e-6  # of the concept's norm; with less of it free, an edit would be noise
_POCKET = {"tokens": "tail", "retain_prompts": pocket_prompts.RETAIN, "probe_prompts": pocket_prompts.RETAIN}


class ClosedFormRows(NamedTuple):
    """Rows of the conditioning in the equation."""

    erase: Tensor  # c (N, D)
    guide: Tensor  # g (N, D)
    retain: Tensor  # p (P, D)
    held: Tensor  # (Q, D) rows that never move


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

    `project` and `hold` keep directions exactly instead of softly. With Pi = I - B B^T, where the orthonormal columns of B span what is
    kept,

        K = e (G - C)^T C Pi (lambda I + Pi (e C^T C + s P^T P) Pi)^-1 Pi

    so that K b = 0 for every b in the span. SPEED (arXiv:2503.07392, without its filters of what to keep) is s = 0, e = lambda = 1; Double
    Projections (arXiv:2604.10032) is s = 0, lambda -> 0 with the guide in the span of what is kept.

    Raises:
        UserError: The regularization or the erase weight is not positive, or another weight or `project` is negative.
    """

    paper: ClassVar[str] = "arXiv:2308.14761"
    changes: ClassVar[str] = "the matrices that read the text, in closed form: keys and values of cross-attention, or text projections"
    when: ClassVar[str] = "when many concepts must be erased within seconds; published attacks break it more often than other methods"

    erase_weight: PositiveWeight = 1.0  # weight of erasing the concepts, e in the equation (the authors' erase_scale)
    retain_weight: Weight = 1.0  # weight of the prompts to retain, s in the equation (the authors' preserve_scale)
    regularization: float = 0.5  # weight of staying close to the original matrices, the paper's lambda
    project: float = 0.0  # how common a direction of what to retain must be to be kept exactly (an eigenvalue of P^T P / rows); 0: none is
    hold: Literal["nothing", "start", "empty"] = "nothing"  # rows that never move: the start token's, or all of the empty prompt
    guide: Literal["anchor", "retained"] = "anchor"  # what a row becomes: the anchor's, or its own projection on the rows to retain
    tokens: Literal["last", "tail"] = "last"  # tokens to edit: the concept's last one, or the tail of the context from there on
    retain_prompts: tuple[str, ...] = ()  # prompts to retain; those that name the concept are left out
    probe_prompts: tuple[str, ...] = prompt_templates.RETAIN  # prompts on which collateral change is measured

    def __post_init__(self) -> None:
        if not self.regularization > 0:
            raise UserError(f"--regularization must be positive, got {self.regularization}; it keeps the system solvable.")
        if not self.erase_weight > 0:
            raise UserError(f"--erase-weight must be positive, got {self.erase_weight:g}; with 0 nothing is erased.")
        if self.retain_weight < 0:
            raise UserError(f"--retain-weight must not be negative, got {self.retain_weight:g}.")
        if self.project < 0:
            raise UserError(f"--project must not be negative, got {self.project:g}; 0 keeps no direction exactly.")

    def solve(self, model: DiffusionModel, concepts: list[Concept], seed: int) -> MethodResult:
        layers, rows = model.closed_form_layers(), self.encode_rows(model, concepts)
        updates = {part: self.update_matrix(rows[part]) for part in sorted(set(layers.values()))}
        factors = {part: low_rank_factors(update) for part, update in updates.items()}
        tensors: dict[str, Tensor] = {}
        parameters = model.parameters()
        for name, part in layers.items():
            left, right = factors[part]
            weight = parameters[name].detach().to("cpu", torch.float64)
            tensors[name + UP] = (weight @ left).half().contiguous()
            tensors[name + DOWN] = right.half().contiguous()
        left, right = factors["sequence"]
        notes = {
            "rank": left.shape[1],
            **self.measure_reach(rows["sequence"], updates["sequence"]),
            "collateral": self.measure_collateral(model, concepts, left, right),
        }
        return MethodResult(tensors, notes)

    def update_matrix(self, rows: ClosedFormRows) -> Tensor:
        """Return K (D, D), fp64.

        Raises:
            UserError: What is kept exactly leaves nothing of the concept, or the regularization is too small for a stable solution.
        """
        c, g, p = rows.erase.double(), self.guide_rows(rows), rows.retain.double()
        kept = self.kept_basis(rows)
        free_c, free_p = c - c @ kept @ kept.T, p - p @ kept @ kept.T
        if free_c.norm() < FREE_SHARE * c.norm():
            raise UserError(
                f"--project {self.project:g} and --hold {self.hold} keep {kept.shape[1]} of {len(kept)} directions exactly, and no part "
                "of the concept is free. Raise --project, give fewer --retain-prompts, or --hold nothing."
            )
        gram = self.regularization * torch.eye(c.shape[1], dtype=torch.float64)
        gram += self.erase_weight * free_c.T @ free_c + self.retain_weight * free_p.T @ free_p
        factor, failed = torch.linalg.cholesky_ex(gram)
        if failed:
            raise UserError(
                f"the closed form has no stable solution with --regularization {self.regularization:g} and --erase-weight "
                f"{self.erase_weight:g}: the rows of the concept outweigh it by too much. Raise --regularization or lower --erase-weight."
            )
        update = torch.cholesky_solve(self.erase_weight * free_c.T @ (g - c), factor).T
        return update - update @ kept @ kept.T

    def kept_basis(self, rows: ClosedFormRows) -> Tensor:
        """Return the orthonormal basis B (D, r), fp64, of what is kept exactly: frequent directions of the retained rows, and held rows."""
        kept = rows.held.double()
        if self.project:
            kept = torch.cat([kept, frequent_directions(rows.retain.double(), self.project).T])
        return orthonormal_basis(kept)

    def guide_rows(self, rows: ClosedFormRows) -> Tensor:
        """Return the rows g (N, D), fp64, that the concept's rows become.

        Raises:
            UserError: The guide is the retained rows, and there are none.
        """
        if self.guide == "anchor":
            return rows.guide.double()
        if not len(rows.retain):
            raise UserError("--guide retained needs --retain-prompts, on whose rows the concept is projected.")
        retained = orthonormal_basis(rows.retain.double())
        return rows.erase.double() @ retained @ retained.T

    def measure_reach(self, rows: ClosedFormRows, update: Tensor) -> dict[str, float]:
        """Return how much of the concept's rows is free to move (1: all), and how much of the way to the guide remains (0: none)."""
        c, g, kept = rows.erase.double(), self.guide_rows(rows), self.kept_basis(rows)
        free = (c - c @ kept @ kept.T).norm() / c.norm()
        remaining = (c + c @ update.T - g).norm() / (c - g).norm().clamp(min=1e-30)
        return {"free": round(free.item(), 4), "remaining": round(remaining.item(), 4)}

    def encode_rows(self, model: DiffusionModel, concepts: list[Concept]) -> dict[ConditioningPart, ClosedFormRows]:
        """Return the rows of the equation for each part of the conditioning, on the CPU.

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
        held, held_pooled = self.encode_held(model, sequence.shape[-1])
        rows: dict[ConditioningPart, ClosedFormRows] = {
            "sequence": ClosedFormRows(torch.cat(erase_rows), torch.cat(guide_rows), retain_sequence, held)
        }
        if cond.pooled is not None and retain_pooled is not None:
            pooled = cond.pooled.double().cpu()
            rows["pooled"] = ClosedFormRows(pooled[::2], pooled[1::2], retain_pooled, pooled[:0] if held_pooled is None else held_pooled)
        return rows

    def encode_held(self, model: DiffusionModel, width: int) -> tuple[Tensor, Tensor | None]:
        """Return the rows (Q, width) of the sequence that never move, and the pooled ones (Q, D)."""
        if self.hold == "nothing":
            return torch.empty(0, width), None
        cond = model.encode([""])
        sequence = cond.sequence[0].cpu()
        if self.hold == "start":
            return torch.stack([sequence[start] for start, _ in model.token_spans]), None
        return sequence, None if cond.pooled is None else cond.pooled.cpu()

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
        return Cost(text_forwards=erase + (retain or 1) + (self.hold != "nothing") + probes)

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
