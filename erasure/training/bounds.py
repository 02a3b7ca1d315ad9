"""Bounds on the steps of any training: what must not move, how far the weights may go, and in which direction. Off by default."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.methods.base import Trained
from erasure.training.subspaces import frequent_directions


@dataclass(frozen=True)
class StepBounds:
    """The bounds of one training.

    Attributes:
        start: values (any shape) at the start of this training by parameter name; empty if no bound needs them.
        kept: orthonormal directions B (D, r) of the conditioning, by name of the weight (O, D) that must answer them as at the start.
        drift: weight mu of |theta - start|^2.
        outward: share omega of the outward part of a step that is taken out.
    """

    start: dict[str, Tensor]
    kept: dict[str, Tensor]
    drift: float
    outward: float

    def drift_loss(self, parameters: dict[str, nn.Parameter]) -> Tensor:
        """Return mu |theta - start|^2 (scalar). The start is that of this request, not the base (arXiv:2511.07970)."""
        return self.drift * torch.stack([(p - self.start[name]).square().sum() for name, p in parameters.items()]).sum()

    @torch.no_grad()
    def limit(self, parameters: dict[str, nn.Parameter], before: dict[str, Tensor]) -> None:
        """Change what an optimizer step did.

        Args:
            before: the values before the step; empty if no bound needs them.
        """
        if self.outward:
            self._limit_outward(parameters, before)
        for name, kept in self.kept.items():
            if name in parameters:
                p, start = parameters[name], self.start[name]
                # the difference, not the gradient, is projected: Adam's steps leave the subspace of its gradients
                p.sub_((p - start) @ kept @ kept.T)

    def _limit_outward(self, parameters: dict[str, nn.Parameter], before: dict[str, Tensor]) -> None:
        """Take out omega of the part of the step that runs further along the drift (AEGIS, arXiv:2602.06771: <g_e, g_r> < 0)."""
        drifts = {name: before[name] - self.start[name] for name in parameters}
        square = sum(float(drift.square().sum()) for drift in drifts.values())
        along = sum(float(((p - before[name]) * drifts[name]).sum()) for name, p in parameters.items())
        if square > 0 and along > 0:  # at the start no direction leads outward
            for name, p in parameters.items():
                p.sub_(drifts[name], alpha=self.outward * along / square)

    def remember(self, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return the values before a step, if `limit` will need them."""
        return {name: p.detach().clone() for name, p in parameters.items()} if self.outward else {}


def make_bounds(model: DiffusionModel, method: Trained, parameters: dict[str, nn.Parameter]) -> StepBounds:
    """Return the bounds of a training, before its first step.

    Raises:
        UserError: Nothing that trains reads the conditioning, or no prompts or no frequent directions are there to protect.
    """
    needed = set(parameters) if method.drift or method.outward else set()
    kept = kept_directions(model, method, parameters) if method.protect else {}
    start = {name: parameters[name].detach().clone() for name in parameters if name in needed | set(kept)}
    return StepBounds(start, kept, method.drift, method.outward)


@torch.no_grad()
def kept_directions(model: DiffusionModel, method: Trained, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the directions of the protected prompts by name of the trained weight that reads them."""
    layers = {name: part for name, part in model.closed_form_layers().items() if name in parameters}
    if not layers:
        raise UserError(
            f"--protect keeps how weights answer prompts, and nothing in --region {method.region} reads them; "
            "give --region xattn, xattn-kv, text-proj or full."
        )
    if not method.protect_prompts:
        raise UserError("--protect needs --protect-prompts: the prompts that must be answered as before.")
    cond = model.encode(method.protect_prompts)
    kept = {}
    for name, part in layers.items():
        values = cond.sequence.flatten(0, 1) if part == "sequence" else cond.pooled
        if values is None:
            raise UserError(f"{model.source} has no pooled conditioning for {name}.")
        kept[name] = frequent_directions(values.double(), method.protect).to(parameters[name])
    if not any(directions.shape[1] for directions in kept.values()):
        raise UserError(f"--protect {method.protect:g} is above every eigenvalue of the prompts, so that nothing is kept; lower it.")
    return kept
