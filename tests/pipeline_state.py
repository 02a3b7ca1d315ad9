"""What a pipeline holds and generates, to compare before and after an edit."""

from typing import Any

import torch

from erasure.edits import parameters_of


def copy_parameters(pipe: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in parameters_of(pipe).items()}


def equal_parameters(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def generate_latents(pipe: Any) -> torch.Tensor:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return pipe(["a cat"], num_inference_steps=2, latents=noise, output_type="latent").images
