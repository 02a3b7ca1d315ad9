"""The optimizers of a training, by name."""

import importlib.util
from typing import Any

import torch

from erasure.config.choices import OptimizerName
from erasure.errors import UserError
from erasure.methods.base import TrainableGroup


def check_optimizer(name: OptimizerName) -> None:
    """Check that an optimizer is installed.

    Raises:
        UserError: it is not.
    """
    if name == "adam8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("--optimizer adam8bit needs bitsandbytes, which is not installed: pip install 'erasure-studio[8bit]'.")


def make_optimizer(name: OptimizerName, group: TrainableGroup) -> Any:
    """Return the optimizer of a group: Adam, or Adam with moments in 8 bits (Dettmers et al., arXiv:2110.02861), both without decay."""
    options: dict[str, Any] = {"lr": group.lr, "betas": group.betas, "eps": group.eps}
    if name == "adam8bit":
        import bitsandbytes

        return bitsandbytes.optim.Adam8bit(group.parameters.values(), **options)  # type: ignore[no-untyped-call]
    return torch.optim.Adam(group.parameters.values(), **options)
