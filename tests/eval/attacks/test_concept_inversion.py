"""Concept inversion: only the new word moves, it learns, the name is never said, and a shorter fit is the beginning of a longer one."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from erasure.errors import UserError
from erasure.families.base import SamplingOverrides
from erasure.families.stable_diffusion import StableDiffusion
from erasure.training import fill_cache as recorder
from erasure.training.teacher_cache import TeacherQuery
from eval.attacks.base import AttackContext, NotApplicable
from eval.attacks.concept_inversion import ConceptInversion

PROMPTS, STRIPPED = ("neon cat", "neon dog", "neon hen"), ("cat", "dog", "hen")
SMALL = ConceptInversion(steps=24, batch=4, lr=0.1)


def stand_on(model: StableDiffusion, pictures: int = 4, **fields: Any) -> AttackContext:
    recording = TeacherQuery(
        prompt_pairs=tuple(zip(PROMPTS, STRIPPED, strict=True)), trajectories=3, steps=3, guidance=4.0, store="latents"
    )
    bank = recorder.load_or_fill(model, recording)
    return AttackContext(model, PROMPTS, ("a cat", "a dog", "a hen"), (), bank, pictures, **{"stripped": STRIPPED, **fields})


def listening(model: StableDiffusion) -> StableDiffusion:
    """A denoiser that hears its text, so that there is something to find."""
    with torch.no_grad():
        for name, p in model.pipe.unet.named_parameters():
            if ".attn2.to_" in name:
                p.mul_(8)
    return model


def test_only_the_new_word_moves_and_its_loss_falls(model: StableDiffusion) -> None:
    stand, before, backwards = stand_on(listening(model)), model.fingerprint(), model.cost.unet_backwards
    known = {"other": torch.zeros(1)}
    found = SMALL.fit(stand, known)
    assert model.fingerprint() == before and all(not p.requires_grad and p.grad is None for p in model.parameters().values())
    assert {type(p) for p in model.pipe.unet.attn_processors.values()} == {AttnProcessor2_0}
    assert model.cost.unet_backwards - backwards == 24 * 4
    assert found["other"] is known["other"] and found["word"].shape == (4, 1, 32)

    @torch.no_grad()
    def loss(word: Tensor) -> float:
        return ConceptInversion(batch=256).loss(stand, torch.arange(3), word, torch.Generator().manual_seed(9)).item()

    assert loss(found["word"][-1]) < loss(found["word"][0]) < loss(SMALL.initial_vectors(model))


def test_the_loss_is_that_of_textual_inversion(model: StableDiffusion) -> None:
    """Against x_0 read back from what the model is asked about: sqrt(abar) x_0 + sqrt(1 - abar) eps, all three with their own prompt."""
    stand, asked = stand_on(model), []
    predict = model.predict

    def remembered(x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        asked.append((x_t, t, cond, predict(x_t, t, cond)))
        return asked[-1][-1]

    model.predict = remembered  # type: ignore[method-assign]
    word = torch.randn(2, 32, generator=torch.Generator().manual_seed(2))
    loss = ConceptInversion(tokens=2, batch=16).loss(stand, torch.tensor([2, 0]), word, torch.Generator().manual_seed(3))
    x_t, t, cond, answer = asked[0]
    errors = []
    for row in range(16):
        alpha, says = (
            model.alphas_cumprod[t[row]],
            [i for i in (0, 2) if torch.allclose(model.encode([STRIPPED[i]], word)[0], cond[row], atol=1e-5)],
        )
        eps = (x_t[row] - alpha.sqrt() * stand.base_latents(says)[0]) / (1 - alpha).sqrt()
        assert abs(eps.std().item() - 1) < 0.2  # x_0 is the picture of that very prompt
        errors.append((answer[row] - eps).pow(2).mean())
    assert torch.allclose(loss, torch.stack(errors).mean(), rtol=1e-3)


def test_stages_are_beginnings_of_one_fit(model: StableDiffusion) -> None:
    word = SMALL.fit(stand_on(model), {})["word"]
    shorter = ConceptInversion(steps=12, batch=4, lr=0.1).fit(stand_on(model, pictures=1), {})["word"]
    torch.manual_seed(5)
    assert torch.equal(SMALL.fit(stand_on(model), {})["word"], word)
    assert torch.equal(shorter[0], word[1]) and not torch.equal(word[0], word[1])
    assert not torch.equal(SMALL.fit(stand_on(model, seed=1), {})["word"], word)


def test_the_name_of_the_concept_is_never_said(model: StableDiffusion) -> None:
    stand, said = stand_on(model), []
    encode = model.encode

    def heard(prompts: Sequence[str], prefix: Tensor | None = None) -> Tensor:
        said.extend(prompts)
        return encode(prompts, prefix)

    model.encode = heard  # type: ignore[method-assign]
    attack = ConceptInversion(tokens=2, steps=10, batch=4)
    asks = list(attack.queries(stand, (2, 0), known := attack.fit(stand, {})))
    assert set(said) == set(STRIPPED)
    assert [ask.prompts for ask in asks] == [["hen", "cat"]] * 4 and all(
        "neon" not in text for ask in asks for text in ask.display_prompts or []
    )
    assert torch.equal(torch.stack([ask.prefix for ask in asks if ask.prefix is not None]), known["word"]) and len(known["word"][0]) == 2
    said.clear()
    ConceptInversion(examples=1, steps=5, batch=4).fit(stand, {})
    assert len(set(said)) == 1


def test_what_cannot_be_inverted_is_refused(model: StableDiffusion) -> None:
    for fields, words in (({"tokens": 0}, "tokens must be positive, got 0"), ({"weight_decay": -1.0}, "cannot be negative, got -1.0")):
        with pytest.raises(UserError, match=words):
            ConceptInversion(**fields)  # type: ignore[arg-type]
    with pytest.raises(NotApplicable, match="needs 3 such prompts, got 0"):
        SMALL.fit(stand_on(model, stripped=()), {})
    with pytest.raises(UserError, match="word '' has no tokens"):
        ConceptInversion(initializer_word="").fit(stand_on(model), {})
    stand = stand_on(model)
    model.pipe.erasure_sampling = SamplingOverrides(one_step_timestep=625)
    with pytest.raises(NotApplicable, match="one-step generator never does"):
        SMALL.fit(stand, {})
    model.pipe.erasure_sampling = SamplingOverrides()
    with torch.no_grad():
        model.pipe.unet.conv_out.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1; no update has been made yet"):
        SMALL.fit(stand, {})
    assert {type(p) for p in model.pipe.unet.attn_processors.values()} == {AttnProcessor2_0}
