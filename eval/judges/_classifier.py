"""What the trained classifiers share: loading a weights file without running code in it, and top-5 scores."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from erasure.errors import UserError
from erasure.loading.loader import first_line_of
from eval.records.scores import LabelScore


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_network(build_network: Callable[[], nn.Module], path: Path, state_dict_key: str = "") -> nn.Module:
    """Return a network with the weights of a file, in fp32 and in eval mode.

    Args:
        build_network: called on the meta device, so that no weight can stay at its random initial value.
        state_dict_key: the entry of a PyTorch checkpoint that holds the state dict; empty if the file is the state dict. Ignored for
            safetensors.

    Raises:
        UserError: the file is broken, holds more than tensors, or belongs to another network.
    """
    with torch.device("meta"):
        network = build_network()
    try:
        network.load_state_dict(read_tensors(path, state_dict_key), assign=True)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{path} holds the weights of another network: {' '.join(str(error).split())[:200]}.") from error
    return network.float().eval().requires_grad_(False)


def read_tensors(path: Path, state_dict_key: str) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file or of a PyTorch checkpoint without code.

    Raises:
        UserError: the file is broken, holds more than tensors, or has no such entry.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # torch's own message advises loading it anyway
        raise UserError(f"{path} is broken or holds more than tensors, which is never loaded; use a .safetensors file.") from error
    except (SafetensorError, EOFError, OSError, RuntimeError, KeyError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is broken or holds more than tensors, which is never loaded: {first_line_of(error)}.") from error
    if state_dict_key and not (isinstance(checkpoint, dict) and state_dict_key in checkpoint):
        raise UserError(f"{path} lacks {state_dict_key!r}, under which the state dict is expected.")
    tensors: dict[str, Tensor] = checkpoint[state_dict_key] if state_dict_key else checkpoint
    return tensors


def top5_scores(logits: Tensor, labels: Sequence[str]) -> list[LabelScore]:
    """Return the best label with its probability, and the best five, for each row of logits (B, labels)."""
    top = logits.softmax(-1).topk(5)
    rows = [
        tuple((labels[i], round(p, 4)) for i, p in zip(row, probabilities, strict=True))
        for row, probabilities in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
    return [LabelScore(label=row[0][0], p=row[0][1], top5=row) for row in rows]
