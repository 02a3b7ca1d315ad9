"""Negative prompt: the concept replaces the empty prompt in classifier-free guidance (Ho & Salimans, arXiv:2207.12598, equation 6)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from erasure.methods.base import Guided


@dataclass(frozen=True, kw_only=True)
class NegativePrompt(Guided):
    """The usual workaround: eps(concept) + w (eps(c) - eps(concept)) instead of eps(empty) + w (eps(c) - eps(empty)).

    For a prompt that names the concept alone, that is eps(concept): the concept itself, without guidance. The first part of TraSCE
    (arXiv:2412.07658) begins at the empty prompt instead: eps(empty) + w (eps(c) - eps(concept)). Its second part, a gradient through the
    network, is not here.
    """

    paper: ClassVar[str] = "arXiv:2207.12598"
    changes: ClassVar[str] = "no weights; sets the negative prompt of every image"
    when: ClassVar[str] = "a baseline or a quick fix without training; anyone with the weights can turn it off"

    begin: Literal["concept", "empty"] = "concept"  # what guidance starts from: the concept, or the empty prompt as in TraSCE

    def guide(
        self, eps_cond: Tensor, eps_uncond: Tensor, eps_concept: Tensor, guidance: float, progress: float, state: dict[str, Tensor]
    ) -> Tensor:
        # [n + w (c - n)] - [u + w (c - u)] = (1 - w) (n - u); with u in front of it -w (n - u)
        return ((1 if self.begin == "concept" else 0) - guidance) * (eps_concept - eps_uncond)
