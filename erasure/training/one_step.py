"""One-step generators, distilled from a diffusion model by regression and then by SiD-LSG (Zhou et al., arXiv:2404.04057, 2406.01561)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor

from erasure.concept import Concept
from erasure.config.choices import Count, Region, ScheduleSteps, StepsOrZero, Timestep
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.cost import Cost
from erasure.methods.base import OptimizerStep, Product, TrainableGroup, Trained, TrainingContext
from erasure.training.adapters import activate_adapter, add_adapters
from erasure.training.teacher_cache import TeacherQuery

GENERATOR, FAKE = "generator", "fake"
FAKE_PREFIX = "fake."  # of the fake score's factors among the tensors of a run


@dataclass(frozen=True, kw_only=True)
class OneStepMethod(Trained):
    """What distillation and forgetting share: one frozen UNet, the teacher, with two adapter sets.

    Without adapters the UNet is the teacher phi. The adapter set `generator` makes it G, `fake` makes it psi, the score of G's images.
    """

    product: ClassVar[Product] = "one-step"
    repeatable: ClassVar[bool] = False
    supports_gradient_checkpointing: ClassVar[bool] = False  # the recomputation would run with adapters switched off
    saves_fake: ClassVar[bool] = False  # whether the fake score's adapter goes into the result

    region: Region = "full"  # layers that carry adapters
    rank: Count = 16  # rank of both adapter sets
    init_timestep: Timestep = 625  # timestep at which the generator runs, the paper's tau
    sid_weight: float = 1.0  # weight of the squared score difference in the SiD loss, its alpha
    guidance: float = 4.5  # classifier-free guidance of teacher and fake score throughout training, the paper's kappa
    min_timestep: Timestep = 20  # smallest timestep at which the scores are compared
    max_timestep: Timestep = 979  # largest timestep at which the scores are compared
    fake_lr: float = 3e-6  # learning rate of the fake score

    def check_model(self, model: DiffusionModel) -> None:
        super().check_model(model)
        if model.schedule.predicts != "noise":
            raise UserError(
                f"one-step generators are distilled from noise predictions, and {model.source} predicts the velocity of a flow; use esd "
                "or salun on it. Few-step flows are released as such, for example FLUX.1-schnell."
            )

    @contextmanager
    def trainable(self, model: DiffusionModel) -> Iterator[dict[str, TrainableGroup]]:
        for name in ("init_timestep", "min_timestep", "max_timestep"):
            if getattr(self, name) >= model.num_timesteps:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} must be below {model.num_timesteps}, the timesteps of {model.source}, got {getattr(self, name)}.")
        with add_adapters(model, self.region, self.rank, (GENERATOR, FAKE)) as adapter_sets:
            fake_factors = {FAKE_PREFIX + name: p for name, p in adapter_sets[FAKE].items()}
            yield {
                GENERATOR: TrainableGroup(adapter_sets[GENERATOR], self.lr, betas=(0.0, 0.999), max_grad_norm=1.0),
                FAKE: TrainableGroup(fake_factors, self.fake_lr, betas=(0.0, 0.999), max_grad_norm=1.0, saved=self.saves_fake),
            }

    def prepare(self, context: TrainingContext, groups: dict[str, TrainableGroup]) -> None:
        adapter_sets = {name: group.parameters for name, group in groups.items()}
        context.use_adapter = lambda name: activate_adapter(context.model, name, adapter_sets)

    def generate_latents(self, context: TrainingContext, prompts: list[str], seeds: list[int], steps: int) -> Tensor:
        with context.use_adapter(GENERATOR):
            return context.model.sample_one_step(context.model.sample_noise(seeds), context.model.encode(prompts), self.init_timestep)

    def sample_generator(self, context: TrainingContext, prompts: list[str]) -> Tensor:
        """Return x_g = G(z, c) (B, C, h, w), one step from fresh noise."""
        noise = torch.randn(len(prompts), *context.model.latent_shape).to(context.model.device)
        with context.use_adapter(GENERATOR):
            return context.model.sample_one_step(noise, context.encode(prompts), self.init_timestep)

    def guided_score(self, context: TrainingContext, x_t: Tensor, t: Tensor, prompts: list[str], adapter: str = "") -> Tensor:
        """Return the guided noise prediction (B, C, h, w) of an adapter set, or of the teacher if none is named."""
        x, times = torch.cat((x_t, x_t)), torch.cat((t, t))
        cond = context.encode([""] * len(prompts) + prompts)
        with context.use_adapter(adapter) if adapter else nullcontext():
            uncond, with_prompt = context.model.predict(x, times, cond).chunk(2)
        return uncond + self.guidance * (with_prompt - uncond)

    def noise_generated(self, context: TrainingContext, x_g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x_t (B, C, h, w) for uniform t in the range of the scores and fresh noise, with t (B,) and the noise."""
        noise = torch.randn(x_g.shape).to(x_g)
        t = torch.randint(self.min_timestep, self.max_timestep + 1, (len(x_g),)).to(x_g.device)
        return context.model.add_noise(x_g, noise, t), t, noise

    def fake_loss(self, context: TrainingContext, x_g: Tensor, prompts: list[str]) -> Tensor:
        """Return ||eps_psi^kappa(x_t, c) - eps||^2 of every sample (B,), summed over its latent."""
        x_t, t, noise = self.noise_generated(context, x_g.detach())
        return (self.guided_score(context, x_t, t, prompts, FAKE) - noise).square().sum((1, 2, 3))

    def generator_loss(self, context: TrainingContext, x_g: Tensor, fake_prompts: list[str], teacher_prompts: list[str]) -> Tensor:
        """Return the SiD loss of every sample (B,); the teacher may get other prompts than the fake score, to lead away from them."""
        x_t, t, _ = self.noise_generated(context, x_g)
        f_phi = context.model.estimate_x0(x_t, self.guided_score(context, x_t, t, teacher_prompts), t)
        f_psi = context.model.estimate_x0(x_t, self.guided_score(context, x_t, t, fake_prompts, FAKE), t)
        return sid_loss(x_g, f_phi, f_psi, self.sid_weight)

    @property
    def samples_per_backward(self) -> int:
        return 5 * self.batch  # the generator, guided phi and guided psi

    def step_cost(self, step: int) -> Cost:
        """Fake score: G, guided psi and its backward pass. Generator: G, guided phi and psi, and a backward pass through all five."""
        return Cost(unet_forwards=8 * self.batch, unet_backwards=7 * self.batch, sample_gradients=7 * self.batch)


