"""Every family against diffusers' own pipeline, and every method on every family."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.concept import Concept
from erasure.edits import Edit, apply_edits
from erasure.edits.external.external_edit import load_external
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.export import export_edit
from erasure.families.base import DiffusionModel
from erasure.families.flux import Flux
from erasure.families.flux2_klein import Flux2Klein
from erasure.families.resolution import resolution_of, set_resolution
from erasure.families.stable_diffusion_3 import StableDiffusion3
from erasure.families.stable_diffusion_xl import StableDiffusionXL
from erasure.loading.loader import load_model
from erasure.methods.base import Trained, TrainingContext
from erasure.training.fill_cache import load_or_fill
from erasure.training.loop import TrainingOptions, train
from erasure.training.one_step import Distillation
from tests import tiny_sd3
from tests.factories import METHODS, TRAINED_METHODS, ready_method
from tests.synthetic_edits import trained_edit
from tests.tiny_models import BUILD

PROMPTS = ["a cat", "a dog on a mat"]
CAT = Concept(name="cat", kind="object", prompts=("a {} on a mat | a mat", "{}"))
FLOWS = tuple(name for name in BUILD if name != "sdxl")
TOLERANCE = {"sd3": 2e-6, "klein-base": 2e-6, "sdxl": 0, "flux-dev": 0, "flux-schnell": 0, "klein": 0}  # of pixels in [0, 1]
UNGUIDED = ("flux-dev", "flux-schnell", "klein")


@pytest.fixture(scope="module", params=BUILD)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def model(family: str) -> DiffusionModel:
    return BUILD[family]()


def encode_with_pipeline(model: DiffusionModel, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
    """What the pipeline's own encode_prompt gives: tokens and pooled."""
    match model:
        case StableDiffusionXL():
            tokens, _, pooled, _ = model.pipe.encode_prompt(prompts, prompts, do_classifier_free_guidance=False)
        case StableDiffusion3():
            options = {"do_classifier_free_guidance": False, "max_sequence_length": model.t5_length}
            tokens, _, pooled, _ = model.pipe.encode_prompt(prompts, prompts, prompts, **options)
        case Flux():
            tokens, pooled, _ = model.pipe.encode_prompt(prompts, max_sequence_length=model.t5_length)
        case _:
            (tokens, _), pooled = model.pipe.encode_prompt(prompts, max_sequence_length=model.text_length), None  # type: ignore[attr-defined]
    return tokens, pooled


def sample_with_pipeline(model: DiffusionModel, prompts: list[str], noise: Tensor, steps: int, **options: Any) -> Tensor:
    """What the pipeline makes of the same noise, [B, 3, H, W] in [0, 1]."""
    side = model.latent_shape[-1] * model.pixels_per_latent
    if isinstance(model, Flux):
        noise = model.pipe._pack_latents(noise, len(noise), noise.shape[1], noise.shape[2], noise.shape[3])
    if not isinstance(model, StableDiffusionXL):
        options["max_sequence_length"] = model.text_length if isinstance(model, Flux2Klein) else model.t5_length  # type: ignore[attr-defined]
    images: Tensor = model.pipe(
        prompt=prompts, height=side, width=side, num_inference_steps=steps, latents=noise, output_type="pt", **options
    ).images
    return images


@torch.no_grad()
@pytest.mark.parametrize("prompts", [PROMPTS, [""], ["a very long prompt " * 20]], ids=["two", "empty", "too long"])
def test_prompts_are_encoded_as_the_pipeline_does(model: DiffusionModel, prompts: list[str]) -> None:
    cond, (tokens, pooled) = model.encode(prompts), encode_with_pipeline(model, prompts)
    assert torch.equal(cond.sequence, tokens)
    assert (cond.pooled is None) == (pooled is None) and (pooled is None or torch.equal(cond.pooled, pooled))


@pytest.mark.parametrize(("steps", "guidance"), [(7, 5.0), (4, 2.0)])
def test_images_are_those_of_the_pipeline(model: DiffusionModel, family: str, steps: int, guidance: float) -> None:
    """From the same noise; equal to the last bit where the arithmetic is.

    SD3's pipeline encodes the empty prompt once for every image of the batch, FLUX.2's asks its network for both sides of the guidance in
    turn; here each is done once.
    """
    theirs = sample_with_pipeline(model, PROMPTS, model.sample_noise([5, 6]), steps, guidance_scale=guidance)
    ours = model.decode(model.sample(PROMPTS, [5, 6], steps, guidance))
    assert (ours - theirs).abs().max() <= TOLERANCE[family]


