"""The teacher's predictions as data: trajectories of the frozen model, computed once and used for training many times.

A trajectory with classifier-free guidance computes eps(x_t, c) and eps(x_t, empty) at every step anyway. Storing them turns the frozen
teacher into a table: no second UNet in memory, no new trajectory per update. Trajectories come from the frozen model, as in the newer code
of the ESD authors; their paper samples from the model being edited. Methods that add noise to clean images (SalUn) use the final latents
instead, without a round trip through the VAE.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from erasure.config.seeds import derive_seed
from erasure.errors import UserError
from erasure.families.base import DiffusionModel

CacheRole = Literal["erase", "retain"]


@dataclass(frozen=True, kw_only=True)
class TeacherQuery:
    """What to record of the frozen model.

    Attributes:
        prompt_pairs: (prompt with the concept, the same without it); noise is predicted for the second one at every point of the first
            one's trajectories.
        trajectories: guided trajectories in all, dealt round robin to the pairs.
        steps: DDIM steps per trajectory; each one gives a row.
        guidance: classifier-free guidance of the trajectories.
        seed: decides the noise of every trajectory.
        retain_prompts: prompts to retain.
        retain_trajectories: guided trajectories of the retain prompts, in all.
        store: "predictions" stores every step and the model's predictions there, "latents" only the ends of the trajectories; "nothing"
            computes no trajectories and only lists the prompts.
        images, retain_images: folders of real images that replace the trajectories; for "latents" only.
        generator: folder of a one-step edit. Instead of trajectories, its generator makes the images, and the frozen model predicts noise
            on them at `steps` levels of fresh noise.

    Raises:
        UserError: There are fewer trajectories than prompts, or no steps.
    """

    prompt_pairs: tuple[tuple[str, str], ...]
    trajectories: int
    steps: int
    guidance: float
    seed: int = 0
    retain_prompts: tuple[str, ...] = ()
    retain_trajectories: int = 0
    store: Literal["predictions", "latents", "nothing"] = "predictions"
    images: str = ""
    retain_images: str = ""
    generator: str | None = None

    def __post_init__(self) -> None:
        for flag, trajectories, prompts, images in (
            ("--trajectories", self.trajectories, self.prompt_pairs, self.images),
            ("--retain-trajectories", self.retain_trajectories, self.retain_prompts, self.retain_images),
        ):
            if self.store != "nothing" and not images and trajectories < len(prompts):
                raise UserError(f"{len(prompts)} prompts need as many {flag}, got {trajectories}; raise it or give fewer prompts.")
        if self.steps < 1:
            raise UserError(f"a trajectory needs at least 1 step, got --trajectory-steps {self.steps}.")

    def all_prompts(self) -> list[str]:
        """Return every distinct prompt that a training may encode, in a fixed order."""
        return list(dict.fromkeys(["", *(prompt for pair in self.prompt_pairs for prompt in pair), *self.retain_prompts]))

    def prompt_pair(self, index: int) -> tuple[str, str]:
        """Return the prompt pair of an index: first the pairs, then the retain prompts, each paired with an empty prompt."""
        return self.prompt_pairs[index] if index < len(self.prompt_pairs) else (self.retain_prompts[index - len(self.prompt_pairs)], "")

    def trajectory_starts(self) -> list[tuple[int, int]]:
        """Return (seed, prompt index) of every trajectory, those of the retain prompts last."""
        if self.store == "nothing":
            return []
        erase = 0 if self.images else self.trajectories
        retain = 0 if self.retain_images else self.retain_trajectories
        starts = [(derive_seed(self.seed, i), i % len(self.prompt_pairs)) for i in range(erase)]
        return starts + [
            (derive_seed(self.seed, 500_000 + i), len(self.prompt_pairs) + i % len(self.retain_prompts)) for i in range(retain)
        ]


class TeacherBatch(NamedTuple):
    """Rows of a teacher cache."""

    x_t: Tensor  # (B, C, h, w)
    t: Tensor  # (B,)
    prompts: list[str]  # B prompts with the concept
    pred_cond: Tensor  # (B, C, h, w) the teacher's prediction for `prompts`
    pred_neutral: Tensor  # (B, C, h, w) the teacher's prediction for the prompts without the concept
    x_0: Tensor  # (B, C, h, w) the final latents of the rows' trajectories
    other_prompts: list[str]  # the second prompts of the pairs: those without the concept


class LatentBatch(NamedTuple):
    """Final latents of trajectories."""

    x_0: Tensor  # (B, C, h, w)
    prompts: list[str]
    neutral_prompts: list[str]  # the same prompts without the concept


@dataclass(frozen=True)
class TeacherCache:
    """R rows and W final latents, in fp16 even when new, so that a training gives the same result with new and with cached ones."""

    query: TeacherQuery
    x_t: Tensor  # (R, C, h, w); R is 0 when only latents are stored
    t: Tensor  # (R,)
    prompt_index: Tensor  # (R,) index for query.prompt_pair
    pred_cond: Tensor  # (R, C, h, w)
    pred_neutral: Tensor  # (R, C, h, w)
    x_0: Tensor  # (W, C, h, w) final latents
    latent_prompt_index: Tensor  # (W,) index for query.prompt_pair
    latent_index: Tensor  # (R,) index in x_0 of the end of the row's trajectory

    def __len__(self) -> int:
        return len(self.t)

    def rows(self, role: CacheRole) -> Tensor:
        """Return the indices (n,) of the rows to erase or to retain."""
        return self._role_indices(self.prompt_index, role)

    def latent_rows(self, role: CacheRole) -> Tensor:
        """Return the indices (n,) of the final latents to erase or to retain."""
        return self._role_indices(self.latent_prompt_index, role)

    def _role_indices(self, prompt_index: Tensor, role: CacheRole) -> Tensor:
        is_erase = prompt_index < len(self.query.prompt_pairs)
        return (is_erase if role == "erase" else ~is_erase).nonzero().flatten()

    def gather_batch(self, indices: Tensor, device: torch.device) -> TeacherBatch:
        """Return the rows at these indices (B,), in fp32 on a device."""
        prompt_pairs = [self.query.prompt_pair(i) for i in self.prompt_index[indices].tolist()]
        prompts, other_prompts = ([pair[part] for pair in prompt_pairs] for part in (0, 1))
        x_t, pred_cond, pred_neutral = (values[indices].to(device).float() for values in (self.x_t, self.pred_cond, self.pred_neutral))
        x_0 = self.x_0[self.latent_index[indices]].to(device).float()
        return TeacherBatch(x_t, self.t[indices].to(device), prompts, pred_cond, pred_neutral, x_0, other_prompts)

    def initial_noise(self, indices: Tensor, model: DiffusionModel) -> Tensor:
        """Return the unit noise (B, C, h, w) at which these trajectories started."""
        starts = self.query.trajectory_starts()
        return model.sample_noise([starts[i][0] for i in indices.tolist()])

    def gather_latents(self, indices: Tensor, device: torch.device) -> LatentBatch:
        """Return the final latents at these indices (B,), in fp32 on a device."""
        prompt_pairs = [self.query.prompt_pair(i) for i in self.latent_prompt_index[indices].tolist()]
        return LatentBatch(
            self.x_0[indices].to(device).float(),
            [concept_prompt for concept_prompt, _ in prompt_pairs],
            [neutral_prompt for _, neutral_prompt in prompt_pairs],
        )


def query_cost(query: TeacherQuery, forwards_per_step: int) -> int:
    """Return the denoiser forwards per sample that a query takes; they count even if its result comes from the cache.

    Args:
        forwards_per_step: of the model; one that needs a single pass does not predict without a prompt on the way, so it is asked.
    """
    if query.generator is not None:
        return len(query.trajectory_starts()) * (1 + 2 * query.steps)
    predicts = query.store == "predictions"
    asks = [predicts and (forwards_per_step == 1 or bool(query.prompt_pair(index)[1])) for _, index in query.trajectory_starts()]
    return sum((forwards_per_step + is_asked) * query.steps for is_asked in asks)
