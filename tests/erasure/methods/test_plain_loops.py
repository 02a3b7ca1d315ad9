"""Every trained method against a loop written from its equations with nothing but torch: same random numbers, same weights at the end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from erasure.concept import Concept
from erasure.edits.deltas import DOWN, UP
from erasure.erasing import erase, load_or_pretrain
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.advunlearn import AdvUnlearn
from erasure.methods.base import Trained
from erasure.methods.esd import ESD
from erasure.methods.salun import SalUn
from erasure.methods.sfd import SFD
from erasure.training import fill_cache as recorder
from erasure.training import saliency
from erasure.training.loop import TrainingOptions
from erasure.training.teacher_cache import TeacherCache
from tests.erasure.methods.test_every_method import SMALL

CAT = [Concept(name="cat", kind="object", prompts=("{}", "a {} at night | night"))]
SEED, STEPS = 3, 4


def plain(
    model: StableDiffusion, method: Trained, loss_of: Callable[[], Tensor], masks: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Adam on a region's parameters; the model is put back."""
    names = model.parameter_names(method.region)
    parameters = [model.parameters()[name] for name in names]
    kept = [p.detach().clone() for p in parameters]
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
    for name, p, old in zip(names, parameters, kept, strict=True):
        moved[name] = p.detach().clone()
        p.requires_grad_(False).copy_(old)
        p.grad = None
    return moved


def picked(bank: TeacherCache, pair: Tensor, erase: bool, count: int) -> Tensor:
    those = torch.tensor([i for i, p in enumerate(pair.tolist()) if (p < len(bank.query.prompt_pairs)) == erase])
    return those[torch.randint(len(those), (count,))]


def said(model: StableDiffusion, x: Tensor, t: Tensor, texts: list[str], prefix: Tensor | None = None) -> Tensor:
    return model.pipe.unet(x, t, encoder_hidden_states=model.encode(texts, prefix)).sample


def sentences(bank: TeacherCache, pair: Tensor, side: int = 0) -> list[str]:
    everything = [*bank.query.prompt_pairs, *((text, "") for text in bank.query.retain_prompts)]
    return [everything[i][side] for i in pair.tolist()]


def near(found: dict[str, Tensor], expected: dict[str, Tensor], start: dict[str, Any], tolerance: float = 0.02) -> None:
    """The two movements are the same to a small share of their size."""
    apart = moved = 0.0
    for name, value in found.items():
        apart += float((value.float() - expected[name].half().float()).square().sum())
        moved += float((expected[name].float() - start[name].detach().float()).square().sum())
    assert moved > 1e-6
    assert (apart / moved) ** 0.5 < tolerance


def test_esd(model: StableDiffusion, tmp_path: Path) -> None:
    method = ESD(trajectories=4, trajectory_steps=3, batch=2, steps=STEPS, lr=1e-3, negative_guidance=2.0)
    bank = recorder.load_or_fill(model, method.query(CAT, SEED))

    def loss() -> Tensor:
        rows = picked(bank, bank.prompt_index, True, 2)
        cond, uncond = bank.eps_cond[rows].float(), bank.eps_neutral[rows].float()
        return F.mse_loss(
            said(model, bank.x_t[rows].float(), bank.t[rows], sentences(bank, bank.prompt_index[rows])), uncond - 2 * (cond - uncond)
        )

    expected = plain(model, method, loss)
    near(erase(model, CAT, method, out=tmp_path / "run", seed=SEED).tensors, expected, dict(model.parameters()))


