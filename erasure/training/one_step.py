"""One-step generators: distilled from a diffusion model by regression and then by SiD-LSG (Zhou et al., arXiv:2404.04057, 2406.01561)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor

from erasure.concept import Concept
from erasure.config.choices import Count, MaybeSteps, ScheduleSteps, Timestep
from erasure.families.base import Cost, Region
from erasure.methods.base import Play, Player, Product, Trained, Update
from erasure.training.adapters import adapters, using
from erasure.training.teacher_cache import Recording

GENERATOR, FAKE = "generator", "fake"
FAKE_PREFIX = "fake."  # of the fake score's factors among a run's tensors


@dataclass(frozen=True, kw_only=True)
class OneStep(Trained):
    """What distillation and forgetting share: one frozen UNet, the teacher, and two adapter sets on it.

    With adapters off the UNet is the teacher phi; `generator` makes it G, `fake` the score psi of what G draws.
    """

    product: ClassVar[Product] = "one-step"
    recomputes: ClassVar[bool] = False  # a recomputed forward would run with the adapters as they are then: off
    keeps_fake: ClassVar[bool] = False

    region: Region = "full"  # layers that carry adapters
    rank: Count = 16  # of both adapter sets
    start: Timestep = 625  # timestep at which the generator is asked, tau
    alpha: float = 1.0  # alpha of the SiD loss
    guidance: float = 4.5  # kappa of both scores, in training the fake score and the generator
    t_min: Timestep = 20  # smallest timestep of the scores
    t_max: Timestep = 979  # largest
    lr_fake: float = 3e-6  # learning rate of the fake score

    @contextmanager
    def players(self, model: Any) -> Iterator[dict[str, Player]]:
        with adapters(model, self.region, self.rank, (GENERATOR, FAKE)) as sets:
            fake = {FAKE_PREFIX + name: p for name, p in sets[FAKE].items()}
            yield {
                GENERATOR: Player(sets[GENERATOR], self.lr, betas=(0.0, 0.999), clip=1.0),
                FAKE: Player(fake, self.lr_fake, betas=(0.0, 0.999), clip=1.0, kept=self.keeps_fake),
            }

    def prepare(self, play: Play, players: dict[str, Player]) -> None:
        sets = {name: player.parameters for name, player in players.items()}
        play.using = lambda name: using(play.model, name, sets)

    def drawn(self, play: Play, prompts: list[str], seeds: list[int], steps: int) -> Tensor:
        with play.using(GENERATOR):
            return play.model.one_step(play.model.noise(seeds), play.model.encode(prompts), self.start)

    def generated(self, play: Play, prompts: list[str]) -> Tensor:
        """x_g = G(z, c), one step from fresh noise."""
        noise = torch.randn(len(prompts), *play.model.latent_shape).to(play.model.device)
        with play.using(GENERATOR):
            return play.model.one_step(noise, play.encode(prompts), self.start)

    def score(self, play: Play, x_t: Tensor, t: Tensor, prompts: list[str], network: str = "") -> Tensor:
        """Guided noise prediction of the fake score, or of the teacher where no network is named."""
        x, times = torch.cat((x_t, x_t)), torch.cat((t, t))
        cond = play.encode([""] * len(prompts) + prompts)
        with play.using(network) if network else nullcontext():
            uncond, cond = play.model.predict(x, times, cond).chunk(2)
        return uncond + self.guidance * (cond - uncond)

    def noised(self, play: Play, x_g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, t and the noise in it, with t from the range of the scores."""
        noise = torch.randn(x_g.shape).to(x_g)
        t = torch.randint(self.t_min, self.t_max + 1, (len(x_g),)).to(x_g.device)
        return play.model.noised(x_g, noise, t), t, noise

    def fake_loss(self, play: Play, x_g: Tensor, prompts: list[str]) -> Tensor:
        """||eps_psi^kappa(x_t, c) - eps||^2, summed over the latent, for every sample (B,)."""
        x_t, t, noise = self.noised(play, x_g.detach())
        return (self.score(play, x_t, t, prompts, FAKE) - noise).square().sum((1, 2, 3))

    def generator_loss(self, play: Play, x_g: Tensor, fake_prompts: list[str], teacher_prompts: list[str]) -> Tensor:
        """The SiD loss of every sample (B,), with the teacher asked for another text where it should lead elsewhere."""
        x_t, t, _ = self.noised(play, x_g)
        f_phi = play.model.denoised(x_t, self.score(play, x_t, t, teacher_prompts), t)
        f_psi = play.model.denoised(x_t, self.score(play, x_t, t, fake_prompts, FAKE), t)
        return sid(x_g, f_phi, f_psi, self.alpha)

    def passes(self, step: int) -> Cost:
        """The fake score: G, psi guided and its backward. The generator: G, phi and psi guided, and a backward through all five."""
        return Cost(unet_forwards=8 * self.batch, unet_backwards=7 * self.batch, sample_gradients=7 * self.batch)


