"""Activations of linear layers along guided trajectories of two sets of prompts, one timestep at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from erasure.config.seeds import derive_seed
from erasure.families.base import DiffusionModel
from erasure.training.fill_cache import trajectories_at_once

# takes inputs (B, N, I) and outputs without bias (B, N, O) of B prompts, and whether they belong to the first set
ActivationCallback = Callable[[Tensor, Tensor, bool], None]


@dataclass(frozen=True)
class ActivationRecorder:
    """Observes the first steps of guided trajectories."""

    model: DiffusionModel
    steps: int  # DDIM steps of a whole trajectory
    record_steps: int  # first steps that are observed
    guidance: float
    seed: int
    conditional_only: bool = False  # observe only the conditional half of the batch

    @torch.no_grad()
    def record(self, concept_prompts: Sequence[str], base_prompts: Sequence[str], layers: dict[str, ActivationCallback]) -> Iterator[int]:
        """Advance the trajectories of all prompts in lockstep; yield each step after every layer has seen every prompt.

        Prompt i of either set starts from the same noise, so that they differ only by their text.

        Args:
            layers: callbacks by the weight name of their linear layer.
        """
        chunks, chunk_size = [], trajectories_at_once(self.model)
        for prompts, is_concept in ((concept_prompts, True), (base_prompts, False)):
            for start in range(0, len(prompts), chunk_size):
                chunk_prompts = prompts[start : start + chunk_size]
                noise = self.model.sample_noise([derive_seed(self.seed, 700_000 + start + i) for i in range(len(chunk_prompts))])
                cond, empty = self.model.encode(chunk_prompts), self.model.encode_for_guidance([""]).expand(len(chunk_prompts))
                chunks.append((self.model.trajectory(noise, cond, empty, self.steps, self.guidance), is_concept, len(chunk_prompts)))
        for step in range(self.record_steps):
            for trajectory, is_concept, count in chunks:
                with self._observe_layers(layers, is_concept, count):
                    next(trajectory)
            yield step

    @contextmanager
    def _observe_layers(self, layers: dict[str, ActivationCallback], is_concept: bool, count: int) -> Iterator[None]:
        modules = self.model.linear_layers("full")

        def make_hook(observe: ActivationCallback) -> Callable[..., None]:
            def hook(module: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
                y = out if module.bias is None else out - module.bias.to(out.dtype)
                # (uncond, cond) of every prompt, or cond alone without classifier-free guidance
                pairs = (part.unflatten(0, (-1, count)).transpose(0, 1) for part in (args[0], y))
                x, y = ((pair[:, -1:] if self.conditional_only else pair).flatten(1, -2) for pair in pairs)
                observe(x, y, is_concept)

            return hook

        hooks = [modules[name].register_forward_hook(make_hook(observe)) for name, observe in layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
