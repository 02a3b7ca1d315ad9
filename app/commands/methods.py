"""`erasure methods`: list the erasure methods and their cost."""

import time
from dataclasses import dataclass

from app.parsing import parse_options
from erasure.concept import ConceptKind
from erasure.config.registry import list_modules, load_class, read_summary


@dataclass(frozen=True, kw_only=True)
class Options:
    """List the erasure methods with what they change, when to choose them, and their cost for one concept on a model."""

    model: str = "pocket"  # pocket, a hub id, a diffusers folder, or one .safetensors file
    kind: ConceptKind = "style"  # kind whose recipe the cost is for
    device: str = "auto"  # auto, cpu, cuda, cuda:1


def main(argv: list[str]) -> int:
    options = parse_options(Options, argv, "methods")
    from erasure.concept import Concept
    from erasure.erasing import forecast_erasure
    from erasure.loading.loader import load_model
    from erasure.methods.base import Method
    from erasure.recipes import configure_method

    model = load_model(options.model, device=options.device)
    forward_seconds = seconds_per_forward(model)
    print(f"cost of one {options.kind} on {options.model} ({model.family}) with its recipe, including the concept check;")
    print("a backward counts as two forwards\n")
    for name in list_modules("erasure.methods"):
        cls = load_class("erasure.methods", name, Method)
        method, concepts, _ = configure_method(cls, [Concept(name="concept", kind=options.kind)], model.family, {})
        cost = forecast_erasure(model, concepts, method)
        estimate = forward_seconds * (cost.unet_forwards + 2 * cost.unet_backwards)
        print(f"{name}  {read_summary('erasure.methods', name).partition(': ')[2]}")
        print(f"    changes  {cls.changes}")
        print(f"    choose   {cls.when}")
        print(f"    cost     {cost.unet_forwards:,} UNet forwards, {cost.unet_backwards:,} backwards, about {format_duration(estimate)}\n")
    return 0


def seconds_per_forward(model) -> float:  # type: ignore[no-untyped-def]  # DiffusionModel, whose import would cost --help half a second
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