def test_images_survive_the_latents(model: DiffusionModel) -> None:
    latents = torch.randn(2, *model.latent_shape)
    assert torch.allclose(model._from_vae(model._to_vae(latents)), latents, atol=1e-5)
    side = model.latent_shape[-1] * model.pixels_per_latent
    assert model.encode_images(torch.rand(2, 3, side, side)).shape == latents.shape


def test_velocity_noise_and_image_are_one(model: DiffusionModel, family: str) -> None:
    x_0, noise = torch.randn(2, 3, *model.latent_shape)
    t = torch.tensor([1, 400, 999])
    x_t, prediction = model.add_noise(x_0, noise, t), model.schedule.target(x_0, noise)
    assert torch.allclose(model.estimate_x0(x_t, prediction, t), x_0, atol=2e-4)
    assert torch.allclose(model.schedule.infer_noise(x_0, x_t, t), noise, atol=1e-3)
    if family in FLOWS:
        s = t.reshape(-1, 1, 1, 1) / 1000
        assert torch.allclose(x_t, (1 - s) * x_0 + s * noise, atol=1e-6) and torch.allclose(prediction, noise - x_0)
        assert torch.allclose(x_t + (1 - s) * prediction, noise, atol=1e-5)  # eps = x_t + (1 - s) v


@torch.no_grad()
def test_soft_tokens_equal_words(model: DiffusionModel) -> None:
    ids = model.tokenize("ab")
    soft, words = model.encode(["cd"], model.token_embeddings()[ids]), model.encode([f"{model.detokenize(ids)}{' ' * (3 in ids)}cd"])
    rows = slice(*model.token_spans[0])
    if model.tokenize("ab") + model.tokenize("cd") == model.tokenize(f"{model.detokenize(ids)}{' ' * (3 in ids)}cd"):
        assert torch.allclose(soft.sequence[:, rows], words.sequence[:, rows], atol=1e-5)
    assert not torch.allclose(soft.sequence[:, rows], model.encode(["cd"]).sequence[:, rows], atol=1e-3)


def test_the_last_token_is_where_words_start_to_differ(model: DiffusionModel) -> None:
    """Causal encoders agree up to there; T5 looks both ways, so its rows after the text are only alike."""
    index = model.last_token_indices("a cat")[0]
    with torch.no_grad():
        one, other = model.encode(["a cat", "a cab"]).sequence
    if not isinstance(model, Flux):
        assert torch.allclose(one[:index], other[:index], atol=1e-5)
    assert not torch.allclose(one[index], other[index], atol=1e-4)


def test_conditioning_follows_each_prompt(model: DiffusionModel) -> None:
    """A batch gives what its prompts give alone: pooled vectors and sizes do not mix."""
    x, t = model.sample_noise([1, 2]), torch.tensor([500, 500])
    with torch.no_grad():
        together = model.predict(x, t, model.encode(PROMPTS))
        alone = torch.cat([model.predict(x[i : i + 1], t[:1], model.encode([PROMPTS[i]])) for i in range(2)])
        swapped = model.predict(x, t, model.encode(PROMPTS[::-1]))
    assert torch.allclose(together, alone, atol=1e-5) and not torch.allclose(together, swapped, atol=1e-5)


@torch.no_grad()
def test_images_of_another_resolution_are_those_of_the_pipeline(family: str) -> None:
    """The shift of a flow follows the size of the image, and so do the sizes that SDXL reads."""
    model = BUILD[family]()
    pixels = resolution_of(model) * 2 if family != "sd3" else resolution_of(model) // 2
    set_resolution(model, pixels)
    noise = model.sample_noise([3])
    guidance = model.default_guidance if family in UNGUIDED else 3.0
    images = model.decode(model.sample(["a cat"], [3], steps=2, guidance=guidance))
    assert images.shape == (1, 3, pixels, pixels) and model.image_options == {"resolution": pixels}
    assert (images - sample_with_pipeline(model, ["a cat"], noise, 2, guidance_scale=guidance)).abs().max() <= 2e-6
    with pytest.raises(UserError, match=f"tiny makes no images of {pixels + 1} pixels a side; use a multiple of "):
        set_resolution(model, pixels + 1)


