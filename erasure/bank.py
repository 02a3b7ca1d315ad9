"""The teacher's answers as data: walks of the frozen model, recorded once and trained from many times.

A classifier-free-guided walk computes eps(x_t, c) and eps(x_t, empty) at every step anyway. Keeping them turns the
frozen teacher into a table: no second UNet in memory, no fresh rollout per update. Walks come from the frozen model, as in
the newer code of the ESD authors; their paper walks with the model being edited.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.run import cache_folder, digest


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What to ask the frozen model.

    Attributes:
        pairs: (sentence with the concept, the same without it); the second is asked for at every point of the first's walks.
        walks: guided walks in all, dealt round robin to the pairs.
        steps: DDIM steps of a walk, each giving one row.
        guidance: classifier-free guidance of the walks.
    """

    pairs: tuple[tuple[str, str], ...]
    walks: int
    steps: int
    guidance: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.walks < len(self.pairs):
            raise UserError(f"{self.walks} walks cannot cover {len(self.pairs)} training sentences; raise --walks or name fewer --prompts.")
        if self.steps < 1:
            raise UserError(f"a walk needs at least 1 step, got --walk-steps {self.steps}.")


class Batch(NamedTuple):
    """Rows of a bank."""

    x_t: Tensor  # (B, C, h, w)
    t: Tensor  # (B,)
    prompts: list[str]  # B sentences with the concept
    eps_cond: Tensor  # (B, C, h, w) the teacher on `prompts`
    eps_uncond: Tensor  # (B, C, h, w) the teacher on the sentences without the concept


@dataclass(frozen=True)
class Bank:
    """R recorded rows, in fp16 whether they come from disk or were just made, so both train alike."""

    recording: Recording
    x_t: Tensor  # (R, C, h, w)
    t: Tensor  # (R,)
    pair: Tensor  # (R,) index into recording.pairs
    eps_cond: Tensor  # (R, C, h, w)
    eps_uncond: Tensor  # (R, C, h, w)

    def __len__(self) -> int:
        return len(self.t)

    def batch(self, rows: Tensor, device: torch.device) -> Batch:
        prompts = [self.recording.pairs[i][0] for i in self.pair[rows].tolist()]
        x_t, cond, uncond = (part[rows].to(device).float() for part in (self.x_t, self.eps_cond, self.eps_uncond))
        return Batch(x_t, self.t[rows].to(device), prompts, cond, uncond)

    def influence(self) -> float:
        """Mean squared difference the concept makes to the teacher, over its mean square without it."""
        change = (self.eps_cond.float() - self.eps_uncond.float()).square().mean()
        return (change / self.eps_uncond.float().square().mean()).item()


def bank_key(model: DiffusionModel, recording: Recording) -> str:
    return digest({"model": model.fingerprint(), "compute": str(model.compute), "device": model.device.type, **asdict(recording)})


def obtain(model: DiffusionModel, recording: Recording, *, cache: Path | None = None, chunk: int = 16) -> Bank:
    """Load a recording from the cache, or make it; an interrupted one continues with the first missing part.

    Args:
        chunk: walks recorded at once. Parts are written when complete, so a killed process loses at most one.
    """
    folder = (cache or cache_folder()) / "banks" / bank_key(model, recording)
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, recording.walks, chunk)
    for start in tqdm(starts, desc="recording", unit="part", disable=all(_part(folder, s).exists() for s in starts)):
        if not _part(folder, start).exists():
            tensors = record(model, recording, list(range(start, min(start + chunk, recording.walks))))
            draft = _part(folder, start).with_suffix(".tmp")
            save_file(tensors, draft)
            draft.replace(_part(folder, start))
    parts = [load_file(_part(folder, start)) for start in starts]
    return Bank(recording, **{key: torch.cat([part[key] for part in parts]) for key in parts[0]})


@torch.no_grad()
def record(model: DiffusionModel, recording: Recording, walks: list[int]) -> dict[str, Tensor]:
    """Walk the frozen model and keep what it saw and said; a row for every walk and step."""
    pair = torch.tensor([w % len(recording.pairs) for w in walks])
    cond = model.encode([recording.pairs[i][0] for i in pair.tolist()])
    empty = model.encode([""]).expand(len(walks), -1, -1)
    neutral_texts = [recording.pairs[i][1] for i in pair.tolist()]
    asked = torch.tensor([i for i, text in enumerate(neutral_texts) if text], dtype=torch.long)  # "" is answered by the walk
    neutral = model.encode([neutral_texts[i] for i in asked.tolist()]) if len(asked) else None
    rows: dict[str, list[Tensor]] = {"x_t": [], "t": [], "pair": [], "eps_cond": [], "eps_uncond": []}
    noise = model.noise([recording.seed * 1_000_003 + w for w in walks])
    for step in model.walk(noise, cond, empty, recording.steps, recording.guidance):
        times = torch.full((len(walks),), step.t)
        eps_uncond = step.eps_uncond.clone()
        if neutral is not None:
            eps_uncond[asked] = model.predict(step.x_t[asked], times[asked].to(model.device), neutral)
        for key, value in zip(rows, (step.x_t, times, pair, step.eps_cond, eps_uncond), strict=True):
            rows[key].append(value.cpu() if value.dtype == torch.int64 else value.to("cpu", torch.float16))
    return {key: torch.cat(values) for key, values in rows.items()}


def recording_cost(recording: Recording) -> int:
    """UNet forwards per sample that a recording takes, whether it was just made or found."""
    return sum((2 + bool(recording.pairs[w % len(recording.pairs)][1])) * recording.steps for w in range(recording.walks))


def _part(folder: Path, start: int) -> Path:
    return folder / f"walks-{start:05d}.safetensors"
