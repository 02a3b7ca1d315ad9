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
from erasure.config.choices import Count, ScheduleSteps, StepsOrZero, Timestep
from erasure.families.base import Cost, Region
from erasure.methods.base import OptimizerStep, Product, TrainableGroup, Trained, TrainingContext
from erasure.training.adapters import activate_adapter, add_adapters
from erasure.training.teacher_cache import TeacherQuery

GENERATOR, FAKE = "generator", "fake"
FAKE_PREFIX = "fake."  # of the fake score's factors among a run's tensors


@dataclass(frozen=True, kw_only=True)
class OneStepMethod(Trained):
    """What distillation and forgetting share: one frozen UNet, the teacher, and two adapter sets on it.

    With adapters off the UNet is the teacher phi; `generator` makes it G, `fake` the score psi of what G draws.
    """

    product: ClassVar[Product] = "one-step"
    supports_gradient_checkpointing: ClassVar[bool] = False  # a recomputed forward would run with the adapters as they are then: off
    keeps_fake: ClassVar[bool] = False

    region: Region = "full"  # layers that carry adapters
    rank: Count = 16  # of both adapter sets
    init_timestep: Timestep = 625  # timestep at which the generator is asked, tau
    sid_weight: float = 1.0  # alpha of the SiD loss
    guidance: float = 4.5  # kappa of both scores, in training the fake score and the generator
    min_timestep: Timestep = 20  # smallest timestep of the scores
    max_timestep: Timestep = 979  # largest
    fake_lr: float = 3e-6  # learning rate of the fake score

    @contextmanager
    def trainable(self, model: Any) -> Iterator[dict[str, TrainableGroup]]:
        with add_adapters(model, self.region, self.rank, (GENERATOR, FAKE)) as adapter_sets:
            fake_factors = {FAKE_PREFIX + name: p for name, p in adapter_sets[FAKE].items()}
            yield {
                GENERATOR: TrainableGroup(adapter_sets[GENERATOR], self.lr, betas=(0.0, 0.999), max_grad_norm=1.0),
                FAKE: TrainableGroup(fake_factors, self.fake_lr, betas=(0.0, 0.999), max_grad_norm=1.0, saved=self.keeps_fake),
            }

    def prepare(self, context: TrainingContext, groups: dict[str, TrainableGroup]) -> None:
        adapter_sets = {name: group.parameters for name, group in groups.items()}
        context.use_adapter = lambda name: activate_adapter(context.model, name, adapter_sets)

    def generate_latents(self, context: TrainingContext, prompts: list[str], seeds: list[int], steps: int) -> Tensor:
        with context.use_adapter(GENERATOR):
            return context.model.sample_one_step(context.model.sample_noise(seeds), context.model.encode(prompts), self.init_timestep)

    def sample_generator(self, context: TrainingContext, prompts: list[str]) -> Tensor:
        """x_g = G(z, c), one step from fresh noise."""
        noise = torch.randn(len(prompts), *context.model.latent_shape).to(context.model.device)
        with context.use_adapter(GENERATOR):
            return context.model.sample_one_step(noise, context.encode(prompts), self.init_timestep)

    def guided_score(self, context: TrainingContext, x_t: Tensor, t: Tensor, prompts: list[str], adapter: str = "") -> Tensor:
        """Guided noise prediction of the fake score, or of the teacher where no network is named."""
        x, times = torch.cat((x_t, x_t)), torch.cat((t, t))
        cond = context.encode([""] * len(prompts) + prompts)
        with context.use_adapter(adapter) if adapter else nullcontext():
            uncond, cond = context.model.predict(x, times, cond).chunk(2)
        return uncond + self.guidance * (cond - uncond)

    def noise_generated(self, context: TrainingContext, x_g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, t and the noise in it, with t from the range of the scores."""
        noise = torch.randn(x_g.shape).to(x_g)
        t = torch.randint(self.min_timestep, self.max_timestep + 1, (len(x_g),)).to(x_g.device)
        return context.model.add_noise(x_g, noise, t), t, noise

    def fake_loss(self, context: TrainingContext, x_g: Tensor, prompts: list[str]) -> Tensor:
        """||eps_psi^kappa(x_t, c) - eps||^2, summed over the latent, for every sample (B,)."""
        x_t, t, noise = self.noise_generated(context, x_g.detach())
        return (self.guided_score(context, x_t, t, prompts, FAKE) - noise).square().sum((1, 2, 3))

    def generator_loss(self, context: TrainingContext, x_g: Tensor, fake_prompts: list[str], teacher_prompts: list[str]) -> Tensor:
        """The SiD loss of every sample (B,), with the teacher asked for another text where it should lead elsewhere."""
        x_t, t, _ = self.noise_generated(context, x_g)
        f_phi = context.model.estimate_x0(x_t, self.guided_score(context, x_t, t, teacher_prompts), t)
        f_psi = context.model.estimate_x0(x_t, self.guided_score(context, x_t, t, fake_prompts, FAKE), t)
        return sid_loss(x_g, f_phi, f_psi, self.sid_weight)

    def step_cost(self, step: int) -> Cost:
        """The fake score: G, psi guided and its backward. The generator: G, phi and psi guided, and a backward through all five."""
        return Cost(unet_forwards=8 * self.batch, unet_backwards=7 * self.batch, sample_gradients=7 * self.batch)


def sid_loss(x_g: Tensor, f_phi: Tensor, f_psi: Tensor, alpha: float) -> Tensor:
    """(f_phi - f_psi)^T [(f_phi - x_g) - alpha (f_phi - f_psi)] / omega, omega = mean |x_g - f_phi| (SiD, equation 23); (B,)."""
    omega = (x_g - f_phi).abs().mean((1, 2, 3), keepdim=True).detach().clamp(min=1e-5)
    gap = f_phi - f_psi
    return (gap * ((f_phi - x_g) - alpha * gap) / omega).sum((1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class Distillation(OneStepMethod):
    """The generator before it forgets anything: regression from noise to final latents of walks, then SiD on the same sentences."""

    paper: ClassVar[str] = "arXiv:2406.01561"
    changes: ClassVar[str] = "a one-step generator as an adapter of the UNet"
    when: ClassVar[str] = "the start of SFD"
    keeps_fake: ClassVar[bool] = True

    prompts: tuple[str, ...]  # what it should be able to draw
    regression_steps: StepsOrZero  # steps of regression, before those of SiD
    trajectories: Count  # recorded walks to regress on
    trajectory_steps: ScheduleSteps = 25  # DDIM steps of a walk
    trajectory_guidance: float = 4.5  # classifier-free guidance of the walks
    regression_lr: float = 1e-3  # learning rate of the generator while it regresses

    def query(self, concepts: list[Concept], seed: int) -> TeacherQuery:
        return TeacherQuery(
            prompt_pairs=(),
            trajectories=0,
            steps=self.trajectory_steps,
            guidance=self.trajectory_guidance,
            seed=seed,
            retain_prompts=self.prompts,
            retain_trajectories=self.trajectories,
            store="latents",
        )

    def step(self, context: TrainingContext) -> Iterator[OptimizerStep]:
        iteration = int(context.state.setdefault("iteration", torch.zeros((), dtype=torch.long)))
        context.state["iteration"] = context.state["iteration"] + 1
        if iteration < self.regression_steps:
            indices = context.cache.latent_rows("retain")[torch.randint(len(context.cache.latent_rows("retain")), (8 * self.batch,))]
            latents = context.cache.gather_latents(indices, context.model.device)
            with context.use_adapter(GENERATOR):
                x_g = context.model.sample_one_step(
                    context.cache.initial_noise(indices, context.model), context.encode(latents.prompts), self.init_timestep
                )
            yield OptimizerStep(GENERATOR, F.mse_loss(x_g, latents.x_0), len(indices), lr=self.regression_lr)
            return
        prompts = [self.prompts[i] for i in torch.randint(len(self.prompts), (self.batch,)).tolist()]
        with torch.no_grad():
            x_g = self.sample_generator(context, prompts)
        yield OptimizerStep(FAKE, self.fake_loss(context, x_g, prompts).mean(), 2 * self.batch)
        x_g = self.sample_generator(context, prompts)
        yield OptimizerStep(GENERATOR, self.generator_loss(context, x_g, prompts, prompts).mean(), 5 * self.batch)

    def step_cost(self, step: int) -> Cost:
        if step >= self.regression_steps:
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
        init_timestep: int = 625,
    ) -> None:  # diffusers reads the components off this signature
        super().__init__(
            vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder, requires_safety_checker
        )
        pipe: Any = self  # diffusers brings what it inherits without types
        pipe.register_to_config(start=init_timestep)

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
        x_0 = model.sample_one_step(noise.to(model.device), model.encode(prompts), pipe.config.start)
        if output_type == "latent":
            return x_0
        return pipe.image_processor.postprocess(model.decode(x_0) * 2 - 1, output_type=output_type)
