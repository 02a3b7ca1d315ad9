"""Network passes are counted where the network is called: every forward by its samples, every backward that goes through it."""

import pytest
import torch

from erasure.families.cost import Cost
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.base import unfreeze
from tests import tiny

PROMPTS = ["a cat", "a dog", ""]


def predict(model: StableDiffusion, prefix: torch.Tensor | None = None, count: int = 3) -> torch.Tensor:
    t = torch.tensor([1, 400, 999][:count])
    return model.predict(model.sample_noise(range(count)), t, model.encode(PROMPTS[:count], prefix))


def test_forwards_are_counted_by_samples_and_not_twice(model: StableDiffusion) -> None:
    with torch.no_grad():
        predict(model)
        assert model.cost == Cost(unet_forwards=3, text_forwards=3)
        model.sample(["a cat", "a dog"], [1, 2], steps=4)
    assert model.cost == Cost(unet_forwards=3 + 4 * 2 * 2, text_forwards=3 + 2 + 1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_backward_pass_is_counted_once_for_the_samples_it_goes_through(prediction: str, precision: str, checkpointing: bool) -> None:
    model = StableDiffusion(tiny.pipeline(prediction), "tiny", precision)  # type: ignore[arg-type]
    model.set_attention(training=True)
    if checkpointing:
        model.pipe.unet.train()
        model.pipe.unet.enable_gradient_checkpointing()
    with unfreeze(model, model.parameter_names("xattn")) as parameters:
        (predict(model).square().mean() + predict(model, count=2).square().mean()).backward()  # one pass through two predictions
        assert model.cost == Cost(unet_forwards=5, unet_backwards=5, text_forwards=5)
        pred_uncond, pred_cond = predict(model, count=2).chunk(2)
        (pred_uncond - 2 * pred_cond).square().mean().backward(inputs=list(parameters.values()))
        assert model.cost.unet_backwards == 7


def test_only_backward_passes_that_happen_are_counted(model: StableDiffusion) -> None:
    prefix = torch.zeros(2, 32, requires_grad=True)
    loss = predict(model, prefix).square().mean()
    assert model.cost.unet_backwards == 0
    torch.autograd.grad(loss, prefix, retain_graph=True)
    assert model.cost.unet_backwards == 3
    torch.autograd.grad(loss, prefix)
    assert model.cost.unet_backwards == 6
    other = torch.zeros(1, requires_grad=True)
    (predict(model, prefix).square().mean().detach() + other).sum().backward()
    mixed = predict(model, prefix).square().mean() + other.sum()
    torch.autograd.grad(mixed, other)  # the way to `other` does not lead through the network
    assert model.cost.unet_backwards == 6
    with torch.no_grad():
        assert not predict(model, prefix).requires_grad
    assert not predict(model).requires_grad  # nothing is trainable


def test_counting_leaves_gradients_as_they_are(model: StableDiffusion) -> None:
    x_t, t, prefix = model.sample_noise([1, 2]), torch.tensor([10, 900]), torch.zeros(2, 32, requires_grad=True)
    cond = model.encode(["a", "b"], prefix)
    (counted,) = torch.autograd.grad(model.predict(x_t, t, cond).square().mean(), prefix, retain_graph=True)
    plain = model.pipe.unet(x_t, t, encoder_hidden_states=cond.sequence).sample
    assert torch.equal(torch.autograd.grad(plain.square().mean(), prefix)[0], counted)
