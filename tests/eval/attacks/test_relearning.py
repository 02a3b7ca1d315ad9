"""Relearning: it learns its training data, stops at checkpoints, and restores the model bit for bit."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from erasure.edits.stacking import EditStack
from erasure.errors import UserError
from erasure.families.sampling import SamplingOverrides
from erasure.families.stable_diffusion import StableDiffusion
from erasure.training.teacher_cache import TeacherCache, TeacherQuery
from eval.attacks.base import AttackContext
from eval.attacks.relearning import Adapter, Networks, Relearning, TrainingData
from tests import tiny

CONCEPT, BENIGN = ("neon cat", "neon dog"), ("hen", "cow", "bee")
QUICK = {"steps": 6, "checkpoints": 2, "batch": 2, "lr": 1e-3}
State = dict[str, tuple[Tensor, torch.dtype, bool]]


def cache_of(x_0: Tensor) -> TeacherCache:
    """A cache with latents of the concept's prompts, then of the benign ones, and with nothing else."""
    query = TeacherQuery(
        prompt_pairs=tuple((p, "") for p in CONCEPT),
        trajectories=2,
        steps=1,
        guidance=4.0,
        retain_prompts=BENIGN,
        retain_trajectories=3,
        store="latents",
    )
    none, index = torch.zeros(0, *x_0.shape[1:]), torch.zeros(0, dtype=torch.long)
    return TeacherCache(query, none, index, index, none, none, x_0, torch.arange(5), index)


