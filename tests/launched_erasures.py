"""Erasures by every trained method on a tiny model, in the processes of a launcher; run by tests/erasure/training/test_data_parallel.py."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from erasure.config.launcher import is_main_process
from erasure.erasing import erase
from erasure.export import model_card
from erasure.families.stable_diffusion import StableDiffusion
from erasure.training.data_parallel import average_gradients, shared_predictions
from tests import factories, tiny

BATCHES = {"esd": {"batch": 3}, "salun": {"batch": 2, "retain_batch": 3}}  # uneven shares too


def save_gradients(model: StableDiffusion, path: Path) -> None:
    """Save the gradients of a loss that mixes the rows of a batch of five, of the network's parameters and of its inputs."""
    random = torch.Generator().manual_seed(0)
    x_t = torch.randn(5, *model.latent_shape, generator=random).requires_grad_(True)
    with torch.no_grad():
        cond = model.encode(["a cat", "a dog", "cat", "", "dog"])
    cond.sequence.requires_grad_(True)
    parameters = dict(model.denoiser.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    with shared_predictions(model):
        prediction = model.predict(x_t, torch.tensor([10, 200, 400, 600, 900]), cond)
        (prediction * prediction.roll(2, 0)).sum().backward()
    average_gradients(parameters.values())
    tensors = {**parameters, "x_t": x_t, "sequence": cond.sequence}
    if is_main_process():
        save_file({name: tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}, path)
    model.denoiser.requires_grad_(False)
    model.denoiser.zero_grad()


def main(folder: Path) -> None:
    """Save gradients, and erase with each method into a folder of its own."""
    model_card.IMAGE_STEPS = 2
    factories.GENERATORS_FOLDER = folder / "generators"
    model = StableDiffusion(tiny.pipeline(), "tiny", "fp32")
    save_gradients(model, folder / "gradients.safetensors")
    for name in factories.TRAINED_METHODS:
        method = factories.ready_method(name, model, **BATCHES.get(name, {}))
        erase(model, factories.CAT, method, out=folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
