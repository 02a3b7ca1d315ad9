"""How many images a model makes at once: a number for their size, or fewer where a graphics card has too little memory."""

import sys
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch

from erasure.families.base import DiffusionModel

USABLE = 0.9  # of a card's memory; the rest is for the driver and for gaps between tensors
_peaks: WeakKeyDictionary[DiffusionModel, tuple[int, int]] = WeakKeyDictionary()


def images_at_once(model: DiffusionModel, preferred: int) -> int:
    """Return how many images to sample together.

    The choice of the user comes first (`load_model(images_at_once=)`). On a GPU it depends on the card's whole memory, not on what is free
    now, so that a resumed run repeats the same batches and hence the same bits.

    Args:
        preferred: the number where there is enough memory.
    """
    if model.images_at_once is not None:
        return model.images_at_once
    if model.device.type != "cuda":
        return preferred
    if model not in _peaks:
        _peaks[model] = measure_peak(model, 1), measure_second(model)
    memory = torch.cuda.get_device_properties(model.device).total_memory
    return fitting_images(memory, *_peaks[model], preferred)


def measure_second(model: DiffusionModel) -> int:
    """Return the peak of two images; where they do not fit, more than any card holds."""
    try:
        return measure_peak(model, 2)
    except torch.OutOfMemoryError:
        return sys.maxsize


def fitting_images(memory: int, one: int, two: int, preferred: int) -> int:
    """Return how many images fit into a card, from 1 to `preferred`.

    Args:
        memory: bytes of the card.
        one, two: peaks in bytes of sampling one image and two, weights included.
    """
    per_image = max(two - one, 1)
    return max(1, min(preferred, 1 + int((USABLE * memory - one) // per_image)))


@torch.no_grad()
def measure_peak(model: DiffusionModel, count: int) -> int:
    """Return the peak in bytes of encoding prompts, one step and decoding on a GPU; the cost of the model does not count it."""
    cost = replace(model.cost)
    torch.cuda.reset_peak_memory_stats(model.device)
    model.decode(model.sample([""] * count, list(range(count)), steps=1))
    vars(model.cost).update(vars(cost))
    return torch.cuda.max_memory_allocated(model.device)
