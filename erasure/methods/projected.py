"""Projected: take out of every guided step only the part that shows the concept (an idea of arXiv:2606.29801; the rule is our own)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from erasure.concept import ConceptKind
from erasure.errors import UserError
from erasure.methods.base import Guided


@dataclass(frozen=True, kw_only=True)
class Projected(Guided):
    """Guidance that measures how far a prompt's guidance points to the concept, and removes that part.

    With d = eps(concept) - eps(empty), the presence of the concept is rho = <eps(c) - eps(empty), d> / |d|^2, one number an image: 0 for a
    prompt without it, 1 for the concept itself. The least change that brings rho down to the threshold subtracts (rho - threshold) d. At
    scale 1 and threshold 0 the concept's own name is sampled like the empty prompt.

    Raises:
        UserError: The scale is negative.
    """

    paper: ClassVar[str] = "arXiv:2606.29801"
    changes: ClassVar[str] = "no weights; every sampling step makes one more noise prediction"
    when: ClassVar[str] = "to try where nothing may be trained; each concept needs its own scale; anyone with the weights can turn it off"

    scale: float = 1.0  # how much of the measured presence is removed, k in the equation; above 1 it goes beyond the empty prompt
    threshold: float = 0.0  # presence that is left alone, tau in the equation

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise UserError(f"--scale must not be negative, got {self.scale:g}; it would draw the concept.")

    def guide(
        self, eps_cond: Tensor, eps_uncond: Tensor, eps_concept: Tensor, guidance: float, progress: float, state: dict[str, Tensor]
    ) -> Tensor:
        """Return -k w max(0, rho - tau) d."""
        d = (eps_concept - eps_uncond).flatten(1)
        square = d.square().sum(1, keepdim=True)
        # where the network reads no text, d is 0 and nothing is to be removed
        rho = ((eps_cond - eps_uncond).flatten(1) * d).sum(1, keepdim=True) / square.clamp(min=1e-12)
        return (-self.scale * guidance * (rho - self.threshold).clamp(min=0) * d).view_as(eps_cond)

    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {
        # a thing still shows at scale 1; a style takes other styles with it above 1 (tuned on neon and boat)
        ("object", "pocket"): {"scale": 1.5},
        ("person", "pocket"): {"scale": 1.5},
    }