def test_salun_under_a_mask(model: StableDiffusion, tmp_path: Path) -> None:
    small = {key: value for key, value in SMALL["salun"].items() if key != "steps"}
    method = SalUn(**small, steps=STEPS, retain_weight=0.4)
    bank = recorder.load_or_fill(model, method.query(CAT, SEED))
    masks = {name: torch.rand(model.parameters()[name].shape) < 0.5 for name in model.parameter_names("full")}
    saliency.save_mask(masks, tmp_path / "mask.safetensors")
    schedule = model.scheduler.alphas_cumprod

    def noisy(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noise, t = torch.randn(bank.x_0[rows].shape), torch.randint(1000, (len(rows),))
        a = schedule[t].reshape(-1, 1, 1, 1)
        return a.sqrt() * bank.x_0[rows].float() + (1 - a).sqrt() * noise, t, noise

    def loss() -> Tensor:
        forget = picked(bank, bank.latent_prompt_index, True, 2)
        x, t, _ = noisy(forget)
        label = said(model, x, t, sentences(bank, bank.latent_prompt_index[forget], 1)).detach()
        keep = picked(bank, bank.latent_prompt_index, False, 3)
        x_r, t_r, noise = noisy(keep)
        kept = F.mse_loss(said(model, x_r, t_r, sentences(bank, bank.latent_prompt_index[keep])), noise)
        return F.mse_loss(said(model, x, t, sentences(bank, bank.latent_prompt_index[forget])), label) + 0.4 * kept

    expected = plain(model, method, loss, masks)
    edit = erase(model, CAT, method, out=tmp_path / "run", seed=SEED, mask=tmp_path / "mask.safetensors")
    near(edit.tensors, expected, dict(model.parameters()))


def test_advunlearn(model: StableDiffusion, tmp_path: Path) -> None:
    small = {**SMALL["advunlearn"], "steps": STEPS, "retain_loss": "joint", "retain_weight": 0.3, "attack_lr": 0.01}
    method = AdvUnlearn(**small)
    bank = recorder.load_or_fill(model, method.query(CAT, SEED))
    count, latest = [0], [torch.empty(0)]

    def loss() -> Tensor:
        rows = picked(bank, bank.prompt_index, True, 2)
        x, t, texts = bank.x_t[rows].float(), bank.t[rows], sentences(bank, bank.prompt_index[rows])
        cond, uncond = bank.eps_cond[rows].float(), bank.eps_neutral[rows].float()
        prefix = None
        if count[0] >= 2:  # warm-up of two iterations, then two Adam steps of two tokens, from where the last attack ended
            fresh = model.token_embeddings()[torch.randint(len(model.token_embeddings()), (2, 2))]
            prefix = (latest[0] if len(latest[0]) else fresh).clone().requires_grad_(True)
            adam = torch.optim.Adam([prefix], lr=0.01)
            for _ in range(2):
                prefix.grad = torch.autograd.grad(F.mse_loss(said(model, x, t, texts, prefix), cond), prefix)[0]
                adam.step()
            latest[0] = prefix = prefix.detach()
        count[0] += 1
        keep = picked(bank, bank.prompt_index, False, 3)
        kept = said(model, bank.x_t[keep].float(), bank.t[keep], sentences(bank, bank.prompt_index[keep]))
        forgot = F.mse_loss(said(model, x, t, texts, prefix), 2 * uncond - cond)
        return forgot + 0.3 * F.mse_loss(kept, bank.eps_cond[keep].float())

    expected = plain(model, method, loss)
    near(erase(model, CAT, method, out=tmp_path / "run", seed=SEED).tensors, expected, dict(model.parameters()))


def test_sfd(model: StableDiffusion, tmp_path: Path) -> None:
    """Three networks as three sets of weights, where the method has one network with adapters."""
    method = SFD(**{**SMALL["sfd"], "steps": 2})
    start = load_or_pretrain(model, method, TrainingOptions(folder=tmp_path))
    mine = {name: value.clone().requires_grad_(True) for name, value in start.items()}
    groups = {part: [v for n, v in mine.items() if n.startswith("fake.") == (part == "fake")] for part in ("fake", "generator")}
    adams = {part: torch.optim.Adam(values, lr=1e-3, betas=(0.0, 0.999)) for part, values in groups.items()}
    pairs, retain = method.query(CAT, SEED).prompt_pairs, method.query(CAT, SEED).retain_prompts
    alphas = model.scheduler.alphas_cumprod

    def weights(prefix: str) -> dict[str, Tensor]:
        found = {}
        for name, p in model.pipe.unet.named_parameters():
            if (up := f"{prefix}unet.{name}{UP}") in mine:
                delta = mine[up].flatten(1) @ mine[up.replace(UP, DOWN)].flatten(1)
                found[name] = p + delta.reshape(p.shape)
        return found

    def network(kind: str, x: Tensor, t: Tensor, texts: list[str]) -> Tensor:
        values = {} if kind == "teacher" else weights("fake." if kind == "fake" else "")
        return torch.func.functional_call(model.pipe.unet, values, (x, t), {"encoder_hidden_states": model.encode(texts)}).sample

    def x_0(kind: str, x: Tensor, t: Tensor, texts: list[str]) -> Tensor:
        a, empty = alphas[t].reshape(-1, 1, 1, 1), network(kind, x, t, [""] * len(texts))
        return (x - (1 - a).sqrt() * (empty + 4.5 * (network(kind, x, t, texts) - empty))) / a.sqrt()

    def draw(texts: list[str]) -> Tensor:
        a, noise = alphas[625], torch.randn(2, *model.latent_shape)
        x = (1 - a).sqrt() * noise
        return (x - (1 - a).sqrt() * network("generator", x, torch.tensor([625, 625]), texts)) / a.sqrt()

    def noisy(x_g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noise, t = torch.randn(x_g.shape), torch.randint(20, 980, (2,))
        a = alphas[t].reshape(-1, 1, 1, 1)
        return a.sqrt() * x_g + (1 - a).sqrt() * noise, t, noise

    def step(part: str, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, groups[part])
        size = torch.cat([g.flatten() for g in gradients]).norm()
        for value, g in zip(groups[part], gradients, strict=True):
            value.grad = g * min(1.0, 1.0 / (float(size) + 1e-6))
        adams[part].step()

    for k in range(2):
        torch.manual_seed(SEED * 1_000_003 + k)
        keep = retain[int(torch.randint(len(pairs), len(pairs) + len(retain), (1,))) - len(pairs)]
        with_, without = pairs[int(torch.randint(0, len(pairs), (1,)))]
        asked, safe = [keep, with_], [keep, without]
        x_t, t, noise = noisy(draw(asked).detach())
        empty = network("fake", x_t, t, ["", ""])
        guided = empty + 4.5 * (network("fake", x_t, t, asked) - empty)
        step("fake", (guided - noise).square().sum((1, 2, 3)).mean())
        x_g = draw(asked)
        x_t, t, _ = noisy(x_g)
        phi, psi = x_0("teacher", x_t, t, safe), x_0("fake", x_t, t, asked)
        omega = (x_g - phi).abs().mean((1, 2, 3)).detach()
        step("generator", (((phi - psi) * (psi - x_g)).sum((1, 2, 3)) / omega).mean())
    edit = erase(model, CAT, method, out=tmp_path / "run", seed=SEED)
    expected = {name: value.detach() for name, value in mine.items() if name in edit.tensors}
    near(edit.tensors, expected, start, tolerance=0.05)
