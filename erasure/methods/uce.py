"""UCE: a closed-form edit of the cross-attention keys and values (Gandikota et al., arXiv:2308.14761, equation 7)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from erasure import prompt_templates as sentences
from erasure.concept import PROMPT_TEMPLATES, SLOT, Concept, ConceptKind, fill_template
from erasure.edits.deltas import DOWN, UP
from erasure.errors import UserError
from erasure.families.base import Cost, DiffusionModel
from erasure.methods.base import MethodResult, TrainingFree, exclude_concepts
from erasure.pocket import prompts as pocket


@dataclass(frozen=True, kw_only=True)
class UCE(TrainingFree):
    """Unified concept editing.

    With c the text conditioning of the concept's tokens, g of the guide's and p of what to keep, every key and value matrix becomes

        W (I + K),  K = e sum (g - c) c^T M^-1,  M = lambda I + e sum c c^T + s sum p p^T

    which is the paper's closed form with W0 taken out: K does not depend on the layer, so one factorisation serves all matrices and the
    edit has the rank of K, exactly. The guide is the sentence with the concept's anchor in its place.
    """

    paper: ClassVar[str] = "arXiv:2308.14761"
    changes: ClassVar[str] = "keys and values of cross-attention, in closed form"
    when: ClassVar[str] = "many concepts in seconds; published attacks break it more often than others"

    erase_weight: float = 1.0  # e, weight of the concepts
    retain_weight: float = 1.0  # s, weight of what to keep
    regularization: float = 0.5  # lambda, weight of staying where the matrices were
    tokens: Literal["last", "tail"] = "last"  # which tokens of a sentence: the concept's last, or from there to the end of the context
    retain_prompts: tuple[str, ...] = ()  # sentences to keep; those that name the concept are left out
    probe_prompts: tuple[str, ...] = sentences.RETAIN  # sentences on which the preview measures collateral change

    def __post_init__(self) -> None:
        if not self.regularization > 0:
            raise UserError(f"--lamb must be positive, got {self.regularization}; it keeps the system solvable.")

    def solve(self, model: DiffusionModel, concepts: list[Concept], seed: int) -> MethodResult:
        erase, guide = self.encode_concepts(model, concepts)
        keep = self.encode_retained(model, concepts)
        left, right = low_rank_factors(self.update_matrix(erase, guide, keep))
        tensors: dict[str, Tensor] = {}
        for name in model.parameter_names("xattn-kv"):
            weight = model.parameters()[name].detach().to("cpu", torch.float64)
            tensors[name + UP] = (weight @ left).half().contiguous()
            tensors[name + DOWN] = right.half().contiguous()
        return MethodResult(tensors, {"rank": left.shape[1], "collateral": self.measure_collateral(model, concepts, left, right)})

    def update_matrix(self, erase: Tensor, guide: Tensor, keep: Tensor) -> Tensor:
        """K (D, D) from rows erase and guide (N, D) and keep (P, D), in fp64."""
        e, g, p = erase.double(), guide.double(), keep.double()
        gram = self.regularization * torch.eye(e.shape[1], dtype=torch.float64)
        gram += self.erase_weight * e.T @ e + self.retain_weight * p.T @ p
        return torch.cholesky_solve(self.erase_weight * e.T @ (g - e), torch.linalg.cholesky(gram)).T

    def encode_concepts(self, model: DiffusionModel, concepts: list[Concept]) -> tuple[Tensor, Tensor]:
        """Conditioning of the concepts' tokens and of their guides', (N, D) each."""
        erase, guide = [], []
        for concept in concepts:
            texts, positions = [], []
            for template in concept.prompts or PROMPT_TEMPLATES[concept.kind]:
                prompt, _, neutral = (part.strip() for part in template.partition("|"))
                anchored = bool(concept.anchor or not neutral)
                texts += [fill_template(prompt, concept.name), fill_template(prompt, concept.anchor) if anchored else neutral]
                positions.append(
                    (
                        self.last_token_position(model, prompt, concept.name),
                        self.last_token_position(model, prompt, concept.anchor) if anchored else model.last_token_index(neutral),
                    )
                )
            conditioning = model.encode(texts).double().cpu()
            for c, g, (i, j) in zip(conditioning[::2], conditioning[1::2], positions, strict=True):
                count = 1 if self.tokens == "last" else len(c) - max(i, j)
                erase.append(c[i : i + count])
                guide.append(g[j : j + count])
        return torch.cat(erase), torch.cat(guide)

    @staticmethod
    def last_token_position(model: DiffusionModel, template: str, text: str) -> int:
        """Position of the last token of `words` in a sentence with a slot for them."""
        return model.last_token_index(fill_template(template[: template.index(SLOT)] + SLOT, text))

    def encode_retained(self, model: DiffusionModel, concepts: list[Concept]) -> Tensor:
        """Conditioning of what to keep, (P, D); the empty prompt is always among it when whole tails are edited."""
        prompts = (
            ["", *exclude_concepts(self.retain_prompts, concepts)]
            if self.tokens == "tail"
            else list(exclude_concepts(self.retain_prompts, concepts))
        )
        if not prompts:
            return torch.zeros(0, model.encode([""]).shape[-1])
        conditioning = model.encode(prompts).cpu()
        return (
            conditioning.flatten(0, 1)
            if self.tokens == "tail"
            else torch.stack(
                [prompt_cond[model.last_token_index(prompt)] for prompt_cond, prompt in zip(conditioning, prompts, strict=True)]
            )
        )

    def measure_collateral(self, model: DiffusionModel, concepts: list[Concept], left: Tensor, right: Tensor) -> list[list[Any]]:
        """[(probe, ||K p|| / ||p||)] at the last token of every probe, largest first: how far the edit moves what it should not."""
        prompts = [*exclude_concepts(self.probe_prompts, concepts), *(alias for concept in concepts for alias in concept.aliases)]
        conditioning = list(model.encode(prompts).double().cpu()) if prompts else []
        relative_changes = []
        for prompt, prompt_cond in zip(prompts, conditioning, strict=True):
            p = prompt_cond[model.last_token_index(prompt)]
            relative_changes.append([prompt, round((left @ (right @ p)).norm().item() / p.norm().item(), 4)])
        return sorted(relative_changes, key=lambda pair: -pair[1])

    def forecast_cost(self, model: DiffusionModel, concepts: list[Concept]) -> Cost:
        erase = 2 * sum(len(c.prompts or PROMPT_TEMPLATES[c.kind]) for c in concepts)
        keep = len(exclude_concepts(self.retain_prompts, concepts)) + (self.tokens == "tail")
        return Cost(
            text_forwards=erase + (keep or 1) + len(exclude_concepts(self.probe_prompts, concepts)) + sum(len(c.aliases) for c in concepts)
        )

    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {
        ("style", "pocket"): {
            "tokens": "tail",
            "preserve": pocket.RETAIN,
            "probes": pocket.RETAIN,
            "prompts": pocket.STYLE,
            "anchor": "plain",
        },
        ("object", "pocket"): {
            "tokens": "tail",
            "preserve": pocket.RETAIN,
            "probes": pocket.RETAIN,
            "prompts": pocket.OBJECT,
            "anchor": "picture",
        },
        ("person", "pocket"): {
            "tokens": "tail",
            "preserve": pocket.RETAIN,
            "probes": pocket.RETAIN,
            "prompts": pocket.PERSON,
            "anchor": "a picture",
        },
        # nothing below was run on real SD weights; the guides are those of the authors' newer code
        **{
            ("style", family): {"anchor": "art", "prompts": ("{}", "painting by {}", "art by {}", "artwork by {}", "picture by {}")}
            for family in ("sd1", "sd2")
        },
        **{
            ("object", family): {"prompts": ("{}", "image of {}", "photo of {}", "portrait of {}", "picture of {}")}
            for family in ("sd1", "sd2")
        },
        **{
            ("person", family): {"anchor": "a person", "prompts": ("{}", "image of {}", "photo of {}", "portrait of {}")}
            for family in ("sd1", "sd2")
        },
        **{("nsfw", family): {"prompts": ("{}", "image of {}", "photo of {}", "portrait of {}")} for family in ("sd1", "sd2")},
    }


def low_rank_factors(matrix: Tensor, tolerance: float = 1e-9) -> tuple[Tensor, Tensor]:
    """Factors (D, r) and (r, D) of a matrix at its numerical rank, which is at least 1."""
    u, s, v = torch.linalg.svd(matrix)
    rank = max(1, int((s > tolerance * s[0].clamp(min=1e-30)).sum()))
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]
