"""What the attacks of one audit share: the attacked prompts, the judge that decides, and how a query becomes scored images."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from erasure.config.registry import load_class
from erasure.config.validation import build_dataclass
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from eval.attacks.base import Attack, AttackQuery
from eval.generation import Sample, batch_size_of, generate_by_guidance, generate_from_prompts, guidance_of
from eval.judges.base import Judge
from eval.suites.axes import Axis
from eval.suites.cases import PLAIN_ROLES, Case
from eval.suites.formats import AttackSpec, GridSuite, PromptListSuite, Suite

MAX_CHUNK = 10  # prompts attacked together, at most; see chunk_size
RETAIN_PROMPTS = 24  # prompts unrelated to the concept that an attack may fine-tune on, at most
Row = dict[str, Any]


@dataclass(frozen=True)
class AttackRun:
    """What is attacked, by which attacks, and which judge decides."""

    suite: Suite
    axis: Axis
    attacks: dict[str, Attack]  # by the name of their entry in the suite
    samples: tuple[Sample, ...]  # one per attacked prompt
    substitute_prompts: tuple[str, ...]  # for each sample its prompt with another label of the concept's kind; empty without a template
    stripped_prompts: tuple[str, ...]  # for each sample its prompt with the concept's place left empty; empty without a template
    retain_prompts: tuple[str, ...]
    judge: Judge

    @classmethod
    def from_suite(
        cls, suite: Suite, axis: Axis, targets: tuple[str, ...], samples: Sequence[Sample], judge: Judge, attacks: dict[str, Attack]
    ) -> "AttackRun":
        """Attack the first prompts that ask for a target: the suite's own, then synonyms and descriptions, then more seeds of each.

        Raises:
            UserError: the suite is a grid without another label of the concept's kind, which attacks compare with.
        """
        target_samples = [a for a in samples if a.case.role in (*PLAIN_ROLES, "named", "described") and label_of(a.case, axis) in targets]
        order = {"grid": 0, "prompt_list": 0, "named": 1, "described": 2}
        target_samples.sort(key=lambda a: (a.index, order[a.case.role], a.case.variant.zfill(6)))
        attacked = tuple(target_samples[: suite.attacks.prompts])
        match suite:
            case GridSuite():
                substitutes = substitute_prompts(suite, axis, targets, attacked)
                stripped, retain_role = stripped_prompts(suite, axis, attacked), "grid"
            case PromptListSuite():  # its prompts have no template, so that nothing can be put in the concept's place
                substitutes, stripped, retain_role = (), (), "benign"
        retain_cases = [
            a.case
            for a in samples
            if a.case.role == retain_role and a.index == 0 and label_of(a.case, axis) not in (*targets, *suite.excluded)
        ]
        retain_prompts = [
            retain_cases[int(i * len(retain_cases) / RETAIN_PROMPTS)].prompt for i in range(min(RETAIN_PROMPTS, len(retain_cases)))
        ]
        return cls(suite, axis, attacks, attacked, substitutes, stripped, tuple(retain_prompts), judge)

    def seed_of(self, i: int, purpose: str, index: int) -> int:
        """Return the seed of an image of prompt i (63 bits), the same for every attack."""
        key = f"{self.suite.name}|{self.samples[i].file_name}|{purpose}|{index}".encode()
        return int.from_bytes(blake2b(key, digest_size=8).digest(), "big") >> 1

    def generate_and_score(
        self, model: DiffusionModel, chunk: Sequence[int], query: AttackQuery, seeds: Sequence[int]
    ) -> tuple[list[Row], Tensor]:
        """Return the judge's scores, each with whether it shows the concept, and the images [B, 3, H, W], uint8."""
        guidance_scales = [guidance_of(self.suite, self.samples[i].case) for i in chunk]
        queries = [select_query(query, position) for position in range(len(chunk))]

        def generate(scale: float, positions: Sequence[int]) -> Tensor:
            batch = merge_queries([queries[position] for position in positions])
            return generate_from_prompts(
                model, batch.prompts, [seeds[position] for position in positions], self.suite.steps, scale, batch.prefix
            )

        images = generate_by_guidance(guidance_scales, generate)
        scores = self.judge.score(images.float() / 255, [self.samples[i].case.prompt for i in chunk])
        return [
            {"label": r["label"], "p": r["p"], "shows_concept": r["label"] == label_of(self.samples[i].case, self.axis)}
            for i, r in zip(chunk, scores, strict=True)
        ], images


def build_attacks(specs: Sequence[AttackSpec]) -> dict[str, Attack]:
    """Return the attacks of a suite by the name of their entry.

    Raises:
        UserError: there is no such attack, or it has no such field or not with such a value.
    """
    return {
        spec.name: build_dataclass(load_class("eval.attacks", spec.attack, Attack), spec.fields, f"attack {spec.name}") for spec in specs
    }


def substitute_prompts(suite: GridSuite, axis: Axis, targets: Sequence[str], samples: Sequence[Sample]) -> tuple[str, ...]:
    """Return the prompts of samples with another label of the concept's kind, a different one for each.

    Raises:
        UserError: the suite has no other label of that kind.
    """
    phrases = suite.phrases(axis)
    other_labels = [label for label in phrases if label not in (*targets, *suite.excluded)]
    if not other_labels:
        raise UserError(f"suite {suite.name} has no {axis} besides what was erased; attacks need one to compare with.")
    return tuple(fill_template(suite, axis, sample.case, phrases[other_labels[i % len(other_labels)]]) for i, sample in enumerate(samples))


def stripped_prompts(suite: GridSuite, axis: Axis, samples: Sequence[Sample]) -> tuple[str, ...]:
    """Return the prompts of samples with the concept's place left empty."""
    return tuple(" ".join(fill_template(suite, axis, sample.case, "").split()) for sample in samples)


def fill_template(suite: GridSuite, axis: Axis, case: Case, words: str) -> str:
    """Return the prompt of a case with other words on one axis."""
    style_words = words if axis == "style" else suite.styles.get(case.style, case.style)
    object_words = words if axis == "object" else suite.objects.get(case.object, case.object)
    return suite.template.format(style=style_words, object=object_words)


def label_of(case: Case, axis: Axis) -> str:
    return case.style if axis == "style" else case.object


def select_query(query: AttackQuery, position: int) -> AttackQuery:
    """Return the part of a round that asks for one prompt."""
    prefix = query.prefix if query.prefix is None or query.prefix.ndim == 2 else query.prefix[position]
    return AttackQuery([query.prompts[position]], prefix, [query.display_prompts[position]] if query.display_prompts else None)


def merge_queries(queries: Sequence[AttackQuery]) -> AttackQuery:
    """Merge queries of one prompt each into one round; all prefixes of an attack have the same length."""
    prefixes = [query.prefix for query in queries if query.prefix is not None]
    return AttackQuery([query.prompts[0] for query in queries], torch.stack(prefixes) if prefixes else None)


def chunk_size(model: DiffusionModel) -> int:
    """Return how many prompts are attacked together: fixed for a model, so that resumed runs, shards and machines repeat the batches."""
    return min(MAX_CHUNK, batch_size_of(model))