def make_context(model: StableDiffusion, **fields: Any) -> AttackContext:
    x_0 = torch.randn(5, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    return AttackContext(model, CONCEPT, ("a cat", "a dog"), BENIGN, cache_of(x_0), 4, **fields)


def noise_loss(model: StableDiffusion, context: AttackContext, rows: list[int], prompts: Sequence[str]) -> float:
    """The noise prediction loss on cached latents, over the same 8 noises and timesteps for each."""
    x_0 = context.base_latents(rows).repeat(8, 1, 1, 1)
    noise, t = model.sample_noise(range(len(x_0))), torch.arange(60, 1000, 120).repeat_interleave(len(rows))
    with torch.no_grad():
        return F.mse_loss(model.predict(model.add_noise(x_0, noise, t), t, model.encode(list(prompts) * 8)), noise).item()


@torch.no_grad()
def predictions(model: StableDiffusion) -> Tensor:
    """Noise predictions [8, 4, h, w] for prompts of the concept and benign ones."""
    x_t, t = model.sample_noise(range(8)), torch.arange(60, 1000, 120)
    return model.predict(x_t, t, model.encode([*CONCEPT, *BENIGN, *BENIGN]))


def state_of(model: StableDiffusion) -> State:
    """Names, values and dtypes of all parameters, by the modules' own names, which show a layer that is left in a wrapper."""
    return {
        f"{part}.{name}": (p.detach().clone(), p.dtype, p.requires_grad or p.grad is not None)
        for part, network in model.networks.items()
        for name, p in network.named_parameters()
    }


def is_same(before: State, after: State) -> bool:
    return before.keys() == after.keys() and all(
        torch.equal(value, after[name][0]) and dtype == after[name][1] and trains == after[name][2]
        for name, (value, dtype, trains) in before.items()
    )


def is_ready(model: StableDiffusion) -> bool:
    """Whether the attention processors are the original ones and all modules are in eval mode."""
    processors = {type(p) for p in model.pipe.unet.attn_processors.values()}
    return processors == {AttnProcessor2_0} and not any(
        module.training for network in model.networks.values() for module in network.modules()
    )


@pytest.mark.parametrize("data", ["benign", "targeted"])
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_checkpoints_are_evenly_spaced_and_the_model_moves_between_them(
    model: StableDiffusion, data: TrainingData, adapter: Adapter
) -> None:
    by_step: dict[int, Tensor] = {}
    before = state_of(model)
    for step in Relearning(data=data, adapter=adapter, **{**QUICK, "steps": 7, "checkpoints": 3}).fine_tune(make_context(model)):  # type: ignore[arg-type]
        assert is_ready(model) and model.sample(["hen"], [0], steps=2).isfinite().all()
        if step == 0:
            assert is_same(before, state_of(model))
        by_step[step] = predictions(model)
    assert list(by_step) == [0, 2, 4, 7]
    assert model.cost.unet_backwards == model.cost.sample_gradients == 7 * QUICK["batch"]
    assert all(not torch.allclose(a, b, atol=1e-5) for a, b in zip(list(by_step.values()), list(by_step.values())[1:], strict=False))


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("networks", ["denoiser", "text_encoders", "both"])
def test_only_the_selected_networks_move(model: StableDiffusion, adapter: Adapter, networks: Networks) -> None:
    cond = model.encode(["hen"])
    prediction = model.predict(x_t := model.sample_noise([0]), t := torch.tensor([500]), cond)
    with closing(Relearning(adapter=adapter, networks=networks, **QUICK).fine_tune(make_context(model))) as steps:  # type: ignore[arg-type]
        assert [next(steps), next(steps)] == [0, 3]
        assert torch.equal(model.encode(["hen"]).sequence, cond.sequence) == (networks == "denoiser")
        assert torch.equal(model.predict(x_t, t, cond), prediction) == (networks == "text_encoders")


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("ends", ["normally", "closed", "thrown", "dropped", "nan"])
def test_the_model_is_restored(adapter: Adapter, precision: str, ends: str) -> None:
    pipe = tiny.pipeline()
    pipe.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    model = StableDiffusion(pipe, "tiny", precision)  # type: ignore[arg-type]
    before, predicted, fingerprint = state_of(model), predictions(model), model.fingerprint()
    steps = Relearning(adapter=adapter, **QUICK).fine_tune(context := make_context(model))  # type: ignore[arg-type]
    if ends == "normally":
        assert list(steps) == [0, 3, 6]
    else:
        assert [next(steps), next(steps)] == [0, 3]
        trained = [p for network in model.networks.values() for p in network.parameters() if p.requires_grad]
        assert trained and {p.dtype for p in trained} == {torch.float32}
        assert not torch.equal(predictions(model), predicted)
    if ends == "closed":
        steps.close()
    if ends == "thrown":
        with pytest.raises(KeyError):
            steps.throw(KeyError("a driver's mistake"))
    if ends == "dropped":
        del steps, trained
    if ends == "nan":
        context.cache.x_0.fill_(torch.nan)
        steps = Relearning(adapter=adapter, **QUICK).fine_tune(context)  # type: ignore[arg-type]  # the one above is dropped and thereby closed
        assert next(steps) == 0
        with pytest.raises(FloatingPointError, match=r"the loss is nan at step 1; (no update has been made yet|the likely cause is bf16)"):
            next(steps)
    assert is_same(before, state_of(model)) and is_ready(model)
    assert torch.equal(predictions(model), predicted) and model.fingerprint() == fingerprint
    assert not any(hasattr(network, "peft_config") for network in model.networks.values())


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_same_context_gives_the_same_weights(model: StableDiffusion, adapter: Adapter) -> None:
    def run(steps: int, checkpoints: int, seed: int = 0) -> dict[int, Tensor]:
        attack = Relearning(adapter=adapter, **{**QUICK, "steps": steps, "checkpoints": checkpoints})  # type: ignore[arg-type]
        return {step: predictions(model) for step in attack.fine_tune(make_context(model, seed=seed))}

    first = run(6, 3)
    torch.manual_seed(77)
    state = torch.get_rng_state()
    repeated, shorter, other = run(6, 3), run(4, 1), run(6, 3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)  # it uses no generator but its own
    assert all(torch.equal(first[step], repeated[step]) for step in (0, 2, 4, 6))
    assert torch.equal(shorter[4], first[4])
    assert torch.equal(other[0], first[0]) and not torch.equal(other[6], first[6])


@pytest.mark.parametrize(("data", "expected"), [("benign", BENIGN), ("targeted", CONCEPT)])
def test_it_trains_only_on_its_own_prompts_and_images(model: StableDiffusion, data: TrainingData, expected: tuple[str, ...]) -> None:
    context = make_context(model)
    encoded: list[str] = []
    noised: list[Tensor] = []
    encode, add_noise = model.encode, model.add_noise

    def record_prompts(prompts: Sequence[str], prefix: Tensor | None = None) -> Tensor:
        encoded.extend(prompts)
        return encode(prompts, prefix)

    def record_latents(x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        noised.extend(x_0)
        return add_noise(x_0, noise, t)

    model.encode, model.add_noise = record_prompts, record_latents  # type: ignore[method-assign]
    list(Relearning(data=data, steps=10, batch=3).fine_tune(context))
    assert set(encoded) == set(expected)
    latents = dict(zip((*CONCEPT, *BENIGN), context.cache.x_0, strict=True))
    assert all(torch.equal(x_0, latents[prompt]) for x_0, prompt in zip(noised, encoded, strict=True))
    encoded.clear()
    list(Relearning(data=data, steps=10, batch=3, examples=1).fine_tune(context))
    assert len(set(encoded)) == 1


@pytest.mark.parametrize(("adapter", "lr"), [("lora", 3e-3), ("full", 1e-3)])
def test_targeted_relearning_undoes_part_of_an_edit(model: StableDiffusion, adapter: Adapter, lr: float) -> None:
    """The base knows the images, the edit zeroes some of its layers, and predictions on the images approach the base's again."""
    context = make_context(model)
    for _ in Relearning(adapter="full", lr=5e-3, steps=100, batch=8, checkpoints=1).fine_tune(context):
        trained = {name: p.detach().clone() for name, p in model.parameters().items()}
    noise, t = model.sample_noise(range(8)), torch.arange(60, 1000, 120)

    @torch.no_grad()
    def predict() -> Tensor:
        return model.predict(model.add_noise(context.base_latents([0, 1] * 4), noise, t), t, model.encode(CONCEPT * 4))

    with torch.no_grad():
        for name, p in model.parameters().items():
            p.copy_(trained[name])
    base = predict()
    with torch.no_grad():
        for name, p in model.parameters().items():
            if any(layer in name for layer in (".attn2.to_out.", ".ff.net.2.", "up_blocks.1.resnets.0.conv2.")):
                p.zero_()
    attack = Relearning(adapter=adapter, lr=lr, steps=30, batch=8, checkpoints=1)
    curve = [(F.mse_loss(predict(), base).item(), noise_loss(model, context, [0, 1], CONCEPT)) for _ in attack.fine_tune(context)]
    (distance, loss), (distance_after, loss_after) = curve
    assert distance_after < 0.6 * distance and loss_after < 0.8 * loss


def test_wrong_fields_and_contexts_are_refused(model: StableDiffusion) -> None:
    for fields, message in (
        ({"data": "target"}, "unknown data of relearning 'target'. Did you mean 'targeted'?"),
        ({"adapter": "dora"}, "unknown adapter of relearning 'dora'"),
        ({"networks": "vae"}, "unknown networks of relearning 'vae'"),
        ({"rank": 0}, "rank must be positive, got 0"),
        ({"steps": 4}, "4 steps cannot have 5 checkpoints"),
    ):
        with pytest.raises(UserError) as refused:
            Relearning(**fields)  # type: ignore[arg-type]
        assert message in str(refused.value)
    context = make_context(model)
    concept_alone = TeacherQuery(prompt_pairs=tuple((p, "") for p in CONCEPT), trajectories=2, steps=1, guidance=4.0)
    cache = TeacherCache(
        concept_alone,
        *(context.cache.x_t, context.cache.t, context.cache.prompt_index, context.cache.x_t, context.cache.x_t),
        context.cache.x_0[:2],
        torch.arange(2),
        context.cache.latent_index,
    )
    with pytest.raises(UserError, match="the cache holds no images for benign data"):
        next(Relearning(data="benign").fine_tune(AttackContext(**{**vars(context), "cache": cache})))
    model.pipe.erasure_edits = EditStack(sampling=SamplingOverrides(one_step_timestep=625))
    with pytest.raises(UserError, match="one-step generator never does"):
        next(Relearning().fine_tune(context))
