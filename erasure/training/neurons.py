"""Activations of linear layers along guided walks of two sets of prompts, a timestep at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from erasure.config.seeds import stream
from erasure.families.base import DiffusionModel

Observe = Callable[[Tensor, Tensor, bool], None]  # inputs (B, N, I), outputs without bias (B, N, O) of B prompts; whether of the first set


@dataclass(frozen=True)
class Walk:
    """Guided walks from noise whose first steps are observed."""

    model: DiffusionModel
    steps: int
    record_steps: int
    guidance: float
    seed: int
    conditional: bool = False  # observe the conditional half of the batch only

    @torch.no_grad()
    def activations(self, first: Sequence[str], second: Sequence[str], layers: dict[str, Observe], chunk: int = 16) -> Iterator[int]:
        """Walk all prompts in step and yield once per timestep, after every layer has seen every prompt of it.

        Prompt i of both sets starts from the same noise, so that they differ by what they say.
        """
        parts = []
        for texts, concept in ((first, True), (second, False)):
            for start in range(0, len(texts), chunk):
                some = texts[start : start + chunk]
                noise = self.model.noise([stream(self.seed, 700_000 + start + i) for i in range(len(some))])
                cond, empty = self.model.encode(some), self.model.encode([""]).expand(len(some), -1, -1)
                parts.append((self.model.walk(noise, cond, empty, self.steps, self.guidance), concept, len(some)))
        for step in range(self.record_steps):
            for walk, concept, count in parts:
                with self._observed(layers, concept, count):
                    next(walk)
            yield step

    @contextmanager
    def _observed(self, layers: dict[str, Observe], concept: bool, count: int) -> Iterator[None]:
        modules = self.model.linears("full")

        def watch(observe: Observe) -> Callable[..., None]:
            def hook(module: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
                y = out if module.bias is None else out - module.bias.to(out.dtype)
                pairs = (part.unflatten(0, (2, count)).transpose(0, 1) for part in (args[0], y))  # (uncond, cond) of every prompt
                x, y = ((pair[:, 1:] if self.conditional else pair).flatten(1, -2) for pair in pairs)
                observe(x, y, concept)

            return hook

        hooks = [modules[name].register_forward_hook(watch(observe)) for name, observe in layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
