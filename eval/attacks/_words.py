"""What the attacks that choose tokens choose from."""

import torch
from torch import Tensor

from erasure.families.base import DiffusionModel


def words(model: DiffusionModel) -> Tensor:
    """Ids of the tokens that a text can hold (W,): all but start, end and padding."""
    special = set(model.pipe.tokenizer.all_special_ids)
    return torch.tensor([i for i in range(len(model.vocabulary())) if i not in special])
