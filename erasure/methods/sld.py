"""SLD: guide every sampling step away from the concept where the prompt comes close to it (Schramowski et al., arXiv:2211.05105)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from erasure.concept import ConceptKind
from erasure.errors import UserError
from erasure.methods.base import Guided


@dataclass(frozen=True, kw_only=True)
class SLD(Guided):
    """Safe latent diffusion; the defaults are the paper's Hyp-Medium.

    The paper's Hyp-Weak has warmup 0.3, scale 200, threshold 0 and no momentum; Hyp-Strong has warmup 0.14, scale 2000, threshold 0.025
    and momentum 0.5 and 0.7; Hyp-Max has warmup 0, scale 5000, threshold 1 and momentum 0.5 and 0.7. The paper gives warm-up as 15, 10,
    7 and 0 of 50 steps.

    Raises:
        UserError: The warm-up is outside [0, 1].
    """

    paper: ClassVar[str] = "arXiv:2211.05105"
    changes: ClassVar[str] = "no weights; every sampling step makes one more noise prediction"
    when: ClassVar[str] = "a baseline that leaves prompts far from the concept alone; anyone with the weights can turn it off"

    scale: float = 1000.0  # strength of the push away from the concept, the paper's s_S
    threshold: float = 0.01  # no push where prompt and concept differ by more than this, the paper's lambda
    warmup: float = 0.2  # fraction of the sampling steps before the push begins
    momentum_scale: float = 0.3  # weight of the momentum, the paper's s_m
    momentum_beta: float = 0.4  # decay of the momentum, the paper's beta_m
    bound: Literal["code", "paper"] = "code"  # factor mu per element: at most 1 (code, as the authors run it) or at least 1 (paper)

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= 1:
            raise UserError(f"--warmup is a fraction of the sampling steps and must lie in [0, 1], got {self.warmup}.")

    def guide(
        self, eps_cond: Tensor, eps_uncond: Tensor, eps_concept: Tensor, guidance: float, progress: float, state: dict[str, Tensor]
    ) -> Tensor:
        """Return -s_g gamma with gamma = mu (eps(S) - eps(empty)) + s_m nu (equations 3 to 8)."""
        phi = self.scale * (eps_cond - eps_concept)
        # equation 6 is printed with a lower bound of 1; the authors' code has an upper bound of 1
        mu = phi.abs().clamp(max=1) if self.bound == "code" else phi.abs().clamp(min=1)
        mu = torch.where(eps_cond - eps_concept < self.threshold, mu, torch.zeros_like(mu))
        momentum = state.get("nu", torch.zeros_like(eps_cond))
        gamma = mu * (eps_concept - eps_uncond) + self.momentum_scale * momentum
        state["nu"] = self.momentum_beta * momentum + (1 - self.momentum_beta) * gamma
        return -guidance * gamma if progress >= self.warmup else torch.zeros_like(gamma)

    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {
        **{
            ("nsfw", family): {"scale": 2000.0, "threshold": 0.025, "warmup": 0.14, "momentum_scale": 0.5, "momentum_beta": 0.7}
            for family in ("sd1", "sd2", "sdxl", "sd3", "flux2-klein")
        },
    }
