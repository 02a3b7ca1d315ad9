"""`erasure methods`: list the erasure methods and their cost."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from app.parsing import ModelSource
from erasure.concept import ConceptKind
from erasure.errors import UserError

if TYPE_CHECKING:
    from erasure import DiffusionModel


@dataclass(frozen=True, kw_only=True)
class MethodsCommand:
    """List the erasure methods with what they change, when to choose them, and their cost for one concept on a model."""

    words: ClassVar[str] = "methods"

    model: ModelSource = "pocket"  # pocket, pocket-flow, a hub id, a diffusers folder, or one .safetensors file
    kind: ConceptKind = "style"  # kind whose recipe the cost is for
    device: str = "auto"  # auto, cpu, cuda, cuda:1


def run_methods(command: MethodsCommand) -> int:
    """Print the list.

    Raises:
        UserError: The model cannot be loaded.
    """
    import erasure

    model = erasure.load_model(command.model, device=command.device)
    forward_seconds = seconds_per_forward(model)
    print(f"cost of one {command.kind} on {command.model} ({model.family}) with its recipe, including the concept check;")
    print("a backward counts as two forwards\n")
    for method in erasure.list_methods():
        print(f"{method.name}  {method.summary}")
        print(f"    changes  {method.changes}")
        print(f"    choose   {method.when}")
        try:
            cost = method.forecast_cost(model, kind=command.kind)
        except UserError as error:
            print(f"    not here {error}\n")
            continue
        duration = format_duration(forward_seconds * (cost.unet_forwards + 2 * cost.unet_backwards))
        print(f"    cost     {cost.unet_forwards:,} denoiser forwards, {cost.unet_backwards:,} backwards, about {duration}\n")
    return 0


def seconds_per_forward(model: "DiffusionModel") -> float:
    """Return the seconds of one forward pass per sample, in a batch of 16; the second of two runs."""
    import torch

    x, cond = model.sample_noise(list(range(16))), model.encode([""] * 16)
    t = torch.full((16,), 500, device=model.device)
    for _ in range(2):
        start = time.monotonic()
        with torch.no_grad():
            model.predict(x, t, cond).cpu()
    return (time.monotonic() - start) / 16


def format_duration(seconds: float) -> str:
    if seconds < 1:
        return "a second"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
