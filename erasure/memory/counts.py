"""Count what passes keep alive, by running the real networks on tensors without values (meta), at any size."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, get_args

import torch
from diffusers.utils import logging
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from erasure.config.choices import Region
from erasure.families.base import DiffusionModel
from erasure.families.conditioning import Conditioning
from erasure.families.placement import components_of
from erasure.memory.formula import Pass, Trained
from erasure.memory.gpu_kernels import GpuKernels
from erasure.memory.live_bytes import LiveBytes
from erasure.methods.base import Trained as TrainedMethod
from erasure.methods.ssd import SSD
from erasure.training.adapters import add_adapters

META = torch.device("meta")
Differentiating = TrainedMethod | SSD  # methods that take gradients of the weights


def region_sizes(model: DiffusionModel) -> Iterator[tuple[str, int, int]]:
    """Yield every region that the model has, with its numbers and its bytes."""
    parameters = model.parameters()
    for region in get_args(Region):
        chosen = [p for name, p in parameters.items() if model.in_region(name, region)]
        if chosen:
            yield region, sum(p.numel() for p in chosen), sum(p.numel() * p.element_size() for p in chosen)


@contextmanager
def counting(model: DiffusionModel) -> Iterator[LiveBytes]:
    """Run a block on meta tensors, with the kernels of a GPU, and count what it keeps alive beside the weights."""
    existing = [value for network in components_of(model.pipe).values() for value in (*network.parameters(), *network.buffers())]
    with torch.device("meta"), GpuKernels(), LiveBytes(existing) as live:
        yield live


def count_encoding(model: DiffusionModel, prompts: int) -> int:
    """Return the bytes alive while prompts are encoded at once, without gradients."""
    with torch.no_grad(), counting(model) as live:
        model.encode([""] * prompts)
    return live.peak


def count_prediction(model: DiffusionModel, samples: int, branches: int = 1) -> int:
    """Return the bytes alive while the denoiser predicts without gradients.

    Args:
        samples: B.
        branches: passes per sample that run together, as in classifier-free guidance.
    """
    with torch.no_grad(), counting(model) as live:
        cond = model.encode([""])
        live.reset_peak()
        x_t, cond = noise(model, samples), cond.expand(samples * branches).map(Tensor.contiguous)
        natives = predict(model, torch.cat([x_t] * branches), cond).chunk(branches)
        guided = natives[0] + model.default_guidance * (natives[-1] - natives[0])
        x_t + guided
    return live.peak


def count_decoding(model: DiffusionModel, samples: int) -> int:
    """Return the bytes alive while latents become images, with the growth of a VAE that is computed in fp32."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # diffusers warns of every change of a network's dtype
    try:
        with torch.no_grad(), counting(model) as live:
            model.decode(noise(model, samples))
    finally:
        logging.set_verbosity(verbosity)
    return live.peak


def count_step(
    model: DiffusionModel, method: Differentiating, samples: int, checkpointing: bool = False, on_gpu: bool = True
) -> tuple[Trained, Pass]:
    """Return what a method trains, and what one step keeps alive: a prediction of B samples, its squared error, and the gradients.

    Args:
        samples: B, of all predictions that one backward pass goes through.
    """
    attention, text_trains = model.attention, method.region == "text-encoder"
    if not on_gpu and "unet" in model.networks and model.attention == "auto":
        model.attention = "eager"  # what the loop chooses on a CPU, where the skeleton is not
    model.set_attention(training=True)
    with trainable(model, method) as (parameters, trained), counting(model) as live:
        if checkpointing:
            model.denoiser.enable_gradient_checkpointing(partial(checkpoint_block, model.compute_dtype))  # type: ignore[operator]
        try:
            with torch.set_grad_enabled(text_trains):
                cond = model.encode([""] * samples) if text_trains else model.encode([""]).expand(samples).map(Tensor.contiguous)
            if not text_trains:
                live.reset_peak()
            x_t, target = noise(model, samples), noise(model, samples)
            loss = nn.functional.mse_loss(predict(model, x_t, cond), target)
            forward = live.peak
            live.reset_peak()
            # not loss.backward(): as a function of torch it would run with the kernels switched off
            torch.autograd.backward(loss, inputs=parameters)
            return trained, Pass(forward=forward, backward=live.peak)
        finally:
            if checkpointing:
                model.denoiser.disable_gradient_checkpointing()  # type: ignore[operator]
            model.attention = attention
            model.set_attention(training=False)


def checkpoint_block(dtype: torch.dtype, block: Any, *args: Any) -> Any:
    """Call a block of a network so that the backward pass computes it again, there too with the kernels of a GPU."""
    kernels = GpuKernels(None if dtype is torch.float32 else dtype)
    return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), kernels))


@contextmanager
def trainable(model: DiffusionModel, method: Differentiating) -> Iterator[tuple[list[nn.Parameter], Trained]]:
    """Make a method's weights trainable as its own `trainable` does, which copies values that a skeleton lacks.

    Raises:
        UserError: the model has no such region.
    """
    if method.product == "one-step":
        with torch.device("meta"), add_adapters(model, method.region, method.rank, ("generator", "fake")) as sets:  # type: ignore[union-attr]
            denoiser: Any = model.denoiser
            denoiser.enable_adapters()
            denoiser.set_adapter("generator")
            sizes = [p.numel() for factors in sets.values() for p in factors.values()]
            parameters = list(sets["generator"].values())
            yield parameters, Trained(count=sum(sizes), largest=max(sizes), stored_bytes=0)
        return
    names, all_parameters = model.parameter_names(method.region), model.parameters()
    parameters = [all_parameters[name] for name in names]
    originals = [p.data for p in parameters]
    sizes = [p.numel() for p in parameters]
    stored = sum(p.numel() * p.element_size() for p in parameters)
    try:
        for p in parameters:
            p.data = p.data.float()
            p.requires_grad_(True)
        yield parameters, Trained(count=sum(sizes), largest=max(sizes), stored_bytes=stored, has_mask=method.uses_mask)
    finally:
        for p, original in zip(parameters, originals, strict=True):
            p.requires_grad_(False)
            p.grad, p.data = None, original


def noise(model: DiffusionModel, samples: int) -> Tensor:
    """Return latents (B, C, h, w) without values."""
    return torch.empty(samples, *model.latent_shape, device=META)


def predict(model: DiffusionModel, x_t: Tensor, cond: Conditioning) -> Tensor:
    """Return a prediction (B, C, h, w) without values, at any time."""
    time = torch.zeros(len(x_t), device=META)
    return model.predict_native(x_t, time, cond, model.default_guidance)
