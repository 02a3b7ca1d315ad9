"""The teacher's answers as data: walks of the frozen model, recorded once and trained from many times.

A classifier-free-guided walk computes eps(x_t, c) and eps(x_t, empty) at every step anyway. Keeping them turns the
frozen teacher into a table: no second UNet in memory, no fresh rollout per update. Walks come from the frozen model, as in
the newer code of the ESD authors; their paper walks with the model being edited. Methods that noise clean images (SalUn) take
the final latents instead, without a round trip through the VAE.
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
    """What to ask the frozen model.

    Attributes:
        pairs: (sentence with the concept, the same without it); the second is asked for at every point of the first's walks.
        walks: guided walks in all, dealt round robin to the pairs.
        steps: DDIM steps of a walk, each giving one row.
        guidance: classifier-free guidance of the walks.
        retain: sentences to keep; walked as well, `retain_walks` in all.
        keep: "answers" keeps every step and what the model said there, "latents" only where the walks end, "nothing" walks nowhere
            and only names the sentences.
        images, retain_images: folders of real images that stand in for walks; "latents" only.
        generator: folder of a one-step edit. Then nothing is walked: the generator draws, and the frozen model is asked about its pictures
            at `steps` levels of fresh noise.
    """

    prompt_pairs: tuple[tuple[str, str], ...]
    trajectories: int
    steps: int
    guidance: float
    seed: int = 0
    retain_prompts: tuple[str, ...] = ()
    retain_trajectories: int = 0
    store: Literal["answers", "latents", "nothing"] = "answers"
    images: str = ""
    retain_images: str = ""
    generator: str | None = None

    def __post_init__(self) -> None:
        for flag, trajectories, prompts, images in (
            ("--walks", self.trajectories, self.prompt_pairs, self.images),
            ("--retain-walks", self.retain_trajectories, self.retain_prompts, self.retain_images),
        ):
            if self.store != "nothing" and not images and trajectories < len(prompts):
                raise UserError(
                    f"{trajectories} walks cannot cover {len(prompts)} training sentences; raise {flag} or name fewer sentences."
                )
        if self.steps < 1:
            raise UserError(f"a walk needs at least 1 step, got --walk-steps {self.steps}.")

    def all_prompts(self) -> list[str]:
        """Every distinct text that training may ask for, in a fixed order."""
        return list(dict.fromkeys(["", *(prompt for pair in self.prompt_pairs for prompt in pair), *self.retain_prompts]))

    def prompt_pair(self, index: int) -> tuple[str, str]:
        """Pairs first, then retain sentences, which have no other side."""
        return self.prompt_pairs[index] if index < len(self.prompt_pairs) else (self.retain_prompts[index - len(self.prompt_pairs)], "")

    def trajectory_starts(self) -> list[tuple[int, int]]:
        """(seed of the walk, index of its sentence) for every walk, those to retain after those to erase."""
        if self.store == "nothing":
            return []
        erase = 0 if self.images else self.trajectories
        retain = 0 if self.retain_images else self.retain_trajectories
        starts = [(derive_seed(self.seed, i), i % len(self.prompt_pairs)) for i in range(erase)]
        return starts + [
            (derive_seed(self.seed, 500_000 + i), len(self.prompt_pairs) + i % len(self.retain_prompts)) for i in range(retain)
        ]


class TeacherBatch(NamedTuple):
    """Rows of a bank."""

    x_t: Tensor  # (B, C, h, w)
    t: Tensor  # (B,)
    prompts: list[str]  # B sentences with the concept
    eps_cond: Tensor  # (B, C, h, w) the teacher on `prompts`
    eps_neutral: Tensor  # (B, C, h, w) the teacher on the sentences without the concept


class LatentBatch(NamedTuple):
    """Final latents of walks."""

    x_0: Tensor  # (B, C, h, w)
    prompts: list[str]
    neutral_prompts: list[str]  # the same sentences without the concept


@dataclass(frozen=True)
class TeacherCache:
    """R recorded rows and W final latents, in fp16 whether they come from disk or were just made, so both train alike."""

    query: TeacherQuery
    x_t: Tensor  # (R, C, h, w); R is 0 when only latents are kept
    t: Tensor  # (R,)
    prompt_index: Tensor  # (R,) index for recording.sentence
    eps_cond: Tensor  # (R, C, h, w)
    eps_neutral: Tensor  # (R, C, h, w)
    x_0: Tensor  # (W, C, h, w)
    latent_prompt_index: Tensor  # (W,)

    def __len__(self) -> int:
        return len(self.t)

    def rows(self, role: CacheRole) -> Tensor:
        return self._role_indices(self.prompt_index, role)

    def latent_rows(self, role: CacheRole) -> Tensor:
        return self._role_indices(self.latent_prompt_index, role)

    def _role_indices(self, prompt_index: Tensor, role: CacheRole) -> Tensor:
        is_erase = prompt_index < len(self.query.prompt_pairs)
        return (is_erase if role == "erase" else ~is_erase).nonzero().flatten()

    def gather_batch(self, indices: Tensor, device: torch.device) -> TeacherBatch:
        prompts = [self.query.prompt_pair(i)[0] for i in self.prompt_index[indices].tolist()]
        x_t, eps_cond, eps_neutral = (values[indices].to(device).float() for values in (self.x_t, self.eps_cond, self.eps_neutral))
        return TeacherBatch(x_t, self.t[indices].to(device), prompts, eps_cond, eps_neutral)

    def initial_noise(self, indices: Tensor, model: DiffusionModel) -> Tensor:
        """The unit noise from which these walks began."""
        starts = self.query.trajectory_starts()
        return model.sample_noise([starts[i][0] for i in indices.tolist()])

    def gather_latents(self, indices: Tensor, device: torch.device) -> LatentBatch:
        prompt_pairs = [self.query.prompt_pair(i) for i in self.latent_prompt_index[indices].tolist()]
        return LatentBatch(
            self.x_0[indices].to(device).float(),
            [concept_prompt for concept_prompt, _ in prompt_pairs],
            [neutral_prompt for _, neutral_prompt in prompt_pairs],
        )


def query_cost(query: TeacherQuery) -> int:
    """UNet forwards per sample that a recording takes, whether it was just made or found."""
    if query.generator is not None:
        return len(query.trajectory_starts()) * (1 + 2 * query.steps)
    neutral_forward = query.store == "answers"
    return sum((2 + (neutral_forward and bool(query.prompt_pair(index)[1]))) * query.steps for _, index in query.trajectory_starts())
