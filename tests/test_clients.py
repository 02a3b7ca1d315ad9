"""The names that the rules of tests/clients share, against diffusers."""

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from erasure.families.stable_diffusion import StableDiffusion
from tests.clients import original_layout
from tests.sd_architecture import pipeline


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def model(request: pytest.FixtureRequest) -> StableDiffusion:
    model = StableDiffusion(pipeline(request.param, small=True), request.param, "fp32")
    model.family = request.param  # otherwise inferred from the width
    return model


def test_the_original_names_are_diffusers(model: StableDiffusion) -> None:
    """The table that the rules of the programs share, against diffusers' own converter, which goes the other way."""
    names = original_layout.original_unet_names(model.parameters())
    there = {f"model.diffusion_model.{ldm}": torch.tensor(i) for i, ldm in enumerate(names.values())}
    back = convert_ldm_unet_checkpoint(there, {**model.pipe.unet.config, "class_embed_type": None})
    assert {f"unet.{name}" for name in back} == set(names)
    assert all(list(names)[index] == f"unet.{name}" for name, index in back.items())
