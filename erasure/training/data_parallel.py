"""One training on several processes, started by `accelerate launch`: each predicts its rows of every batch, and all take the same step.

Every process draws the same random numbers, sees the same batches and computes the same loss, so a method's code does not know of it.
Only the denoiser's work is shared, where it is asked to predict: a process predicts its rows and collects those of the others. In the
backward pass each sends its rows' gradients through its own part of the network; the mean over processes is the gradient of one process
with the whole batch (up to the order of sums in floating point).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from erasure.config.launcher import process_count
from erasure.families.base import DiffusionModel
from erasure.families.conditioning import Conditioning


def wait_for_all(device: torch.device) -> None:
    """Wait until every process has come here."""
    if process_count() > 1:
        PartialState(cpu=device.type == "cpu").wait_for_everyone()


def follow_main(decision: bool, device: torch.device) -> bool:
    """Return the main process's decision in every process."""
    if process_count() == 1:
        return decision
    PartialState(cpu=device.type == "cpu")
    values = [decision]
    dist.broadcast_object_list(values, device=device)
    return values[0]


@contextmanager
def shared_predictions(model: DiffusionModel) -> Iterator[None]:
    """Share the rows of `model.predict` among the processes while the block runs; with one process, nothing changes."""
    count = process_count()
    if count == 1:
        yield
        return
    PartialState(cpu=model.device.type == "cpu")  # connects the processes
    predict_alone = model.predict

    def predict(x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        if len(x_t) < count:  # too few rows to share: every process predicts them all
            return predict_alone(x_t, t, cond)
        sizes = [len(rows) for rows in torch.arange(len(x_t)).tensor_split(count)]
        rank = dist.get_rank()
        own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        x_t, cond = _average_backward(x_t), cond.map(_average_backward)
        gathered: Tensor = _Gather.apply(predict_alone(x_t[own], t[own], cond[own]), sizes)
        return gathered

    model.predict = predict  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.predict  # the class's own method again


def average_tensors(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the mean of every tensor over the processes."""
    averaged = [tensor.clone() for tensor in tensors] if process_count() > 1 else list(tensors)
    for tensor in averaged if process_count() > 1 else ():
        dist.all_reduce(tensor)
        tensor /= process_count()
    return averaged


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes."""
    if process_count() > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= process_count()


def _average_backward(tensor: Tensor) -> Tensor:
    """Return the tensor; what comes back to it in the backward pass is averaged over the processes, which each know some rows."""
    averaged: Tensor = _AverageBackward.apply(tensor) if tensor.requires_grad else tensor
    return averaged


class _AverageBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient / dist.get_world_size()


class _Gather(torch.autograd.Function):
    """All rows from every process's own; a gradient goes back to the own rows, times the number of processes it is averaged over."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rank = dist.get_rank()
        start = sum(ctx.sizes[:rank])
        return gradient[start : start + ctx.sizes[rank]] * dist.get_world_size(), None
