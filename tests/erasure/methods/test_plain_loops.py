"""Every trained method against a loop written from its equations with nothing but torch: same random numbers, same weights at the end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from erasure.edits.deltas import DOWN, UP
from erasure.erasing import erase
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.advunlearn import AdvUnlearn
from erasure.methods.base import Trained
from erasure.methods.esd import ESD
from erasure.methods.salun import SalUn
from erasure.methods.sfd import SFD
from erasure.training import fill_cache, saliency
from erasure.training.loop import TrainingOptions
from erasure.training.method_run import load_or_pretrain
from erasure.training.teacher_cache import TeacherCache
from tests.factories import CAT, SMALL_FIELDS

SEED, STEPS = 3, 4


def train_plainly(
    model: StableDiffusion, method: Trained, loss_of: Callable[[], Tensor], masks: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Adam on a region's parameters; the model is put back."""
    names = model.parameter_names(method.region)
    parameters = [model.parameters()[name] for name in names]
    initial = [p.detach().clone() for p in parameters]
    adam = torch.optim.Adam([p.requires_grad_(True) for p in parameters], lr=method.lr)
    for step in range(method.steps):
        torch.manual_seed(SEED * 1_000_003 + step)
        adam.zero_grad()
        loss_of().backward()
        for name, p in zip(names, parameters, strict=True):
            if masks and p.grad is not None:
                p.grad *= masks[name]
        adam.step()
    moved = {}
    for name, p, old in zip(names, parameters, initial, strict=True):
        moved[name] = p.detach().clone()
        p.requires_grad_(False).copy_(old)
        p.grad = None
    return moved


def sample_rows(cache: TeacherCache, prompt_index: Tensor, erase: bool, count: int) -> Tensor:
    rows = torch.tensor([i for i, p in enumerate(prompt_index.tolist()) if (p < len(cache.query.prompt_pairs)) == erase])
    return rows[torch.randint(len(rows), (count,))]


def predict(model: StableDiffusion, x: Tensor, t: Tensor, texts: list[str], prefix: Tensor | None = None) -> Tensor:
    return model.pipe.unet(x, t, encoder_hidden_states=model.encode(texts, prefix).sequence).sample


def prompts_of(cache: TeacherCache, prompt_index: Tensor, side: int = 0) -> list[str]:
    pairs = [*cache.query.prompt_pairs, *((text, "") for text in cache.query.retain_prompts)]
    return [pairs[i][side] for i in prompt_index.tolist()]


def assert_near(actual: dict[str, Tensor], expected: dict[str, Tensor], start: dict[str, Any], tolerance: float = 0.02) -> None:
    """The two movements are the same to a small share of their size."""
    difference = moved = 0.0
    for name, value in actual.items():
        difference += float((value.float() - expected[name].half().float()).square().sum())
        moved += float((expected[name].float() - start[name].detach().float()).square().sum())
    assert moved > 1e-6
    assert (difference / moved) ** 0.5 < tolerance


def test_esd(model: StableDiffusion, tmp_path: Path) -> None:
    method = ESD(trajectories=4, trajectory_steps=3, batch=2, steps=STEPS, lr=1e-3, negative_guidance=2.0)
    cache = fill_cache.load_or_fill(model, method.query(CAT, SEED))

    def loss() -> Tensor:
        rows = sample_rows(cache, cache.prompt_index, True, 2)
        cond, uncond = cache.pred_cond[rows].float(), cache.pred_neutral[rows].float()
        return F.mse_loss(
            predict(model, cache.x_t[rows].float(), cache.t[rows], prompts_of(cache, cache.prompt_index[rows])),
            uncond - 2 * (cond - uncond),
        )

    expected = train_plainly(model, method, loss)
    assert_near(erase(model, CAT, method, out=tmp_path / "run", seed=SEED).tensors, expected, dict(model.parameters()))