def sid(x_g: Tensor, f_phi: Tensor, f_psi: Tensor, alpha: float) -> Tensor:
    """(f_phi - f_psi)^T [(f_phi - x_g) - alpha (f_phi - f_psi)] / omega, omega = mean |x_g - f_phi| (SiD, equation 23); (B,)."""
    omega = (x_g - f_phi).abs().mean((1, 2, 3), keepdim=True).detach().clamp(min=1e-5)
    gap = f_phi - f_psi
    return (gap * ((f_phi - x_g) - alpha * gap) / omega).sum((1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class Distillation(OneStep):
    """The generator before it forgets anything: regression from noise to final latents of walks, then SiD on the same sentences."""

    paper: ClassVar[str] = "arXiv:2406.01561"
    changes: ClassVar[str] = "a one-step generator as an adapter of the UNet"
    when: ClassVar[str] = "the start of SFD"
    keeps_fake: ClassVar[bool] = True

    sentences: tuple[str, ...]  # what it should be able to draw
    regression: MaybeSteps  # steps of regression, before those of SiD
    walks: Count  # recorded walks to regress on
    walk_steps: ScheduleSteps = 25  # DDIM steps of a walk
    walk_guidance: float = 4.5  # classifier-free guidance of the walks
    lr_regression: float = 1e-3  # learning rate of the generator while it regresses

    def record(self, concepts: list[Concept], seed: int) -> Recording:
        return Recording(
            pairs=(),
            walks=0,
            steps=self.walk_steps,
            guidance=self.walk_guidance,
            seed=seed,
            retain=self.sentences,
            retain_walks=self.walks,
            keep="latents",
        )

    def step(self, play: Play) -> Iterator[Update]:
        done = int(play.state.setdefault("iteration", torch.zeros((), dtype=torch.long)))
        play.state["iteration"] = play.state["iteration"] + 1
        if done < self.regression:
            rows = play.bank.latents("retain")[torch.randint(len(play.bank.latents("retain")), (8 * self.batch,))]
            latents = play.bank.final(rows, play.model.device)
            with play.using(GENERATOR):
                x_g = play.model.one_step(play.bank.noise(rows, play.model), play.encode(latents.prompts), self.start)
            yield Update(GENERATOR, F.mse_loss(x_g, latents.x_0), len(rows), lr=self.lr_regression)
            return
        prompts = [self.sentences[i] for i in torch.randint(len(self.sentences), (self.batch,)).tolist()]
        with torch.no_grad():
            x_g = self.generated(play, prompts)
        yield Update(FAKE, self.fake_loss(play, x_g, prompts).mean(), 2 * self.batch)
        x_g = self.generated(play, prompts)
        yield Update(GENERATOR, self.generator_loss(play, x_g, prompts, prompts).mean(), 5 * self.batch)

    def passes(self, step: int) -> Cost:
        if step >= self.regression:
            return super().passes(step)
        return Cost(unet_forwards=8 * self.batch, unet_backwards=8 * self.batch, sample_gradients=8 * self.batch)


class OneStepPipeline(StableDiffusionPipeline):
    """A StableDiffusionPipeline whose UNet is a one-step generator; `from_pretrained` reads what `erasure export --as folder` wrote."""

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        requires_safety_checker: bool = False,
        start: int = 625,
    ) -> None:  # diffusers reads the components off this signature
        super().__init__(
            vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder, requires_safety_checker
        )
        pipe: Any = self  # diffusers brings what it inherits without types
        pipe.register_to_config(start=start)

    @torch.no_grad()
    def __call__(  # type: ignore[override]  # one step has no schedule, guidance or negative prompt
        self, prompt: str | Sequence[str], generator: torch.Generator | None = None, latents: Tensor | None = None, output_type: str = "pil"
    ) -> Any:
        """Images of the prompts, one each.

        Args:
            latents: unit noise (B, C, h, w) in place of fresh one.
            output_type: "pil", "np", "pt", or "latent".
        """
        from erasure.families.stable_diffusion import StableDiffusion

        pipe: Any = self
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        model = StableDiffusion(pipe, type(self).__name__)
        noise = torch.randn(len(prompts), *model.latent_shape, generator=generator) if latents is None else latents
        found = model.one_step(noise.to(model.device), model.encode(prompts), pipe.config.start)
        if output_type == "latent":
            return found
        return pipe.image_processor.postprocess(model.decode(found) * 2 - 1, output_type=output_type)
