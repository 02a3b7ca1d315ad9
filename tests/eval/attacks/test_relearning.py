"""Relearning: it learns what it is shown, it is looked at on the way, and afterwards the model is what it was, bit for bit."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from erasure.errors import UserError
from erasure.families.base import SamplingOverrides
from erasure.families.stable_diffusion import StableDiffusion
from erasure.training.teacher_cache import TeacherCache, TeacherQuery
from eval.attacks.base import AttackContext
from eval.attacks.relearning import Adapter, Networks, Relearning, TrainingData
from tests import tiny

CONCEPT, BENIGN = ("neon cat", "neon dog"), ("hen", "cow", "bee")
QUICK = {"steps": 6, "checkpoints": 2, "batch": 2, "lr": 1e-3}
Known = dict[str, tuple[Tensor, torch.dtype, bool]]


def bank_of(x_0: Tensor) -> TeacherCache:
    """Given latents of the concept's prompts and then of the benign ones; nothing else was recorded."""
    recording = TeacherQuery(
        prompt_pairs=tuple((p, "") for p in CONCEPT),
        trajectories=2,
        steps=1,
        guidance=4.0,
        retain_prompts=BENIGN,
        retain_trajectories=3,
        store="latents",
    )
    none, index = torch.zeros(0, *x_0.shape[1:]), torch.zeros(0, dtype=torch.long)
    return TeacherCache(recording, none, index, index, none, none, x_0, torch.arange(5))