def test_salun_under_a_mask(model: StableDiffusion, tmp_path: Path) -> None:
    small = {key: value for key, value in SMALL_FIELDS["salun"].items() if key != "steps"}
    method = SalUn(**small, steps=STEPS, retain_weight=0.4)
    cache = fill_cache.load_or_fill(model, method.query(CAT, SEED))
    masks = {name: torch.rand(model.parameters()[name].shape) < 0.5 for name in model.parameter_names("full")}
    saliency.save_mask(masks, tmp_path / "mask.safetensors")
    schedule = model.schedule.scheduler.alphas_cumprod

    def noisy(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noise, t = torch.randn(cache.x_0[rows].shape), torch.randint(1000, (len(rows),))
        a = schedule[t].reshape(-1, 1, 1, 1)
        return a.sqrt() * cache.x_0[rows].float() + (1 - a).sqrt() * noise, t, noise

    def loss() -> Tensor:
        erase_rows = sample_rows(cache, cache.latent_prompt_index, True, 2)
        x, t, _ = noisy(erase_rows)
        label = predict(model, x, t, prompts_of(cache, cache.latent_prompt_index[erase_rows], 1)).detach()
        retain_rows = sample_rows(cache, cache.latent_prompt_index, False, 3)
        x_r, t_r, noise = noisy(retain_rows)
        retain_loss = F.mse_loss(predict(model, x_r, t_r, prompts_of(cache, cache.latent_prompt_index[retain_rows])), noise)
        return F.mse_loss(predict(model, x, t, prompts_of(cache, cache.latent_prompt_index[erase_rows])), label) + 0.4 * retain_loss

    expected = train_plainly(model, method, loss, masks)
    edit = erase(model, CAT, method, out=tmp_path / "run", seed=SEED, mask=tmp_path / "mask.safetensors")
    assert_near(edit.tensors, expected, dict(model.parameters()))


def test_advunlearn(model: StableDiffusion, tmp_path: Path) -> None:
    small = {**SMALL_FIELDS["advunlearn"], "steps": STEPS, "retain_loss": "joint", "retain_weight": 0.3, "attack_lr": 0.01}
    method = AdvUnlearn(**small)
    cache = fill_cache.load_or_fill(model, method.query(CAT, SEED))
    count, latest = [0], [torch.empty(0)]

    def loss() -> Tensor:
        rows = sample_rows(cache, cache.prompt_index, True, 2)
        x, t, texts = cache.x_t[rows].float(), cache.t[rows], prompts_of(cache, cache.prompt_index[rows])
        cond, uncond = cache.pred_cond[rows].float(), cache.pred_neutral[rows].float()
        prefix = None
        if count[0] >= 2:  # warm-up of two iterations, then two Adam steps of two tokens, from where the last attack ended
            fresh = model.token_embeddings()[torch.randint(len(model.token_embeddings()), (2, 2))]
            prefix = (latest[0] if len(latest[0]) else fresh).clone().requires_grad_(True)
            adam = torch.optim.Adam([prefix], lr=0.01)
            for _ in range(2):
                prefix.grad = torch.autograd.grad(F.mse_loss(predict(model, x, t, texts, prefix), cond), prefix)[0]
                adam.step()
            latest[0] = prefix = prefix.detach()
        count[0] += 1
        retain_rows = sample_rows(cache, cache.prompt_index, False, 3)
        retained = predict(model, cache.x_t[retain_rows].float(), cache.t[retain_rows], prompts_of(cache, cache.prompt_index[retain_rows]))
        erase_loss = F.mse_loss(predict(model, x, t, texts, prefix), 2 * uncond - cond)
        return erase_loss + 0.3 * F.mse_loss(retained, cache.pred_cond[retain_rows].float())

    expected = train_plainly(model, method, loss)
    assert_near(erase(model, CAT, method, out=tmp_path / "run", seed=SEED).tensors, expected, dict(model.parameters()))


class PlainSfd:
    """Teacher, generator and fake score as three sets of weights, where the method has one network with adapters."""

    def __init__(self, model: StableDiffusion, factors: dict[str, Tensor]) -> None:
        self.model, self.alphas = model, model.schedule.scheduler.alphas_cumprod
        self.factors = {name: value.clone().requires_grad_(True) for name, value in factors.items()}
        self.groups = {
            part: [value for name, value in self.factors.items() if name.startswith("fake.") == (part == "fake")]
            for part in ("fake", "generator")
        }
        self.adams = {part: torch.optim.Adam(values, lr=1e-3, betas=(0.0, 0.999)) for part, values in self.groups.items()}

    def merged_weights(self, prefix: str) -> dict[str, Tensor]:
        merged = {}
        for name, p in self.model.pipe.unet.named_parameters():
            if (up := f"{prefix}unet.{name}{UP}") in self.factors:
                delta = self.factors[up].flatten(1) @ self.factors[up.replace(UP, DOWN)].flatten(1)
                merged[name] = p + delta.reshape(p.shape)
        return merged

    def predict(self, network: str, x: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
        weights = {} if network == "teacher" else self.merged_weights("fake." if network == "fake" else "")
        cond = {"encoder_hidden_states": self.model.encode(prompts).sequence}
        return torch.func.functional_call(self.model.pipe.unet, weights, (x, t), cond).sample

    def guided(self, network: str, x: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
        empty = self.predict(network, x, t, [""] * len(prompts))
        return empty + 4.5 * (self.predict(network, x, t, prompts) - empty)

    def x_0(self, network: str, x: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
        a = self.alphas[t].reshape(-1, 1, 1, 1)
        return (x - (1 - a).sqrt() * self.guided(network, x, t, prompts)) / a.sqrt()

    def generate(self, prompts: list[str]) -> Tensor:
        a, noise = self.alphas[625], torch.randn(2, *self.model.latent_shape)
        x = (1 - a).sqrt() * noise
        return (x - (1 - a).sqrt() * self.predict("generator", x, torch.tensor([625, 625]), prompts)) / a.sqrt()

    def add_noise(self, x_g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noise, t = torch.randn(x_g.shape), torch.randint(20, 980, (2,))
        a = self.alphas[t].reshape(-1, 1, 1, 1)
        return a.sqrt() * x_g + (1 - a).sqrt() * noise, t, noise

    def step(self, part: str, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, self.groups[part])
        size = torch.cat([g.flatten() for g in gradients]).norm()
        for value, g in zip(self.groups[part], gradients, strict=True):
            value.grad = g * min(1.0, 1.0 / (float(size) + 1e-6))
        self.adams[part].step()


def test_sfd(model: StableDiffusion, tmp_path: Path) -> None:
    method = SFD(**{**SMALL_FIELDS["sfd"], "steps": 2})
    pretrained = load_or_pretrain(model, method, TrainingOptions(folder=tmp_path))
    plain = PlainSfd(model, pretrained)
    pairs, retain = method.query(CAT, SEED).prompt_pairs, method.query(CAT, SEED).retain_prompts
    for k in range(2):
        torch.manual_seed(SEED * 1_000_003 + k)
        retain_prompt = retain[int(torch.randint(len(pairs), len(pairs) + len(retain), (1,))) - len(pairs)]
        concept_prompt, neutral_prompt = pairs[int(torch.randint(0, len(pairs), (1,)))]
        generator_prompts, teacher_prompts = [retain_prompt, concept_prompt], [retain_prompt, neutral_prompt]
        x_t, t, noise = plain.add_noise(plain.generate(generator_prompts).detach())
        plain.step("fake", (plain.guided("fake", x_t, t, generator_prompts) - noise).square().sum((1, 2, 3)).mean())
        x_g = plain.generate(generator_prompts)
        x_t, t, _ = plain.add_noise(x_g)
        phi, psi = plain.x_0("teacher", x_t, t, teacher_prompts), plain.x_0("fake", x_t, t, generator_prompts)
        omega = (x_g - phi).abs().mean((1, 2, 3)).detach()
        plain.step("generator", (((phi - psi) * (psi - x_g)).sum((1, 2, 3)) / omega).mean())
    edit = erase(model, CAT, method, out=tmp_path / "run", seed=SEED)
    expected = {name: value.detach() for name, value in plain.factors.items() if name in edit.tensors}
    assert_near(edit.tensors, expected, pretrained, tolerance=0.05)