def sid_loss(x_g: Tensor, f_phi: Tensor, f_psi: Tensor, alpha: float) -> Tensor:
    """Return (f_phi - f_psi)^T [(f_phi - x_g) - alpha (f_phi - f_psi)] / omega with omega = mean |x_g - f_phi| (SiD, equation 23); (B,)."""
    omega = (x_g - f_phi).abs().mean((1, 2, 3), keepdim=True).detach().clamp(min=1e-5)
    gap = f_phi - f_psi
    return (gap * ((f_phi - x_g) - alpha * gap) / omega).sum((1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class Distillation(OneStepMethod):
    """The generator before it forgets anything: regression from noise to final latents of trajectories, then SiD on the same prompts."""

    paper: ClassVar[str] = "arXiv:2406.01561"
    changes: ClassVar[str] = "a one-step generator, as an adapter of the UNet"
    when: ClassVar[str] = "as the pretraining of SFD"
    saves_fake: ClassVar[bool] = True

    prompts: tuple[str, ...]  # prompts it learns to generate images for
    regression_steps: StepsOrZero  # regression steps, before those of SiD
    trajectories: Count  # cached trajectories for the regression
    trajectory_steps: ScheduleSteps = 25  # DDIM steps per trajectory
    trajectory_guidance: float = 4.5  # classifier-free guidance of the trajectories
    regression_lr: float = 1e-3  # learning rate of the generator in the regression

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

    @property
    def samples_per_backward(self) -> int:
        return (8 if self.regression_steps else 5) * self.batch

    def step(self, context: TrainingContext) -> Iterator[OptimizerStep]:
        iteration = int(context.state.setdefault("iteration", torch.zeros((), dtype=torch.long)))
        context.state["iteration"] = context.state["iteration"] + 1
        if iteration < self.regression_steps:
            rows = context.cache.latent_rows("retain")
            indices = rows[torch.randint(len(rows), (8 * self.batch,))]
            latents = context.cache.gather_latents(indices, context.model.device)
            noise = context.cache.initial_noise(indices, context.model)
            with context.use_adapter(GENERATOR):
                x_g = context.model.sample_one_step(noise, context.encode(latents.prompts), self.init_timestep)
            yield OptimizerStep(GENERATOR, F.mse_loss(x_g, latents.x_0), lr=self.regression_lr)
            return
        prompts = [self.prompts[i] for i in torch.randint(len(self.prompts), (self.batch,)).tolist()]
        with torch.no_grad():
            x_g = self.sample_generator(context, prompts)
        yield OptimizerStep(FAKE, self.fake_loss(context, x_g, prompts).mean())
        x_g = self.sample_generator(context, prompts)
        yield OptimizerStep(GENERATOR, self.generator_loss(context, x_g, prompts, prompts).mean())

    def step_cost(self, step: int) -> Cost:
        if step >= self.regression_steps:
            return super().step_cost(step)
        return Cost(unet_forwards=8 * self.batch, unet_backwards=8 * self.batch, sample_gradients=8 * self.batch)


class OneStepPipeline(StableDiffusionPipeline):
    """A StableDiffusionPipeline whose UNet is a one-step generator; `from_pretrained` loads what `erasure export --format folder` wrote."""

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
    ) -> None:  # diffusers reads the components from this signature
        super().__init__(  # type: ignore[no-untyped-call]  # of diffusers
            vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder, requires_safety_checker
        )
        pipe: Any = self  # diffusers has no types for what this class inherits
        pipe.register_to_config(init_timestep=init_timestep)

    @torch.no_grad()
    def __call__(  # one step has no schedule, guidance or negative prompt
        self, prompt: str | Sequence[str], generator: torch.Generator | None = None, latents: Tensor | None = None, output_type: str = "pil"
    ) -> Any:
        """Generate one image per prompt.

        Args:
            prompt: one prompt, or a sequence of B prompts.
            generator: source of the noise.
            latents: unit noise (B, C, h, w) to use instead of fresh noise.
            output_type: "pil", "np", "pt", or "latent".
        """
        from erasure.families.stable_diffusion import StableDiffusion

        pipe: Any = self
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        model = StableDiffusion(pipe, type(self).__name__)
        noise = torch.randn(len(prompts), *model.latent_shape, generator=generator) if latents is None else latents
        x_0 = model.sample_one_step(noise.to(model.device), model.encode(prompts), pipe.config.init_timestep)
        if output_type == "latent":
            return x_0
        return pipe.image_processor.postprocess(model.decode(x_0) * 2 - 1, output_type=output_type)
