"""`erasure erase`: concepts in, an edit folder out."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from app.parsing import combined, given, parse
from erasure.choices import Attention, Precision
from erasure.concept import Kind
from erasure.concept import parse as parse_concepts
from erasure.discover import load, summary
from erasure.errors import UserError
from erasure.seeds import checked


@dataclass(frozen=True, kw_only=True)
class Options:
    """Erase concepts from a model and save what moved as an edit."""

    concept: str  # what to erase; several are separated by ;
    method: str = "esd"  # how; its own options follow below
    kind: Kind = "style"  # what the concept is: decides sentences and recipe
    anchor: str = ""  # what the concept should become; empty: nothing in particular
    prompts: tuple[str, ...] = ()  # training sentences with {} for the concept, instead of the kind's
    model: str = "pocket"  # pocket, a hub id, a diffusers folder, or one .safetensors file
    out: Path | None = None  # run folder; default runs/<hash of the job>
    seed: int = 0  # decides every random number; from 0 to 2^63 - 1
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    dtype: Precision = "auto"  # what to compute in; trained weights are fp32 always
    attention: Attention = "auto"  # attention kernel of the UNet
    gradient_checkpointing: bool = False  # less memory for about a third more time
    report_to: Literal["none", "tensorboard", "wandb", "trackio", "mlflow"] = "none"  # tracker beside train.jsonl
    on: tuple[Path, ...] = ()  # edits that are in place while this one is made; it will need them
    mask: Path | None = None  # saliency mask of a SalUn run: only its entries move
    preview: bool = False  # closed forms: print how far the edit would move other prompts, and stop
    fresh: bool = False  # throw away what this or another erasure wrote in the folder, and start over; other files stay


def main(argv: list[str]) -> int:
    method_name = requested_method(argv)
    from erasure.methods.base import Method  # imports torch, so only now that the name is right

    cls = load("erasure.methods", method_name, Method)
    options: Any = parse(combined("Erase", Options, cls), argv, "erase")
    checked(options.seed)
    concepts = parse_concepts(options.concept, kind=options.kind, prompts=options.prompts, anchor=options.anchor)
    from erasure.edit import Edit, distinct
    from erasure.erase import configure, erase, forecast, job_record
    from erasure.loading import load_model
    from erasure.locks import check
    from erasure.run import Run, default_folder

    after = distinct([Edit.load(path) for path in options.on])
    model = load_model(options.model, device=options.device, precision=options.dtype, attention=options.attention)
    own = {name: getattr(options, name) for name in given(argv, [f.name for f in fields(cls)])}
    method, concepts, differs = configure(cls, concepts, model.family, own)
    if options.preview:
        return preview(model, concepts, method, options.seed)
    job = job_record(model, concepts, method, options.seed, after, options.mask)
    out = options.out or default_folder(job)
    Run(out, job, options.fresh)  # complains before anything is said or written
    check(out)
    passes = forecast(model, concepts, method)  # complains about what cannot be asked
    print(f"{method_name} on {options.model} ({model.family}), erasing {options.concept}; safety checker off", file=sys.stderr)
    print(f"differs from the paper's defaults: {', '.join(f'{k}={short(v)}' for k, v in differs.items()) or 'nothing'}", file=sys.stderr)
    print(f"it will take {passes.unet_forwards:,} UNet forwards and {passes.unet_backwards:,} backwards", file=sys.stderr)
    with warned():
        edit = erase(
            model,
            concepts,
            method,
            out=out,
            seed=options.seed,
            after=after,
            mask=options.mask,
            fresh=options.fresh,
            report_to=options.report_to,
            gradient_checkpointing=options.gradient_checkpointing,
        )
    cost = edit.info.cost
    took = f"{cost['unet_forwards']} UNet forwards and {cost['unet_backwards']} backwards"
    print(f"{out}: {took} for {cost['sample_gradients']} sample-gradients")
    return 0


def preview(model: Any, concepts: list[Any], method: Any, seed: int) -> int:
    """What a closed form would do to prompts that should stay."""
    from erasure.methods.base import Solved

    if not isinstance(method, Solved):
        raise UserError(f"--preview is for closed forms such as uce; {type(method).__name__} is none.")
    for key, value in method.solve(model, concepts, seed).notes.items():
        if isinstance(value, dict):
            value = sorted(value.items(), key=lambda item: -item[1])
        if not isinstance(value, list):
            print(f"{key}: {value}")
            continue
        print(f"{key}:")
        for name, size in value[:20]:
            print(f"  {100 * size:7.2f} %  {name}")
    return 0


@contextmanager
def warned() -> Iterator[None]:
    """The library's doubts about the input, as lines of their own."""
    from erasure.external.lora import DroppedGate
    from erasure.known import DoubtfulConcept

    def line(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"erasure: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in (DoubtfulConcept, DroppedGate):
            warnings.simplefilter("always", kind)
        warnings.showwarning = line  # type: ignore[assignment]  # same call, fewer names
        yield


def short(value: object) -> str:
    """A value for one line; long lists by their length."""
    return f"({len(value)} sentences)" if isinstance(value, tuple) and len(value) > 2 else str(value)


def requested_method(argv: list[str]) -> str:
    """The value of --method, checked before its options are; "esd" when none is named."""
    for i, part in enumerate(argv):
        if (part == "--method" and i + 1 < len(argv)) or part.startswith("--method="):
            name = part.partition("=")[2] or argv[i + 1]
            summary("erasure.methods", name)
            return name
    return "esd"
