"""Gradients at other weights than those that train: uphill, for flat minima, and after a simulated relearning. Off by default."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erasure.config.seeds import derive_seed
from erasure.errors import UserError
from erasure.methods.base import Trained, TrainingContext
from erasure.training.teacher_cache import TeacherQuery

Parameters = dict[str, nn.Parameter]
SMALLEST_RATE = 0.1  # of the learning rates of a simulated relearning, as a share of the largest


def check_lookahead(method: Trained, query: TeacherQuery) -> None:
    """Check that a method's loss can be computed at other weights, if that is asked for.

    Raises:
        UserError: An iteration of the method is more than one step, or no images of the concept are recorded.
    """
    flag = "--sharp" if method.sharp else "--resist" if method.resist else ""
    if flag and not method.repeatable:
        raise UserError(f"{flag} computes a step's loss twice, and a step of {type(method).__name__} cannot be repeated; leave it out.")
    if method.resist and query.store == "nothing":
        raise UserError(f"--resist relearns from recorded images, and {type(method).__name__} records none; leave it out.")


def collect_gradients(
    method: Trained, context: TrainingContext, parameters: Parameters, seed: int, backward: Callable[[Tensor], None], loss: Tensor
) -> None:
    """Put the gradients of one step into the parameters.

    With `sharp` they are those at theta + rho g / |g| (SAM, arXiv:2010.01412). With `resist` those at theta', where a relearning of a few
    steps ends, are added (ResAlign, arXiv:2507.16302, without its second-order term).

    Args:
        seed: of this iteration, so that the loss is computed again on the same draws.
        backward: adds the gradients of a loss.
        loss: at the current weights.
    """

    def repeat() -> Tensor:
        torch.manual_seed(seed)
        return next(iter(method.step(context))).loss

    backward(loss)
    if method.sharp:
        with displaced(parameters, uphill(parameters, method.sharp)):
            take_gradients(parameters)
            backward(repeat())
    if method.resist:
        collected = take_gradients(parameters)
        with displaced(parameters, {}):
            relearn(method, context, parameters, seed, backward)
            for name, p in parameters.items():
                p.grad = collected[name]
            backward(method.resist * repeat())


@contextmanager
def displaced(parameters: Parameters, shift: dict[str, Tensor]) -> Iterator[None]:
    """Move parameters while the block runs; on exit they hold their values again, bit for bit."""
    values = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        with torch.no_grad():
            for name, difference in shift.items():
                parameters[name].add_(difference)
        yield
    finally:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(values[name])


def uphill(parameters: Parameters, distance: float) -> dict[str, Tensor]:
    """Return rho g / |g| by name, over all parameters together; empty if every gradient is zero."""
    gradients = {name: p.grad.detach().clone() for name, p in parameters.items() if p.grad is not None}
    norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt() if gradients else torch.zeros(())
    return {name: distance / norm * g for name, g in gradients.items()} if norm > 0 else {}


def take_gradients(parameters: Parameters) -> dict[str, Tensor | None]:
    """Return the gradients by name, and leave the parameters without."""
    taken = {}
    for name, p in parameters.items():
        taken[name], p.grad = p.grad, None
    return taken


def relearn(method: Trained, context: TrainingContext, parameters: Parameters, seed: int, backward: Callable[[Tensor], None]) -> None:
    """Fine-tune the parameters on the concept's recorded images, a few steps at a learning rate that is drawn anew each time.

    A step moves every weight by the learning rate against the sign of its gradient, as Adam's first step does.
    """
    torch.manual_seed(derive_seed(seed, 1))
    rate = method.resist_lr * SMALLEST_RATE ** torch.rand(()).item()
    for _ in range(method.resist_steps):
        backward(relearning_loss(context, method.batch))
        with torch.no_grad():
            for name, gradient in take_gradients(parameters).items():
                if gradient is not None:
                    parameters[name].sub_(gradient.sign(), alpha=rate)


def relearning_loss(context: TrainingContext, count: int) -> Tensor:
    """Return the error (scalar) of the concept's prompts on its recorded images: to the frozen model's predictions, else to the noise."""
    if len(context.cache.rows("erase")):
        rows = context.sample_rows("erase", count)
        return F.mse_loss(context.predict(rows.x_t, rows.t, rows.prompts), rows.pred_cond)
    latents = context.sample_latents("erase", count)
    noise = torch.randn(latents.x_0.shape).to(latents.x_0)
    t = context.model.random_times(len(noise))
    target = context.model.schedule.target(latents.x_0, noise)
    return F.mse_loss(context.predict(context.model.add_noise(latents.x_0, noise, t), t, latents.prompts), target)
