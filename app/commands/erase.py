"""`erasure erase`: erase concepts and write an edit folder."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from app.model_options import load_with_options
from app.parsing import ModelSource, Switch, check_edits_exist
from erasure.concept import ConceptKind, parse_concepts
from erasure.config.choices import Attention, Offload, Precision, Tracker, VaeMode
from erasure.config.registry import field_help_of, list_modules
from erasure.config.static_classes import METHOD_BASE, load_static_class
from erasure.errors import UserError
from erasure.families.pipelines import PIPELINES
from erasure.families.recognition import is_pocket_text_encoder, recognize_family
from erasure.loading.model_source import SHIPPED_MODELS

if TYPE_CHECKING:
    from erasure import Edit, Erasure

USAGE_ERROR = 1
MAX_PREVIEW_LINES = 20


@dataclass(frozen=True, kw_only=True)
class EraseCommand:
    """Erase concepts from a model and save the changed weights as an edit."""

    words: ClassVar[str] = "erase"

    concept: str  # what to erase; several are separated by ;
    method: str = "esd"  # erasure method; its options follow below
    kind: ConceptKind = "style"  # kind of the concept: decides prompts and recipe
    anchor: str = ""  # what the concept should become; empty: nothing in particular
    prompts: tuple[str, ...] = ()  # training prompt templates with {} for the concept, instead of the kind's
    model: ModelSource = "pocket"  # pocket, pocket-flow, a hub id, a diffusers folder, or one .safetensors file
    out: Path | None = None  # run folder; default runs/<hash of the job>
    seed: int = 0  # seed of every random number; from 0 to 2^63 - 1
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    dtype: Precision = "auto"  # compute precision; trained weights are always fp32
    attention: Attention = "auto"  # attention kernel of the denoiser
    offload: Offload = "auto"  # on a GPU, what waits in main memory: none, text (text encoders, VAE), or all that does not compute
    vae: VaeMode = "auto"  # images at once from the VAE: whole batch, sliced (one by one), or tiled, which changes large images a little
    resolution: int | None = None  # height and width of the images in pixels; default: the model's own
    images_at_once: int | None = None  # images sampled together; default: by their size, and less where a GPU has too little memory
    gradient_checkpointing: Switch = False  # less memory for about a third more time
    report_to: Tracker = "none"  # tracker beside train.jsonl
    on: tuple[Path, ...] = ()  # edits that are applied while this one is made; it will depend on them
    mask: Path | None = None  # saliency mask of a SalUn run: only its entries change
    preview: Switch = False  # closed forms: print how far the edit would change other prompts, and stop
    yes: Switch = False  # do not ask for confirmation when a concept looks odd; without a terminal nothing is asked
    fresh: Switch = False  # delete what this or another erasure wrote in the folder, and start over; other files stay

    def method_fields(self) -> dict[str, Any]:
        """Return the options of the method by name, None for those that are not given."""
        own = {f.name for f in fields(EraseCommand)}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}


def other_methods_flag(words: Sequence[str], method: str) -> str:
    """Return the first of these flags that is an option of another method and not of this one; empty if none is."""
    own, *others = (
        {f"--{f.name.replace('_', '-')}" for f in fields(load_static_class("erasure.methods", name, METHOD_BASE))}
        for name in (method, *list_modules("erasure.methods"))
    )
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    return next((flag for flag in flags if flag not in own and any(flag in options for options in others)), "")


def explain_other_methods_flag(flag: str, method: str) -> UserError:
    """Return the error for an option of another method."""
    names = [f"--{f.name.replace('_', '-')}" for f in fields(load_static_class("erasure.methods", method, METHOD_BASE))]
    takes = f"it takes {', '.join(names)}" if names else "it has no options"
    return UserError(f"{method} has no {flag}; {takes}; see erasure erase --method {method} --help.")


def add_method_options(method: str, kind: str, source: str) -> type[EraseCommand]:
    """Return the command with the options of a method, all None: then the recipe for the kind and the model decides.

    The help shows the values that an option has if it is not given. Torch is not imported.

    Raises:
        UserError: No such method.
    """
    outline = load_static_class("erasure.methods", method, METHOD_BASE)
    family = family_of_source(source)
    recipe: Mapping[str, Any] = getattr(outline, "recipes", {}).get((kind, family), {})
    own, comments = field_help_of(EraseCommand), field_help_of(outline)
    options: list[tuple[str, Any, Any]] = []
    for f in fields(EraseCommand):
        hint = f" (from the recipe if not given: {abbreviate(recipe[f.name])})" if f.name in recipe else ""
        default = dataclasses.field() if f.default is dataclasses.MISSING else dataclasses.field(default=f.default)
        options.append((f.name, with_help(f.type, own[f.name] + hint), default))
    for f in fields(outline):
        if f.name not in own:
            value = recipe.get(f.name, f.default)
            hint = f" (the paper's: {abbreviate(f.default)})" if value != f.default else ""
            typed: Any = f.type
            options.append((f.name, with_help(typed | None, comments.get(f.name, "") + hint, value), dataclasses.field(default=None)))
    note = f"the recipe for {kind} on {family} models" if family else "the paper's; recipes go by the model"
    doc = f"{EraseCommand.__doc__}\n\nValues shown are {note}."
    return dataclasses.make_dataclass(
        EraseCommand.__name__, options, bases=(EraseCommand,), frozen=True, kw_only=True, namespace={"__doc__": doc}
    )


def with_help(type_: Any, text: str, shown_default: object = dataclasses.MISSING) -> Any:
    """Return a type whose option has this help, and shows another default than its own."""
    if shown_default is dataclasses.MISSING:
        return Annotated[type_, tyro.conf.arg(help=text)]
    label = " ".join(map(shlex.quote, shown_default)) if isinstance(shown_default, tuple) else str(shown_default) or "''"
    return Annotated[type_, tyro.conf.arg(help=text, help_behavior_hint=f"(default: {label})")]


def abbreviate(value: object) -> str:
    """Format a value for one line; a long list by its length."""
    return f"({len(value)} prompts)" if isinstance(value, tuple) and len(value) > 2 else str(value) or "nothing"


def family_of_source(source: str) -> str:
    """Return the model family from a model's files before it is loaded; empty where they do not tell."""
    if source in SHIPPED_MODELS:
        return source
    folder = Path(source).expanduser()
    try:
        spec = PIPELINES[read_config(folder / "model_index.json")["_class_name"]]
        if spec.family:
            return spec.family
        text_encoder = read_config(folder / "text_encoder" / "config.json")
        if spec.denoiser == "transformer":
            return "pocket-flow" if is_pocket_text_encoder(text_encoder) else "sd3"
        return recognize_family(read_config(folder / "unet" / "config.json"), text_encoder, source)
    # a UserError is a ValueError: it is raised once it is loaded
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return ""


