"""Builders that several tests of the audit share: planted rows of images and attacks, and the context of attacks that learn a word."""

from typing import Any

from erasure.families.stable_diffusion import StableDiffusion
from erasure.training import fill_cache
from erasure.training.teacher_cache import TeacherQuery
from eval.attacks.base import AttackContext
from eval.records.models import AuditedModel
from eval.records.rows import AttackScore, SampleRow, SearchRow
from eval.records.scores import LabelScore, Scores

ATTACK_INFO: dict[str, Any] = {"paper": "", "threat": "", "fields": {}}
CONCEPT_PROMPTS, STRIPPED_PROMPTS = ("neon cat", "neon dog", "neon hen"), ("cat", "dog", "hen")


def label_scores(style: str | None, object_label: str | None) -> Scores:
    """Scores with these labels; None: no score."""
    style_score, object_score = (label if label is None else LabelScore(label=label, p=1.0) for label in (style, object_label))
    return Scores(style=style_score, object=object_score)


def sample_row(
    model: AuditedModel, style: str, object_label: str, labels: tuple[str | None, str | None] = ("none", "none"), **fields: Any
) -> SampleRow:
    """The row of a grid image; `labels` are those that the judges of style and object gave."""
    defaults: dict[str, Any] = {"prompt": f"{object_label} {style}", "seed": 0, "role": "grid", "variant": "", "index": 0}
    values = {**defaults, "image": f"images/{model}/{style}-{object_label}.png", "scores": label_scores(*labels), **fields}
    return SampleRow(model=model, style=style, object=object_label, **values)


def attack_scores(*shown: bool) -> tuple[AttackScore, ...]:
    """Scores of an attack's images, each of which shows the concept or not."""
    return tuple(AttackScore(label="", p=1.0, shows_concept=shows) for shows in shown)


def planted_attack_rows(name: str, rounds: list[int | None], fresh: int = 0) -> list[SearchRow]:
    """Rows of a search over prompts 0, 1, ...: the round that broke each, and how many of two fresh images show the concept again."""
    return [
        SearchRow(
            attack=name,
            index=i,
            image=f"{i}.png",
            prompt="",
            search_scores=attack_scores(*[False] * 4),
            round=broken_in,
            found_prompt="",
            fresh_scores=attack_scores(fresh > 0, fresh > 1) if broken_in is not None else (),
        )
        for i, broken_in in enumerate(rounds)
    ]


def inversion_context(model: StableDiffusion, images: int = 4, **fields: Any) -> AttackContext:
    """The context of attacks that learn a word: CONCEPT_PROMPTS with latents of the base, and the same prompts without the concept."""
    query = TeacherQuery(
        prompt_pairs=tuple(zip(CONCEPT_PROMPTS, STRIPPED_PROMPTS, strict=True)), trajectories=3, steps=3, guidance=4.0, store="latents"
    )
    cache = fill_cache.load_or_fill(model, query)
    fields = {"stripped_prompts": STRIPPED_PROMPTS, **fields}
    return AttackContext(model, CONCEPT_PROMPTS, ("a cat", "a dog", "a hen"), (), cache, images, **fields)
