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

from erasure.config.seeds import stream
from erasure.errors import UserError
from erasure.families.base import DiffusionModel

Role = Literal["erase", "retain"]


@dataclass(frozen=True, kw_only=True)
class Recording:
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

    pairs: tuple[tuple[str, str], ...]
    walks: int
    steps: int
    guidance: float
    seed: int = 0
    retain: tuple[str, ...] = ()
    retain_walks: int = 0
    keep: Literal["answers", "latents", "nothing"] = "answers"
    images: str = ""
    retain_images: str = ""
    generator: str | None = None

    def __post_init__(self) -> None:
        for what, walks, sentences, images in (
            ("--walks", self.walks, self.pairs, self.images),
            ("--retain-walks", self.retain_walks, self.retain, self.retain_images),
        ):
            if self.keep != "nothing" and not images and walks < len(sentences):
                raise UserError(f"{walks} walks cannot cover {len(sentences)} training sentences; raise {what} or name fewer sentences.")
        if self.steps < 1:
            raise UserError(f"a walk needs at least 1 step, got --walk-steps {self.steps}.")

    def texts(self) -> list[str]:
        """Every distinct text that training may ask for, in a fixed order."""
        return list(dict.fromkeys(["", *(text for pair in self.pairs for text in pair), *self.retain]))

    def sentence(self, index: int) -> tuple[str, str]:
        """Pairs first, then retain sentences, which have no other side."""
        return self.pairs[index] if index < len(self.pairs) else (self.retain[index - len(self.pairs)], "")

    def deal(self) -> list[tuple[int, int]]:
        """(seed of the walk, index of its sentence) for every walk, those to retain after those to erase."""
        if self.keep == "nothing":
            return []
        erase = 0 if self.images else self.walks
        retain = 0 if self.retain_images else self.retain_walks
        found = [(stream(self.seed, w), w % len(self.pairs)) for w in range(erase)]
        return found + [(stream(self.seed, 500_000 + w), len(self.pairs) + w % len(self.retain)) for w in range(retain)]


class Batch(NamedTuple):
    """Rows of a bank."""

    x_t: Tensor  # (B, C, h, w)
    t: Tensor  # (B,)
    prompts: list[str]  # B sentences with the concept
    eps_cond: Tensor  # (B, C, h, w) the teacher on `prompts`
    eps_uncond: Tensor  # (B, C, h, w) the teacher on the sentences without the concept


class Latents(NamedTuple):
    """Final latents of walks."""

    x_0: Tensor  # (B, C, h, w)
    prompts: list[str]
    without: list[str]  # the same sentences without the concept


@dataclass(frozen=True)
class Bank:
    """R recorded rows and W final latents, in fp16 whether they come from disk or were just made, so both train alike."""

    recording: Recording
    x_t: Tensor  # (R, C, h, w); R is 0 when only latents are kept
    t: Tensor  # (R,)
    pair: Tensor  # (R,) index for recording.sentence
    eps_cond: Tensor  # (R, C, h, w)
    eps_uncond: Tensor  # (R, C, h, w)
    x_0: Tensor  # (W, C, h, w)
    x_0_pair: Tensor  # (W,)

    def __len__(self) -> int:
        return len(self.t)

    def rows(self, role: Role) -> Tensor:
        return self._of(self.pair, role)

    def latents(self, role: Role) -> Tensor:
        return self._of(self.x_0_pair, role)

    def _of(self, pair: Tensor, role: Role) -> Tensor:
        erase = pair < len(self.recording.pairs)
        return (erase if role == "erase" else ~erase).nonzero().flatten()

    def batch(self, rows: Tensor, device: torch.device) -> Batch:
        prompts = [self.recording.sentence(i)[0] for i in self.pair[rows].tolist()]
        x_t, cond, uncond = (part[rows].to(device).float() for part in (self.x_t, self.eps_cond, self.eps_uncond))
        return Batch(x_t, self.t[rows].to(device), prompts, cond, uncond)

    def noise(self, latents: Tensor, model: DiffusionModel) -> Tensor:
        """The unit noise from which these walks began."""
        dealt = self.recording.deal()
        return model.noise([dealt[i][0] for i in latents.tolist()])

    def final(self, rows: Tensor, device: torch.device) -> Latents:
        sentences = [self.recording.sentence(i) for i in self.x_0_pair[rows].tolist()]
        return Latents(self.x_0[rows].to(device).float(), [with_ for with_, _ in sentences], [without for _, without in sentences])


def recording_cost(recording: Recording) -> int:
    """UNet forwards per sample that a recording takes, whether it was just made or found."""
    if recording.generator is not None:
        return len(recording.deal()) * (1 + 2 * recording.steps)
    third = recording.keep == "answers"
    return sum((2 + (third and bool(recording.sentence(index)[1]))) * recording.steps for _, index in recording.deal())
