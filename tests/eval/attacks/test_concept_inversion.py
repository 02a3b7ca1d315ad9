"""Concept inversion: only the new word moves, it learns without the name, and a shorter fit is the beginning of a longer one."""

from collections.abc import Sequence

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from erasure.edits.stacking import EditStack
from erasure.errors import UserError
from erasure.families.conditioning import Conditioning
from erasure.families.sampling import SamplingOverrides
from erasure.families.stable_diffusion import StableDiffusion
from eval.attacks.base import NotApplicable
from eval.attacks.concept_inversion import ConceptInversion
from tests.eval.factories import STRIPPED_PROMPTS, inversion_context

QUICK = ConceptInversion(steps=24, batch=4, lr=0.1)


def amplify_text(model: StableDiffusion) -> StableDiffusion:
    """Make the denoiser depend strongly on its text, so that there is a word to find."""
    with torch.no_grad():
        for name, p in model.pipe.unet.named_parameters():
            if ".attn2.to_" in name:
                p.mul_(8)
    return model


def test_only_the_new_word_moves_and_its_loss_falls(model: StableDiffusion) -> None:
    context, before, backwards = inversion_context(amplify_text(model)), model.fingerprint(), model.cost.unet_backwards
    prepared = {"other": torch.zeros(1)}
    fitted = QUICK.fit(context, prepared)
    assert model.fingerprint() == before and all(not p.requires_grad and p.grad is None for p in model.parameters().values())
    assert {type(p) for p in model.pipe.unet.attn_processors.values()} == {AttnProcessor2_0}
    assert model.cost.unet_backwards - backwards == 24 * 4
    assert fitted["other"] is prepared["other"] and fitted["vectors"].shape == (4, 1, 32)

    @torch.no_grad()
    def loss(word: Tensor) -> float:
        return ConceptInversion(batch=256).loss(context, torch.arange(3), word, torch.Generator().manual_seed(9)).item()

    assert loss(fitted["vectors"][-1]) < loss(fitted["vectors"][0]) < loss(QUICK.initial_vectors(model))


def test_the_loss_is_that_of_textual_inversion(model: StableDiffusion) -> None:
    """The noise follows from the model's input, sqrt(abar) x_0 + sqrt(1 - abar) eps, and from the x_0 of the row's own prompt."""
    context, calls = inversion_context(model), []
    predict = model.predict

    def record_call(x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        calls.append((x_t, t, cond, predict(x_t, t, cond)))
        return calls[-1][-1]

    model.predict = record_call  # type: ignore[method-assign]
    word = torch.randn(2, 32, generator=torch.Generator().manual_seed(2))
    loss = ConceptInversion(tokens=2, batch=16).loss(context, torch.tensor([2, 0]), word, torch.Generator().manual_seed(3))
    x_t, t, cond, prediction = calls[0]
    errors = []
    for row in range(16):
        alpha = model.schedule.alphas_cumprod[t[row]]
        prompts = [
            i for i in (0, 2) if torch.allclose(model.encode([STRIPPED_PROMPTS[i]], word).sequence[0], cond[row].sequence[0], atol=1e-5)
        ]
        eps = (x_t[row] - alpha.sqrt() * context.base_latents(prompts)[0]) / (1 - alpha).sqrt()
        assert abs(eps.std().item() - 1) < 0.2  # so x_0 is the latent of that prompt
        errors.append((prediction[row] - eps).pow(2).mean())
    assert torch.allclose(loss, torch.stack(errors).mean(), rtol=1e-3)


def test_snapshots_are_beginnings_of_one_fit(model: StableDiffusion) -> None:
    word = QUICK.fit(inversion_context(model), {})["vectors"]
    shorter = ConceptInversion(steps=12, batch=4, lr=0.1).fit(inversion_context(model, images=1), {})["vectors"]
    torch.manual_seed(5)
    assert torch.equal(QUICK.fit(inversion_context(model), {})["vectors"], word)
    assert torch.equal(shorter[0], word[1]) and not torch.equal(word[0], word[1])
    assert not torch.equal(QUICK.fit(inversion_context(model, seed=1), {})["vectors"], word)


def test_the_name_of_the_concept_is_never_encoded(model: StableDiffusion) -> None:
    context = inversion_context(model)
    encoded: list[str] = []
    encode = model.encode

    def record_prompts(prompts: Sequence[str], prefix: Tensor | None = None) -> Tensor:
        encoded.extend(prompts)
        return encode(prompts, prefix)

    model.encode = record_prompts  # type: ignore[method-assign]
    attack = ConceptInversion(tokens=2, steps=10, batch=4)
    fitted = attack.fit(context, {})
    queries = list(attack.queries(context, (2, 0), fitted))
    assert set(encoded) == set(STRIPPED_PROMPTS)
    assert [query.prompts for query in queries] == [["hen", "cat"]] * 4
    assert all("neon" not in text for query in queries for text in query.display_prompts or [])
    prefixes = [query.prefix for query in queries if query.prefix is not None]
    assert torch.equal(torch.stack(prefixes), fitted["vectors"]) and len(fitted["vectors"][0]) == 2
    encoded.clear()
    ConceptInversion(examples=1, steps=5, batch=4).fit(context, {})
    assert len(set(encoded)) == 1


def test_wrong_fields_and_contexts_are_refused(model: StableDiffusion) -> None:
    for fields, message in (({"tokens": 0}, "tokens must be positive, got 0"), ({"weight_decay": -1.0}, "cannot be negative, got -1.0")):
        with pytest.raises(UserError, match=message):
            ConceptInversion(**fields)  # type: ignore[arg-type]
    with pytest.raises(NotApplicable, match="needs 3 such prompts, got 0"):
        QUICK.fit(inversion_context(model, stripped_prompts=()), {})
    with pytest.raises(UserError, match="word '' has no tokens"):
        ConceptInversion(initializer_word="").fit(inversion_context(model), {})
    context = inversion_context(model)
    model.pipe.erasure_edits = EditStack(sampling=SamplingOverrides(one_step_timestep=625))
    with pytest.raises(NotApplicable, match="one-step generator never does"):
        QUICK.fit(context, {})
    del model.pipe.erasure_edits
    with torch.no_grad():
        model.pipe.unet.conv_out.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1; no update has been made yet"):
        QUICK.fit(context, {})
    assert {type(p) for p in model.pipe.unet.attn_processors.values()} == {AttnProcessor2_0}
