"""`erasure erase`: concepts in, an edit folder out."""

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from app.confirmation import settled
from app.parsing import combined, existing, given, parse, short, valued
from erasure.concept import Kind
from erasure.concept import parse as parse_concepts
from erasure.config.choices import Attention, Precision, family_of_width
from erasure.config.outline import METHOD, outline
from erasure.config.registry import load
from erasure.config.seeds import checked
from erasure.errors import VALUE, UserError, cut, in_one_line
from erasure.storage.run import check_tracker, usable

EARLY = ("method", "kind", "model")  # decide what the other flags are, in the order of the fields
USAGE_ERROR = 1


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
    yes: bool = False  # do not ask when something about a concept is odd; where nobody can answer, nothing is asked
    fresh: bool = False  # throw away what this or another erasure wrote in the folder, and start over; other files stay


def main(argv: list[str]) -> int:
    described, options = parsed(argv)
    own = {name: getattr(options, name) for name in given(argv, [f.name for f in fields(described)])}
    concepts = parse_concepts(options.concept, kind=options.kind, prompts=options.prompts, anchor=options.anchor)
    from erasure.concept_hints import doubts
    from erasure.edits import Edit, distinct
    from erasure.erasing import configure, erase, forecast, job_record
    from erasure.loading.loader import load_model
    from erasure.methods.base import Method
    from erasure.storage.locks import check
    from erasure.storage.run import Run, default_folder

    cls = load("erasure.methods", options.method, Method)
    after = distinct([Edit.load(path) for path in options.on])
    model = load_model(options.model, device=options.device, precision=options.dtype, attention=options.attention)
    if not settled(doubts(model, concepts), options.yes):
        return USAGE_ERROR
    method, concepts, differs = configure(cls, concepts, model.family, own)
    if options.preview:
        return preview(model, concepts, method, options.seed)
    job = job_record(model, concepts, method, options.seed, after, options.mask)
    out = options.out or default_folder(job)
    Run(out, job, options.fresh)  # complains before anything is said or written
    check(out)
    passes = forecast(model, concepts, method)  # complains about what cannot be asked
    print(
        f"{options.method} on {options.model} ({model.family}), erasing {cut(options.concept, VALUE)}; safety checker off", file=sys.stderr
    )
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


def parsed(argv: list[str]) -> tuple[type, Any]:
    """The fields of the method that is asked for, and the command line; torch is not imported for them.

    Raises:
        UserError: besides what does not parse, a seed out of range, a folder that cannot be one.
    """
    method, kind, source = (valued(argv, f"--{field.name}", str(field.default)) for field in fields(Options) if field.name in EARLY)
    described = outline("erasure.methods", method, METHOD)
    of, recipes = family(source), getattr(described, "recipes", {})
    told = f"Values shown are the recipe for {kind} on {of} models." if of else "Values shown are the paper's; recipes go by the model."
    options: Any = parse(combined("Erase", Options, described, recipe=recipes.get((kind, of), {}), note=told), argv, "erase")
    checked(options.seed)
    if options.out:
        usable(options.out)
    existing(options.on)
    check_tracker(options.report_to)
    return described, options


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
    from erasure.concept_check import DoubtfulConcept
    from erasure.edits.external.lora import DroppedGate

    def line(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"erasure: warning: {in_one_line(str(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in (DoubtfulConcept, DroppedGate):
            warnings.simplefilter("always", kind)
        warnings.showwarning = line  # type: ignore[assignment]  # same call, fewer names
        yield


def family(source: str) -> str:
    """The family of recipes that a model's own files tell before it is loaded; empty where they do not."""
    if source == "pocket":
        return source
    try:
        width = json.loads((Path(source).expanduser() / "unet" / "config.json").read_text(encoding="utf-8"))["cross_attention_dim"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return family_of_width(width)
