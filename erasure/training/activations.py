"""Activations of linear layers along guided walks of two sets of prompts, a timestep at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from erasure.config.seeds import derive_seed
from erasure.families.base import DiffusionModel

ActivationCallback = Callable[
    [Tensor, Tensor, bool], None
]  # inputs (B, N, I), outputs without bias (B, N, O) of B prompts; whether of the first set


@dataclass(frozen=True)
class ActivationRecorder:
    """Guided walks from noise whose first steps are observed."""

    model: DiffusionModel
    steps: int
    record_steps: int
    guidance: float
    seed: int
    conditional_only: bool = False  # observe the conditional half of the batch only

    @torch.no_grad()
    def record(
        self, concept_prompts: Sequence[str], base_prompts: Sequence[str], layers: dict[str, ActivationCallback], chunk_size: int = 16
    ) -> Iterator[int]:
        """Walk all prompts in step and yield once per timestep, after every layer has seen every prompt of it.

        Prompt i of both sets starts from the same noise, so that they differ by what they say.
        """
        chunks = []
        for prompts, is_concept in ((concept_prompts, True), (base_prompts, False)):
            for start in range(0, len(prompts), chunk_size):
                chunk_prompts = prompts[start : start + chunk_size]
                noise = self.model.sample_noise([derive_seed(self.seed, 700_000 + start + i) for i in range(len(chunk_prompts))])
                cond, empty = self.model.encode(chunk_prompts), self.model.encode([""]).expand(len(chunk_prompts), -1, -1)
                chunks.append((self.model.trajectory(noise, cond, empty, self.steps, self.guidance), is_concept, len(chunk_prompts)))
        for step in range(self.record_steps):
            for trajectory, is_concept, count in chunks:
                with self._observe_layers(layers, is_concept, count):
                    next(trajectory)
            yield step

    @contextmanager
    def _observe_layers(self, layers: dict[str, ActivationCallback], is_concept: bool, count: int) -> Iterator[None]:
        modules = self.model.linear_layers("full")

        def watch(observe: ActivationCallback) -> Callable[..., None]:
            def hook(module: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
                y = out if module.bias is None else out - module.bias.to(out.dtype)
                pairs = (part.unflatten(0, (2, count)).transpose(0, 1) for part in (args[0], y))  # (uncond, cond) of every prompt
                x, y = ((pair[:, 1:] if self.conditional_only else pair).flatten(1, -2) for pair in pairs)
                observe(x, y, is_concept)

            return hook

        hooks = [modules[name].register_forward_hook(watch(observe)) for name, observe in layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
