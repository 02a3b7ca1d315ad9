"""What the two pocket judges share: loading a classifier, and its labels with their probabilities."""

import hashlib
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from erasure.errors import UserError
from erasure.loading.loader import POCKET_FOLDER
from erasure.pocket.canvas import SIZE
from erasure.pocket.classifier import LABELS, PocketClassifier
from eval.records.scores import LabelScore


@cache
def load_classifier(axis: str) -> PocketClassifier:
    labels = LABELS[axis]
    network = PocketClassifier(len(labels))
    network.load_state_dict({name: p.float() for name, p in load_file(POCKET_FOLDER / "judges" / f"{axis}.safetensors").items()})
    return network.eval().requires_grad_(False)


def classifier_identity(axis: str) -> dict[str, Any]:
    weights = (POCKET_FOLDER / "judges" / f"{axis}.safetensors").read_bytes()
    return {"weights": hashlib.sha256(weights).hexdigest(), "labels": list(LABELS[axis]), "size": SIZE}


@torch.no_grad()
def classify(axis: str, images: Tensor) -> list[LabelScore]:
    """Return label and probability of each image, rounded so that a row prints the same everywhere.

    Args:
        images: [B, 3, 64, 64] in [0, 1].

    Raises:
        UserError: the images have another size.
    """
    if images.shape[1:] != (3, SIZE, SIZE):
        raise UserError(f"pocket judges score {SIZE}x{SIZE} RGB images, got {tuple(images.shape[1:])}.")
    probabilities = load_classifier(axis)(images.float().cpu()).softmax(-1)
    best = probabilities.max(-1)
    return [LabelScore(label=LABELS[axis][i], p=round(p, 4)) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