@torch.no_grad()
def test_guidance_starts_where_the_pipeline_starts_it(model: DiffusionModel, family: str) -> None:
    """SDXL guides from zeros, not from the empty prompt; a mixed batch keeps every other prompt."""
    cond, plain = model.encode_for_guidance(["", "a cat", ""]), model.encode(["", "a cat", ""])
    if family == "sdxl":
        negative, negative_pooled = model.pipe.encode_prompt("a cat", "a cat")[1::2]
        plain.sequence[::2], plain.pooled[::2] = negative, negative_pooled  # type: ignore[index]
        assert not negative.any() and cond.sequence[1].any()
    assert torch.equal(cond.sequence, plain.sequence)
    assert (cond.pooled is None and plain.pooled is None) or torch.equal(cond.pooled, plain.pooled)  # type: ignore[arg-type]


def test_every_score_of_a_one_step_generator_is_guided_from_there(tmp_path: Path) -> None:
    """The score without adapters at guidance 0 is the unconditional prediction of sampling."""
    model = BUILD["sdxl"]()
    method = Distillation(prompts=("a cat",), regression_steps=0, trajectories=1, steps=1, lr=1e-3, batch=1, guidance=0.0)
    scores: list[tuple[Tensor, Tensor]] = []

    def compare(_: Trained, context: TrainingContext) -> None:
        x_t, t = model.sample_noise([0]), torch.tensor([500])
        uncond = model.predict(x_t, t, model.encode_for_guidance([""]))
        scores.append((method.guided_score(context, x_t, t, ["a cat"]), uncond))

    cache = load_or_fill(model, method.query([], 0), root=tmp_path)
    train(model, method, cache, TrainingOptions(folder=tmp_path, on_step=compare))
    assert len(scores) == 1 and torch.allclose(*scores[0], atol=1e-6)


def test_every_region_is_named_or_refused(model: DiffusionModel, family: str) -> None:
    for region in ("xattn", "xattn-kv", "text-proj", "noxattn", "selfattn", "ff-out", "full"):
        assert set(model.parameter_names(region)) <= set(model.parameters())
    assert not set(model.parameter_names("xattn")) & set(model.parameter_names("selfattn"))
    if family.startswith("klein"):
        with pytest.raises(UserError, match="region 'text-encoder' selects no parameter of tiny; it has xattn, "):
            model.parameter_names("text-encoder")
    else:
        assert all(name.startswith("text_encoder") for name in model.parameter_names("text-encoder"))


def test_what_reads_the_text_moves_the_prediction(model: DiffusionModel) -> None:
    """Without the matrices of the closed form, no prompt changes anything."""
    x, t, conds = model.sample_noise([1]), torch.tensor([500]), model.encode(PROMPTS)
    parameters = model.parameters()
    kept = {name: parameters[name].detach().clone() for name in model.closed_form_layers()}
    with torch.no_grad():
        assert not torch.equal(*(model.predict(x, t, conds[i]) for i in range(2)))
        for name in kept:
            parameters[name].zero_()
        predictions = [model.predict(x, t, conds[i]) for i in range(2)]
        for name, value in kept.items():
            parameters[name].copy_(value)
    if not isinstance(model, StableDiffusionXL):  # whose pooled vector has another way in
        assert torch.equal(*predictions)


def refusal(method: str, family: str) -> str:
    """Why a method does not serve a family; empty if it does."""
    if method in ("sfd",) and family in FLOWS:
        return "predicts the velocity of a flow; use esd or salun on it"
    if method in ("sld", "negative_prompt", "projected") and family in UNGUIDED:
        return "guidance edits steer classifier-free guidance, and tiny (reads|was).*; use esd or uce instead"
    return "region 'text-encoder' selects no parameter" if method == "advunlearn" and family.startswith("klein") else ""


