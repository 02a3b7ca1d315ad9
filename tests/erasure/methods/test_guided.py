"""Guidance edits: our sampler and a plain diffusers pipeline generate the same; the formulas are the papers'."""

from pathlib import Path

import pytest
import torch

from erasure.concept import Concept
from erasure.edits import Edit, apply_edits
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.export import to_folder, to_lora
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.base import Guided
from erasure.methods.negative_prompt import NegativePrompt
from erasure.methods.projected import Projected
from erasure.methods.sld import SLD
from tests import tiny

CAT = [Concept(name="cat", kind="object")]


def test_a_negative_prompt_is_diffusers_negative_prompt(model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase(model, CAT, NegativePrompt(), out=tmp_path / "run")
    with apply_edits(model, [edit]):
        ours = model.sample(["a cat"], [5], steps=5, guidance=4.0)
    theirs = model.pipe(
        ["a cat"], negative_prompt=["cat"], num_inference_steps=5, guidance_scale=4.0, latents=model.sample_noise([5]), output_type="latent"
    ).images
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("method", [NegativePrompt(), Projected(), SLD(), SLD(bound="paper", scale=2.0, threshold=1.0, warmup=0.0)])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_plain_pipeline_generates_what_we_generate(method: Guided, prediction: str, tmp_path: Path) -> None:
    model = StableDiffusion(tiny.pipeline(prediction), "tiny", "fp32")
    edit = erase(model, CAT, method, out=tmp_path / "run")
    with apply_edits(model, [edit]):
        ours = model.sample(["a cat"], [5], steps=5, guidance=4.0)
    plain = tiny.pipeline(prediction)

    def generate() -> torch.Tensor:
        return plain(["a cat"], num_inference_steps=5, guidance_scale=4.0, latents=model.sample_noise([5]), output_type="latent").images

    base = generate()
    loaded = Edit.load(tmp_path / "run").apply(plain)
    assert torch.allclose(generate(), ours, atol=1e-3)
    assert torch.allclose(generate(), ours, atol=1e-3)  # a second trajectory starts without the first one's momentum
    assert not torch.allclose(base, ours, atol=1e-3)
    loaded.revert(plain)
    assert torch.equal(generate(), base)


def test_a_plain_pipeline_without_guidance_is_refused(tmp_path: Path) -> None:
    """It computes no second prediction there, so the image would be the base's."""
    erase(StableDiffusion(tiny.pipeline(), "tiny", "fp32"), CAT, NegativePrompt(), out=tmp_path / "run")
    plain = tiny.pipeline()
    edit = Edit.load(tmp_path / "run").apply(plain)
    with pytest.raises(UserError, match="guidance_scale 1 has none: the image would show the base"):
        plain(["a cat"], num_inference_steps=2, guidance_scale=1.0)
    edit.revert(plain)
    plain(["a cat"], num_inference_steps=2, guidance_scale=1.0, output_type="latent")


def test_sld_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    cond, uncond, concept = (torch.randn(1, 1, 2, 2) for _ in range(3))
    method, memory = SLD(scale=3.0, threshold=0.2, momentum_scale=0.3, momentum_beta=0.4, warmup=0.0), {}  # type: ignore[var-annotated]
    nu = torch.zeros_like(cond)
    for step in range(3):
        mu = torch.zeros_like(cond)
        for i in range(4):
            gap = (cond - concept).flatten()[i].item()
            mu.view(-1)[i] = min(1.0, abs(3.0 * gap)) if gap < 0.2 else 0.0
        gamma = mu * (concept - uncond) + 0.3 * nu
        nu = 0.4 * nu + 0.6 * gamma
        assert torch.allclose(method.guide(cond, uncond, concept, 7.5, step / 3, memory), -7.5 * gamma, atol=1e-6)


def test_the_empty_prompt_in_front_is_trasce() -> None:
    cond, uncond, concept = (torch.randn(2, 4, 2, 2) for _ in range(3))
    for begin, first in (("concept", concept), ("empty", uncond)):
        change = NegativePrompt(begin=begin).guide(cond, uncond, concept, 7.5, 0.5, {})  # type: ignore[arg-type]
        assert torch.allclose(uncond + 7.5 * (cond - uncond) + change, first + 7.5 * (cond - concept), atol=1e-4)


def test_projected_is_the_least_change_that_brings_presence_to_the_threshold() -> None:
    torch.manual_seed(0)
    cond, uncond, concept = (torch.randn(3, 4, 2, 2, dtype=torch.float64) for _ in range(3))
    cond[0] = concept[0]  # the concept itself
    cond[1] = uncond[1] - 2 * (concept[1] - uncond[1])  # the contrary of it
    guidance, tau = 7.5, 0.25
    change = Projected(threshold=tau).guide(cond, uncond, concept, guidance, 0.5, {})
    for i in range(3):
        d, wanted = (concept - uncond)[i].flatten(), (cond - uncond)[i].flatten()
        before, after = (torch.dot(g, d) / torch.dot(d, d) for g in (wanted, wanted + change[i].flatten() / guidance))
        assert torch.allclose(after, before.clamp(max=tau))
        # nothing but a multiple of d: what is orthogonal to it stays
        assert torch.allclose(change[i].flatten(), torch.dot(change[i].flatten(), d) / torch.dot(d, d) * d)
    assert not change[1].any()
    sampled = uncond + guidance * (cond - uncond) + Projected().guide(cond, uncond, concept, guidance, 0.5, {})
    assert torch.allclose(sampled[0], uncond[0]), "the concept alone becomes the empty prompt"
    twice = Projected(scale=2.0).guide(cond, uncond, concept, guidance, 0.5, {})
    assert torch.allclose(twice, 2 * Projected().guide(cond, uncond, concept, guidance, 0.5, {}))


def test_projected_changes_nothing_where_the_concept_has_no_direction() -> None:
    cond, uncond = (torch.randn(2, 4, 2, 2) for _ in range(2))
    assert not Projected().guide(cond, uncond, uncond, 7.5, 0.5, {}).any()
    with pytest.raises(UserError, match="--scale must not be negative"):
        Projected(scale=-1.0)


def test_warm_up_builds_momentum_and_does_nothing_else() -> None:
    cond, uncond, concept = (torch.randn(1, 1, 2, 2) for _ in range(3))
    memory: dict[str, torch.Tensor] = {}
    assert not SLD(warmup=0.5).guide(cond, uncond, concept, 7.5, 0.4, memory).any()
    assert memory["nu"].any()
    with pytest.raises(UserError, match="--warmup"):
        SLD(warmup=2.0)


def test_guidance_adds_up_and_scales(model: StableDiffusion, tmp_path: Path) -> None:
    a = erase(model, CAT, NegativePrompt(), out=tmp_path / "a")
    b = erase(model, [Concept(name="dog", kind="object")], NegativePrompt(), out=tmp_path / "b")
    with apply_edits(model, [a, b]):
        both = model.sample(["a cat"], [5], steps=3)
    with apply_edits(model, [b, a]):
        assert torch.allclose(model.sample(["a cat"], [5], steps=3), both, atol=1e-5)


def test_nothing_that_holds_weights_can_hold_guidance(model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase(model, CAT, NegativePrompt(), out=tmp_path / "run")
    with pytest.raises(UserError, match="guidance edit"):
        to_lora(model, edit, tmp_path / "lora", 4)
    with pytest.raises(UserError, match="guidance edit"):
        to_folder(model, edit, tmp_path / "folder")