def stand_on(model: StableDiffusion, **fields: Any) -> AttackContext:
    x_0 = torch.randn(5, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    return AttackContext(model, CONCEPT, ("a cat", "a dog"), BENIGN, bank_of(x_0), 4, **fields)


def noise_loss(model: StableDiffusion, stand: AttackContext, rows: list[int], prompts: Sequence[str]) -> float:
    """The noise prediction loss on given latents, over the same 8 noises and timesteps each."""
    x_0 = stand.base_latents(rows).repeat(8, 1, 1, 1)
    noise, t = model.sample_noise(range(len(x_0))), torch.arange(60, 1000, 120).repeat_interleave(len(rows))
    with torch.no_grad():
        return F.mse_loss(model.predict(model.add_noise(x_0, noise, t), t, model.encode(list(prompts) * 8)), noise).item()


@torch.no_grad()
def answers(model: StableDiffusion) -> Tensor:
    x_t, t = model.sample_noise(range(8)), torch.arange(60, 1000, 120)
    return model.predict(x_t, t, model.encode([*CONCEPT, *BENIGN, *BENIGN]))


def everything(model: StableDiffusion) -> Known:
    """Names, bits, dtypes of all parameters, by the modules' own names, so that a layer left in a wrapper shows."""
    return {
        f"{part}.{name}": (p.detach().clone(), p.dtype, p.requires_grad or p.grad is not None)
        for part, network in model.networks.items()
        for name, p in network.named_parameters()
    }


def same(before: Known, after: Known) -> bool:
    return before.keys() == after.keys() and all(
        torch.equal(value, after[name][0]) and dtype == after[name][1] and held == after[name][2]
        for name, (value, dtype, held) in before.items()
    )


def ready(model: StableDiffusion) -> bool:
    kernels = {type(p) for p in model.pipe.unet.attn_processors.values()}
    return kernels == {AttnProcessor2_0} and not any(module.training for network in model.networks.values() for module in network.modules())


@pytest.mark.parametrize("data", ["benign", "targeted"])
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_looks_are_even_and_the_model_moves_between_them(model: StableDiffusion, data: TrainingData, adapter: Adapter) -> None:
    seen: dict[int, Tensor] = {}
    before = everything(model)
    for step in Relearning(data=data, adapter=adapter, **{**QUICK, "steps": 7, "checkpoints": 3}).fine_tune(stand_on(model)):  # type: ignore[arg-type]
        assert ready(model) and model.sample(["hen"], [0], steps=2).isfinite().all()
        if step == 0:
            assert same(before, everything(model))
        seen[step] = answers(model)
    assert list(seen) == [0, 2, 4, 7]
    assert all(not torch.allclose(a, b, atol=1e-5) for a, b in zip(list(seen.values()), list(seen.values())[1:], strict=False))


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("part", ["unet", "text_encoder", "both"])
def test_only_what_should_train_moves(model: StableDiffusion, adapter: Adapter, part: Networks) -> None:
    said, cond = model.encode(["hen"]), model.encode(["hen"])
    drawn = model.predict(x_t := model.sample_noise([0]), t := torch.tensor([500]), cond)
    with closing(Relearning(adapter=adapter, networks=part, **QUICK).fine_tune(stand_on(model))) as looks:  # type: ignore[arg-type]
        assert [next(looks), next(looks)] == [0, 3]
        assert torch.equal(model.encode(["hen"]), said) == (part == "unet")
        assert torch.equal(model.predict(x_t, t, cond), drawn) == (part == "text_encoder")


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("ends", ["normally", "closed", "thrown", "dropped", "no number"])
def test_afterwards_the_model_is_what_it_was(adapter: Adapter, precision: str, ends: str) -> None:
    pipe = tiny.pipeline()
    pipe.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    model = StableDiffusion(pipe, "tiny", precision)  # type: ignore[arg-type]
    before, drawn, print_ = everything(model), answers(model), model.fingerprint()
    looks = Relearning(adapter=adapter, **QUICK).fine_tune(stand := stand_on(model))  # type: ignore[arg-type]
    if ends == "normally":
        assert list(looks) == [0, 3, 6]
    else:
        assert [next(looks), next(looks)] == [0, 3]
        trained = [p for network in model.networks.values() for p in network.parameters() if p.requires_grad]
        assert trained and {p.dtype for p in trained} == {torch.float32}
        assert not torch.equal(answers(model), drawn)
    if ends == "closed":
        looks.close()
    if ends == "thrown":
        with pytest.raises(KeyError):
            looks.throw(KeyError("a driver's mistake"))
    if ends == "dropped":
        del looks, trained
    if ends == "no number":
        stand.cache.x_0.fill_(torch.nan)
        looks = Relearning(adapter=adapter, **QUICK).fine_tune(stand)  # type: ignore[arg-type]  # the one above is dropped, so closed
        assert next(looks) == 0
        with pytest.raises(FloatingPointError, match=r"the loss is nan at step 1; (no update has been made yet|the likely cause is bf16)"):
            next(looks)
    assert same(before, everything(model)) and ready(model)
    assert torch.equal(answers(model), drawn) and model.fingerprint() == print_
    assert not any(hasattr(network, "peft_config") for network in model.networks.values())


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_same_stand_gives_the_same_weights(model: StableDiffusion, adapter: Adapter) -> None:
    def run(steps: int, checkpoints: int, seed: int = 0) -> dict[int, Tensor]:
        attack = Relearning(adapter=adapter, **{**QUICK, "steps": steps, "checkpoints": checkpoints})  # type: ignore[arg-type]
        return {step: answers(model) for step in attack.fine_tune(stand_on(model, seed=seed))}

    first = run(6, 3)
    torch.manual_seed(77)
    state = torch.get_rng_state()
    again, shorter, other = run(6, 3), run(4, 1), run(6, 3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)  # it draws from no generator but its own
    assert all(torch.equal(first[step], again[step]) for step in (0, 2, 4, 6))
    assert torch.equal(shorter[4], first[4])
    assert torch.equal(other[0], first[0]) and not torch.equal(other[6], first[6])


@pytest.mark.parametrize(("data", "asked"), [("benign", BENIGN), ("targeted", CONCEPT)])
def test_it_sees_its_own_prompts_and_pictures_alone(model: StableDiffusion, data: TrainingData, asked: tuple[str, ...]) -> None:
    stand, said, shown = stand_on(model), [], []
    encode, noised = model.encode, model.add_noise

    def heard(prompts: Sequence[str], prefix: Tensor | None = None) -> Tensor:
        said.extend(prompts)
        return encode(prompts, prefix)

    def seen(x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        shown.extend(x_0)
        return noised(x_0, noise, t)

    model.encode, model.add_noise = heard, seen  # type: ignore[method-assign]
    list(Relearning(data=data, steps=10, batch=3).fine_tune(stand))
    assert set(said) == set(asked)
    of = dict(zip((*CONCEPT, *BENIGN), stand.cache.x_0, strict=True))
    assert all(torch.equal(x_0, of[prompt]) for x_0, prompt in zip(shown, said, strict=True))
    said.clear()
    list(Relearning(data=data, steps=10, batch=3, examples=1).fine_tune(stand))
    assert len(set(said)) == 1


@pytest.mark.parametrize(("adapter", "lr"), [("lora", 3e-3), ("full", 1e-3)])
def test_targeted_relearning_undoes_part_of_an_edit(model: StableDiffusion, adapter: Adapter, lr: float) -> None:
    """The base knows the pictures; the edit silences some of its layers; answers about the pictures come nearer to the base's again."""
    stand = stand_on(model)
    for _ in Relearning(adapter="full", lr=5e-3, steps=100, batch=8, checkpoints=1).fine_tune(stand):
        taught = {name: p.detach().clone() for name, p in model.parameters().items()}
    noise, t = model.sample_noise(range(8)), torch.arange(60, 1000, 120)

    @torch.no_grad()
    def said() -> Tensor:
        return model.predict(model.add_noise(stand.base_latents([0, 1] * 4), noise, t), t, model.encode(CONCEPT * 4))

    with torch.no_grad():
        for name, p in model.parameters().items():
            p.copy_(taught[name])
    base = said()
    with torch.no_grad():
        for name, p in model.parameters().items():
            if any(layer in name for layer in (".attn2.to_out.", ".ff.net.2.", "up_blocks.1.resnets.0.conv2.")):
                p.zero_()
    attack = Relearning(adapter=adapter, lr=lr, steps=30, batch=8, checkpoints=1)
    curve = [(F.mse_loss(said(), base).item(), noise_loss(model, stand, [0, 1], CONCEPT)) for _ in attack.fine_tune(stand)]
    (distance, loss), (less, lower) = curve
    assert less < 0.6 * distance and lower < 0.8 * loss


def test_what_cannot_be_relearned_is_refused(model: StableDiffusion) -> None:
    for fields, words in (
        ({"data": "target"}, "unknown data of relearning 'target'. Did you mean 'targeted'?"),
        ({"adapter": "dora"}, "unknown adapter of relearning 'dora'"),
        ({"part": "vae"}, "unknown part of relearning 'vae'"),
        ({"rank": 0}, "rank must be positive, got 0"),
        ({"steps": 4}, "4 steps cannot be looked at 5 times"),
    ):
        with pytest.raises(UserError) as refused:
            Relearning(**fields)  # type: ignore[arg-type]
        assert words in str(refused.value)
    stand = stand_on(model)
    concept_alone = TeacherQuery(prompt_pairs=tuple((p, "") for p in CONCEPT), trajectories=2, steps=1, guidance=4.0)
    bank = TeacherCache(
        concept_alone,
        *(stand.cache.x_t, stand.cache.t, stand.cache.prompt_index, stand.cache.x_t, stand.cache.x_t),
        stand.cache.x_0[:2],
        torch.arange(2),
    )
    with pytest.raises(UserError, match="no pictures were recorded for benign data"):
        next(Relearning(data="benign").fine_tune(AttackContext(**{**vars(stand), "bank": bank})))
    model.pipe.erasure_sampling = SamplingOverrides(one_step_timestep=625)
    with pytest.raises(UserError, match="one-step generator never does"):
        next(Relearning().fine_tune(stand))