def test_the_guide_says_what_each_method_can_do() -> None:
    """Its table has a yes, or what is edited there, where the method serves the family, and a no where it says why not."""
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "other-models.md").read_text()
    rows = guide.partition("<!-- served -->")[2].partition("<!-- /served -->")[0].strip().splitlines()
    (_, *families, _), cells = (
        [cell.strip() for cell in rows[0].split("|")][1:],
        [[c.strip() for c in r.split("|")][1:-1] for r in rows[2:]],
    )
    assert families == ["sdxl", "sd3", "flux", "flux2-klein"] and sorted(row[0] for row in cells) == sorted(METHODS)
    members = {"sdxl": ["sdxl"], "sd3": ["sd3"], "flux": ["flux-dev", "flux-schnell"], "flux2-klein": ["klein-base", "klein"]}
    for method, *answers in cells:
        for family, answer in zip(families, answers, strict=True):
            served = [not refusal(method, name) and not (method == "sfd_matching" and name in FLOWS) for name in members[family]]
            if method == "advunlearn":  # with the region of its recipe
                assert (answer == "text projection") == (family == "flux2-klein")
            elif answer == "base only":
                assert served == [True, False], (method, family)
            else:
                assert served == [not answer.startswith("no")] * len(served), (method, family)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_serves_or_says_why_not(name: str, family: str, tmp_path: Path) -> None:
    model = BUILD[family]()
    if name == "sfd_matching" and family in FLOWS:
        pytest.skip("it needs a generator of sfd, which is refused")
    extra = {"steps": 2, **({"warmup": 1} if name == "advunlearn" else {})} if name in TRAINED_METHODS else {}
    method = ready_method(name, model, **extra)  # type: ignore[arg-type]
    if reason := refusal(name, family):
        with pytest.raises(UserError, match=reason):
            erase(model, CAT, method, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()
        if name != "advunlearn":
            return
        method = ready_method(name, model, **extra, region="text-proj")  # type: ignore[arg-type]
    before, plain = model.fingerprint(), model.sample(PROMPTS, [0, 1], 3)
    model.cost = type(model.cost)()
    edit = erase(model, CAT, method, out=tmp_path / "run")
    assert model.fingerprint() == before and torch.equal(model.sample(PROMPTS, [0, 1], 3), plain)
    with apply_edits(model, [Edit.load(tmp_path / "run")]):
        assert not torch.equal(model.sample(PROMPTS, [0, 1], 3), plain)
    assert model.fingerprint() == before and torch.equal(model.sample(PROMPTS, [0, 1], 3), plain)
    assert edit.info.base["family"] == model.family


@pytest.mark.parametrize("name", ["esd", "fia"])
def test_the_forecast_is_what_is_counted(name: str, family: str, tmp_path: Path) -> None:
    """Also where the empty prompt is asked once for every kept point, since sampling does not."""
    model = BUILD[family]()
    model.sample_noise([0])
    edit = erase(model, CAT, ready_method(name, model), out=tmp_path / "run")  # type: ignore[arg-type]
    images = 4 * 3 * model.forwards_per_step  # of the model card, before and after
    counted = model.cost.unet_forwards - images
    assert edit.info.cost["unet_forwards"] == counted


def test_an_exported_folder_is_the_edited_pipeline(family: str, tmp_path: Path) -> None:
    """As a plain `from_pretrained` of the pipeline's class loads it."""
    model = BUILD[family]()
    edit = trained_edit(model, "xattn", "ff-out")
    export_edit(model, edit, "folder", tmp_path / "folder")
    assert f"`{type(model.pipe).__name__}.from_pretrained(FOLDER)`" in (tmp_path / "folder" / "README.md").read_text()
    plain = type(model.pipe).from_pretrained(tmp_path / "folder", local_files_only=True)
    plain.set_progress_bar_config(disable=True)
    noise = model.sample_noise([5, 6])
    with apply_edits(model, edit):
        edited = sample_with_pipeline(model, PROMPTS, noise, 3, guidance_scale=3.0)
    base = sample_with_pipeline(model, PROMPTS, noise, 3, guidance_scale=3.0)
    model.pipe = plain
    loaded = sample_with_pipeline(model, PROMPTS, noise, 3, guidance_scale=3.0)
    assert torch.allclose(loaded, edited, atol=1e-6) and not torch.allclose(edited, base, atol=1e-4)


def test_edits_stay_in_their_family(tmp_path: Path) -> None:
    edit = trained_edit(BUILD["sdxl"](), "xattn")
    for other, words in (("flux-dev", "FLUX.1"), ("sd3", "Stable Diffusion 3.x")):
        model = BUILD[other]()
        with (
            pytest.raises(UserError, match=rf"made on a SDXL model \(tiny\); this .*Pipeline is one of {words}") as caught,
            apply_edits(model, edit),
        ):
            pass
        assert "\n" not in str(caught.value)


def test_an_external_pipeline_is_of_the_bases_class(tmp_path: Path) -> None:
    """Its transformer's changes are found; another family is refused before its weights are read."""
    base, erased = BUILD["flux-dev"](), BUILD["flux-dev"]()
    edit = trained_edit(erased, "xattn")
    export_edit(erased, edit, "folder", tmp_path / "erased")
    found = load_external(base, str(tmp_path / "erased"), [CAT])
    assert found.moved_parameters() == edit.moved_parameters()
    assert load_external(base, str(tmp_path / "erased" / "transformer"), [CAT]).moved_parameters() == edit.moved_parameters()
    for weights in (tmp_path / "erased").rglob("*.safetensors"):
        weights.write_bytes(b"broken")
    with pytest.raises(UserError, match=r"is a FLUX.1 model and tiny is one of Stable Diffusion 3.x; give its own base with --model"):
        load_external(BUILD["sd3"](), str(tmp_path / "erased"), [CAT])


def test_sd3_without_t5_is_exported_with_one_that_gives_zeros(tmp_path: Path) -> None:
    model = StableDiffusion3(tiny_sd3.pipeline(t5=False), "tiny", "fp32")
    export_edit(model, trained_edit(model, "xattn", "ff-out"), "folder", tmp_path / "folder")
    plain = type(model.pipe).from_pretrained(tmp_path / "folder", local_files_only=True)
    with_zeros, without = (
        pipe.encode_prompt(PROMPTS, PROMPTS, PROMPTS, do_classifier_free_guidance=False)[0] for pipe in (plain, model.pipe)
    )
    assert torch.equal(with_zeros[:, 16:], without[:, 16:]) and not without[:, 16:].any()
    assert load_model(str(tmp_path / "folder"), device="cpu").family == "sd3"


def test_only_stable_diffusion_and_sdxl_have_checkpoints(model: DiffusionModel, tmp_path: Path) -> None:
    if model.family == "sdxl":
        pytest.skip("tests/erasure/export/test_checkpoint.py")
    with pytest.raises(UserError, match=r"checkpoint is for Stable Diffusion 1.x, 2.x and SDXL, and tiny is none of them; use --format"):
        export_edit(model, trained_edit(model, "xattn"), "checkpoint", tmp_path / "checkpoint")


def test_text_encoders_are_exported_alone(family: str, tmp_path: Path) -> None:
    if family.startswith("klein"):
        pytest.skip("its text encoder is a language model that no edit changes")
    model = BUILD[family]()
    edit = trained_edit(model, "text-encoder")
    export_edit(model, edit, "text-encoder", tmp_path / "out")
    parts = {name.partition(".")[0] for name in edit.moved_parameters()}
    for part in parts:
        folder = tmp_path / "out" / ("" if len(model.networks) == 2 else part)
        loaded = type(getattr(model.pipe, part)).from_pretrained(folder)
        with apply_edits(model, edit):
            for name, value in loaded.state_dict().items():
                assert torch.equal(value, getattr(model.pipe, part).state_dict()[name]), name


@pytest.mark.parametrize("name", ["negative_prompt", "projected", "sld"])
def test_a_plain_pipeline_samples_with_guidance_edits(name: str, family: str, tmp_path: Path) -> None:
    """What the family samples; SDXL, SD3 and klein-base call their networks in three different ways."""
    if family in UNGUIDED:
        pytest.skip("no classifier-free guidance")
    model = BUILD[family]()
    noise = model.sample_noise([5, 6])
    base = sample_with_pipeline(model, PROMPTS, noise, 5, guidance_scale=3.0)
    edit = erase(model, CAT, ready_method(name, model, **({"warmup": 0.3, "threshold": 1.0} if name == "sld" else {})), out=tmp_path)
    with apply_edits(model, edit):
        theirs = [sample_with_pipeline(model, PROMPTS, noise, 5, guidance_scale=3.0) for _ in range(2)]
        ours = model.decode(model.sample(PROMPTS, [5, 6], 5, 3.0))
    assert torch.equal(*theirs) and (theirs[0] - base).abs().max() > 1e-4
    assert (ours - theirs[0]).abs().max() < 1e-5
    assert torch.equal(sample_with_pipeline(model, PROMPTS, noise, 5, guidance_scale=3.0), base)


def test_a_saved_folder_loads_to_the_same_model(model: DiffusionModel, family: str, tmp_path: Path) -> None:
    model.pipe.save_pretrained(tmp_path, safe_serialization=True)
    loaded = load_model(str(tmp_path), device="cpu", dtype="fp32")
    assert type(loaded) is type(model) and loaded.family == model.family and loaded.fingerprint() == model.fingerprint()
    assert loaded.guidance_kind == model.guidance_kind