def read_config(path: Path) -> Any:
    """Read a JSON file of a model that nothing has checked yet."""
    return json.loads(path.read_text(encoding="utf-8"))


def run_erase(command: EraseCommand) -> int:
    """Erase, or print a preview, and return the exit code.

    Raises:
        UserError: As `erasure.prepare` and `Erasure.run`; what needs no model is checked before torch is imported.
    """
    check_before_torch(command)
    import erasure
    from app.confirmation import confirm, print_warnings
    from erasure.recipes import check_request

    concepts = parse_concepts(command.concept, kind=command.kind, prompts=command.prompts, anchor=command.anchor)
    check_request(command.method, concepts, family_of_source(command.model), command.method_fields(), command.seed)
    model = load_with_options(command.model, command)
    planned = erasure.prepare(
        model,
        command.concept,
        method=command.method,
        kind=command.kind,
        anchor=command.anchor,
        prompts=command.prompts,
        seed=command.seed,
        after=command.on,
        mask=command.mask,
        out=command.out,
        fresh=command.fresh,
        report_to=command.report_to,
        gradient_checkpointing=command.gradient_checkpointing,
        **command.method_fields(),
    )
    if not confirm(planned.hints(), command.yes):
        return USAGE_ERROR
    if command.preview:
        print_preview(planned.preview())
        return 0
    describe_plan(command, planned)
    written_before = time_of(planned.out / "result.json")
    with print_warnings():
        edit = planned.run()
    verb = "wrote" if time_of(planned.out / "result.json") != written_before else "complete already:"
    print(f"{verb} {planned.out} {describe_cost(edit)}. {describe_next_steps(planned)}")
    return 0


def time_of(path: Path) -> int:
    """Return when a file was written, in ns; 0 if there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def describe_cost(edit: "Edit") -> str:
    """Return what an edit has cost, in parentheses."""
    cost = edit.info.cost
    backwards = f", {cost['unet_backwards']:,} backwards" if cost["unet_backwards"] else ""
    return f"({cost['unet_forwards']:,} denoiser forwards{backwards}, concept check included)"


def describe_next_steps(planned: "Erasure") -> str:
    """Return the commands that use the edit; an audit has the pocket model's suite where none is named."""
    folder = shlex.quote(str(planned.out))
    suite = "" if planned.model.family in SHIPPED_MODELS else " --suite sd"
    return f"Next: erasure audit {folder}{suite}, or erasure export {folder}"


def check_before_torch(command: EraseCommand) -> None:
    """Check what the command line alone decides.

    Raises:
        UserError: A concept, the seed, a path or the tracker cannot be used.
    """
    from erasure.config.seeds import check_seed
    from erasure.storage.run import check_output_folder, check_tracker

    check_seed(command.seed)
    if command.out:
        check_output_folder(command.out)
    check_edits_exist(command.on)
    check_tracker(command.report_to)
    parse_concepts(command.concept, kind=command.kind, prompts=command.prompts, anchor=command.anchor)


def describe_plan(command: EraseCommand, planned: "Erasure") -> None:
    """Print what will be done and what it costs, before the work begins."""
    from erasure.errors import MAX_VALUE_CHARS, truncate_middle

    concepts, cost = truncate_middle(command.concept, MAX_VALUE_CHARS), planned.forecast_cost()
    changed = ", ".join(f"{name}={abbreviate(value)}" for name, value in planned.changed_defaults.items()) or "nothing"
    print(f"{command.method} on {command.model} ({planned.model.family}), erasing {concepts}; safety checker off", file=sys.stderr)
    print(f"differs from the paper's defaults: {changed}", file=sys.stderr)
    print(f"it will take {cost.unet_forwards:,} denoiser forwards and {cost.unet_backwards:,} backwards", file=sys.stderr)


def print_preview(notes: Mapping[str, Any]) -> None:
    """Print how a closed form would change prompts that should be retained, the largest changes first."""
    for key, value in notes.items():
        if isinstance(value, dict):
            value = sorted(value.items(), key=lambda item: -item[1])
        if not isinstance(value, list):
            print(f"{key}: {value}")
            continue
        print(f"{key}:")
        for name, size in value[:MAX_PREVIEW_LINES]:
            print(f"  {100 * size:7.2f}%  {name}")
