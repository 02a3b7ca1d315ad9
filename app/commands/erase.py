"""`erasure erase`: erase concepts and write an edit folder."""

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from app.confirmation import confirm
from app.parsing import abbreviate, check_edits_exist, combine_options, find_given_fields, flag_value, parse_options
from erasure.concept import ConceptKind, parse_concepts
from erasure.config.choices import Attention, Precision, family_of_width
from erasure.config.registry import load_class
from erasure.config.seeds import check_seed
from erasure.config.static_classes import METHOD_BASE, load_static_class
from erasure.errors import MAX_VALUE_CHARS, UserError, to_one_line, truncate_middle
from erasure.storage.run import check_output_folder, check_tracker

EARLY_FLAGS = ("method", "kind", "model")  # they decide the other flags; in the order of the fields
USAGE_ERROR = 1


@dataclass(frozen=True, kw_only=True)
class Options:
    """Erase concepts from a model and save the changed weights as an edit."""

    concept: str  # what to erase; several are separated by ;
    method: str = "esd"  # erasure method; its options follow below
    kind: ConceptKind = "style"  # kind of the concept: decides prompts and recipe
    anchor: str = ""  # what the concept should become; empty: nothing in particular
    prompts: tuple[str, ...] = ()  # training prompt templates with {} for the concept, instead of the kind's
    model: str = "pocket"  # pocket, a hub id, a diffusers folder, or one .safetensors file
    out: Path | None = None  # run folder; default runs/<hash of the job>
    seed: int = 0  # seed of every random number; from 0 to 2^63 - 1
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    dtype: Precision = "auto"  # compute precision; trained weights are always fp32
    attention: Attention = "auto"  # attention kernel of the UNet
    gradient_checkpointing: bool = False  # less memory for about a third more time
    report_to: Literal["none", "tensorboard", "wandb", "trackio", "mlflow"] = "none"  # tracker beside train.jsonl
    on: tuple[Path, ...] = ()  # edits that are applied while this one is made; it will depend on them
    mask: Path | None = None  # saliency mask of a SalUn run: only its entries change
    preview: bool = False  # closed forms: print how far the edit would change other prompts, and stop
    yes: bool = False  # do not ask for confirmation when a concept looks odd; without a terminal nothing is asked
    fresh: bool = False  # delete what this or another erasure wrote in the folder, and start over; other files stay


def main(argv: list[str]) -> int:
    method_outline, options = parse_command_line(argv)
    method_fields = {name: getattr(options, name) for name in find_given_fields(argv, [f.name for f in fields(method_outline)])}
    concepts = parse_concepts(options.concept, kind=options.kind, prompts=options.prompts, anchor=options.anchor)
    from erasure.concept_hints import find_hints
    from erasure.edits import Edit, check_distinct
    from erasure.erasing import erase, forecast_erasure, make_job
    from erasure.loading.loader import load_model
    from erasure.methods.base import Method
    from erasure.recipes import configure_method
    from erasure.storage.locks import check_unlocked
    from erasure.storage.run import Run, run_folder_of

    cls = load_class("erasure.methods", options.method, Method)
    after = check_distinct([Edit.load(path) for path in options.on])
    model = load_model(options.model, device=options.device, dtype=options.dtype, attention=options.attention)
    if not confirm(find_hints(model, concepts), options.yes):
        return USAGE_ERROR
    method, concepts, differs = configure_method(cls, concepts, model.family, method_fields)
    if options.preview:
        return print_preview(model, concepts, method, options.seed)
    job = make_job(model, concepts, method, options.seed, after, options.mask)
    out = options.out or run_folder_of(job)
    Run(out, job, options.fresh)  # fails before anything is printed or written
    check_unlocked(out)
    expected_cost = forecast_erasure(model, concepts, method)  # fails for settings that cannot run
    concept_text = truncate_middle(options.concept, MAX_VALUE_CHARS)
    print(f"{options.method} on {options.model} ({model.family}), erasing {concept_text}; safety checker off", file=sys.stderr)
    differences = ", ".join(f"{name}={abbreviate(value)}" for name, value in differs.items()) or "nothing"
    print(f"differs from the paper's defaults: {differences}", file=sys.stderr)
    print(f"it will take {expected_cost.unet_forwards:,} UNet forwards and {expected_cost.unet_backwards:,} backwards", file=sys.stderr)
    with plain_warnings():
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
    passes_text = f"{cost['unet_forwards']} UNet forwards and {cost['unet_backwards']} backwards"
    print(f"{out}: {passes_text} for {cost['sample_gradients']} sample-gradients")
    return 0


def parse_command_line(argv: list[str]) -> tuple[type, Any]:
    """Return the static class of the requested method and the parsed options, without importing torch.

    Raises:
        UserError: The command line does not parse, a seed is out of range, or a path is invalid.
    """
    method, kind, source = (
        flag_value(argv, f"--{field.name}", str(field.default)) for field in fields(Options) if field.name in EARLY_FLAGS
    )
    method_outline = load_static_class("erasure.methods", method, METHOD_BASE)
    model_family, recipes = family_of_source(source), getattr(method_outline, "recipes", {})
    note = (
        f"Values shown are the recipe for {kind} on {model_family} models."
        if model_family
        else "Values shown are the paper's; recipes go by the model."
    )
    options: Any = parse_options(
        combine_options("Erase", Options, method_outline, recipe=recipes.get((kind, model_family), {}), note=note), argv, "erase"
    )
    check_seed(options.seed)
    if options.out:
        check_output_folder(options.out)
    check_edits_exist(options.on)
    check_tracker(options.report_to)
    return method_outline, options


def print_preview(model: Any, concepts: list[Any], method: Any, seed: int) -> int:
    """Print how a closed form would change prompts that should be retained.

    Raises:
        UserError: The method is not a closed form.
    """
    from erasure.methods.base import TrainingFree

    if not isinstance(method, TrainingFree):
        raise UserError(f"--preview is for closed forms such as uce; {type(method).__name__} is not one.")
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
def plain_warnings() -> Iterator[None]:
    """Print the library's warnings about the input as plain lines."""
    from erasure.concept_check import WeaklyKnownConcept
    from erasure.edits.external.lora import IgnoredGateWarning

    def print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"erasure: warning: {to_one_line(str(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for category in (WeaklyKnownConcept, IgnoredGateWarning):
            warnings.simplefilter("always", category)
        warnings.showwarning = print_warning  # type: ignore[assignment]  # same call, fewer named parameters
        yield


def family_of_source(source: str) -> str:
    """Return the model family from a model's files before it is loaded; empty where they do not tell."""
    if source == "pocket":
        return source
    try:
        width = json.loads((Path(source).expanduser() / "unet" / "config.json").read_text(encoding="utf-8"))["cross_attention_dim"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return family_of_width(width)
