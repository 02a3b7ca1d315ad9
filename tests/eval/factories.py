"""Builders that several tests of the audit share: planted rows of attacks, and the context of attacks that learn a word."""

from typing import Any

from erasure.families.stable_diffusion import StableDiffusion
from erasure.training import fill_cache
from erasure.training.teacher_cache import TeacherQuery
from eval.attacks.base import AttackContext

ATTACK_INFO: dict[str, Any] = {"paper": "", "threat": "", "fields": {}}
CONCEPT_PROMPTS, STRIPPED_PROMPTS = ("neon cat", "neon dog", "neon hen"), ("cat", "dog", "hen")


def planted_attack_rows(name: str, rounds: list[int | None], fresh: int = 0) -> list[dict[str, Any]]:
    """Rows of a search over prompts 0, 1, ...: the round that broke each, and how many of two fresh images show the concept again."""
    fresh_scores = [{"shows_concept": i < fresh} for i in range(2)]
    return [
        {
            "attack": name,
            "image": f"{i}.png",
            "prompt": "",
            "search_scores": [{}] * 4,
            "round": broken_in,
            "found_prompt": "",
            "fresh_scores": fresh_scores if broken_in is not None else [],
        }
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
