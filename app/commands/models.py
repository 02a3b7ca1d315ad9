"""`erasure models`: the models that can be edited, their sizes, and the memory that sampling and every method need."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from erasure.errors import UserError, unknown_value_error
from erasure.families.released_models import RELEASED, ReleasedModel, find_released
from erasure.loading.model_source import is_hub_id, is_local_path
from erasure.storage.edit_folders import RECORD_FILE, is_edit_path

if TYPE_CHECKING:
    from erasure.families.base import DiffusionModel
    from erasure.memory.formula import Forecast

WIDTH = 100  # characters of a line
COLUMNS = ("weights", "fp32 copies", "moments", "gradients", "activations")  # of the table, in the order of a training
SHORT = ("weights", "copies", "moments", "grads", "working")  # their heads


@dataclass(frozen=True, kw_only=True)
class ModelsCommand:
    """List the supported models with what fits into common GPUs, or show one: sizes, and the memory that every method needs."""

    words: ClassVar[str] = "models"

    model: Annotated[str, tyro.conf.Positional] = ""  # a name of the list, pocket, a hub id, or a diffusers folder; empty: the list
    batch: int | None = None  # images at once, and samples per training step; the method's own if not given
    resolution: int | None = None  # height and width of the images in pixels; the model's own if not given


def run_models(command: ModelsCommand) -> int:
    """Print the list, or one model.

    Raises:
        UserError: An unknown model, one that is not supported, or a batch or resolution that is not possible.
    """
    for flag, value in (("--batch", command.batch), ("--resolution", command.resolution)):
        if value is not None and not 1 <= value <= 100_000:
            raise UserError(f"{flag} must be between 1 and 100,000, got {value}.")
    if not command.model:
        if command.batch is not None or command.resolution is not None:
            raise UserError("--batch and --resolution are for one model; name it, as in erasure models sdxl --batch 2.")
        print_list()
        return 0
    if is_edit_path(command.model):
        from erasure.edits.edit_json import read_edit_info

        path = Path(command.model)
        base = read_edit_info((path if path.is_dir() else path.parent) / RECORD_FILE)[0].base["source"]
        raise UserError(f"{command.model} is an edit, not a model; erasure models {base} shows the model that it was made on.")
    released = find_released(command.model)
    if not (released or is_local_path(command.model) or is_hub_id(command.model)):
        raise unknown_value_error("model", command.model, [model.name for model in RELEASED])
    print_model(command, released)
    return 0


def print_list() -> None:
    """Print every model of the table with the counts that the package brings."""
    from erasure.memory.shipped import load_forecasts

    forecasts = load_forecasts()
    print("Models that can be edited, and the smallest card for sampling and for each method at its defaults.")
    print("Forecasts, not measured on a GPU. (c): with --gradient-checkpointing. One model: erasure models NAME\n")
    for model in RELEASED:
        print(f"{model.name}  {model.source}")
        if not (entry := forecasts.get(model.name)):
            print("    not counted in this version\n")
            continue
        sizes = ", ".join(f"{part} {in_words(count)}" for part, count in entry.parameters.items())
        print(f"    pipeline    {model.pipeline}, family {model.family}")
        print(f"    images      {entry.resolution} x {entry.resolution}, {describe_guidance(model.kind)}")
        for title, text in {"parameters": sizes, **{card: ", ".join(names) for card, names in entry.names_by_card().items()}}.items():
            print(fill(text, WIDTH, initial_indent=f"    {title:<10}  ", subsequent_indent=" " * 16, break_on_hyphens=False))
        print()


def print_model(command: ModelsCommand, released: ReleasedModel | None) -> None:
    """Print sizes and forecasts of one model; every line as soon as it is counted."""
    from erasure.families.resolution import resolution_of, set_resolution
    from erasure.loading.skeleton import build_skeleton, read_model
    from erasure.memory.forecast import ModelForecast

    source = released.source if released else command.model
    model = build_skeleton(read_model(source, released.config if released else ""), source)
    if command.resolution is not None:
        set_resolution(model, command.resolution)
    pixels = resolution_of(model)
    print(f"{source}: {type(model).__name__}, family {model.family}, {pixels} x {pixels}, {describe_guidance(model.guidance_kind)}\n")
    print_sizes(model)
    print("\nForecast in GiB: counted on the networks without their weights, not measured on a GPU.")
    print("A card keeps 1 GiB for the driver and gaps. Batches, and what waits in main memory, follow the")
    print("smallest card that is enough. (c): with --gradient-checkpointing. Large models take minutes.\n", flush=True)
    print(f"{'':<20}{''.join(f'{head:>9}' for head in SHORT)}{'peak':>8}  {'in':<14}fits, GB")
    forecasts = ModelForecast(model)
    all_forecasts = [forecasts.sampling(command.batch or 1)]
    print_rows(all_forecasts[0])
    for name in forecasts.method_names:
        all_forecasts.append(forecasts.method(name, command.batch))
        print_rows(all_forecasts[-1])
    print()
    for line in advise(all_forecasts):
        print(fill(line, WIDTH, subsequent_indent="    ", break_on_hyphens=False))


def print_sizes(model: "DiffusionModel") -> None:
    """Print the parameters and the size of every component and every region."""
    from erasure.families.placement import bytes_of, components_of
    from erasure.memory import counts

    print(f"{'component':<16}{'parameters':>12}{'GiB':>8}   dtype on a GPU")
    for name, network in components_of(model.pipe).items():
        count = sum(p.numel() for p in network.parameters())
        dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in network.parameters()})
        print(f"{name:<16}{in_words(count):>12}{gib(bytes_of(network)):>8}   {', '.join(dtypes)}")
    print(f"\n{'region':<16}{'parameters':>12}{'GiB':>8}   GiB of its training: fp32, gradients, Adam's two moments")
    for region, count, size in counts.region_sizes(model):
        print(f"{region:<16}{in_words(count):>12}{gib(size):>8}   {gib(16 * count)}")


def print_rows(forecast: "Forecast") -> None:
    """Print a forecast, and the same with gradient checkpointing."""
    if forecast.refusal:
        print(f"{forecast.name:<20}  does not serve this model", flush=True)
        return
    for suffix, variant in (("", forecast), (" (c)", forecast.checkpointed)):
        if variant is not None:
            parts = variant.largest.parts(variant.offload)
            cells = "".join(f"{gib(parts[column]) if parts.get(column) else '-':>9}" for column in COLUMNS)
            cards = " ".join(map(str, variant.cards)) or "none"
            print(f"{forecast.name + suffix:<20}{cells}{gib(variant.peak):>8}  {variant.largest.name:<14}{cards}", flush=True)


def advise(forecasts: "list[Forecast]") -> Iterator[str]:
    """Yield what helps where something does not fit into 24 GB."""
    needs: dict[str, list[str]] = {}
    for forecast in forecasts:
        if forecast.refusal:
            yield f"{forecast.name}: {forecast.refusal}"
        elif not forecast.fits(24):
            best = forecast.checkpointed if forecast.checkpointed and forecast.checkpointed.peak < forecast.peak else forecast
            prefix = "--gradient-checkpointing" if best is not forecast else ""
            needs.setdefault(prefix if best.fits(24) else f"{prefix}|{best.largest.name}", []).append(forecast.name)
    for need, names in needs.items():
        flag, _, phase = need.partition("|")
        if not phase:
            yield f"{', '.join(names)}: fits into 24 GB with {flag}."
        else:
            yield f"{', '.join(names)}: more than 24 GB{' even with ' + flag if flag else ''}; {REMEDIES.get(phase, REMEDIES['decode'])}"


REMEDIES = {  # by the phase that needs most
    "training": "try a smaller --batch, a smaller --region such as xattn-kv, or uce, which trains nothing.",
    "teacher cache": "its cache samples up to 16 trajectories at once: give fewer --trajectories (and --retain-trajectories).",
    "encode": "its prompts are encoded all at once: give fewer of them (--prompts, --retain-prompts, --probe-prompts).",
    "decode": "use a larger card, or a smaller model of the list: erasure models.",
}


def describe_guidance(kind: str) -> str:
    return {"none": "no guidance", "embedded": "guidance as an input"}.get(kind, f"{kind} guidance")


def in_words(count: int) -> str:
    """Return a count of parameters in millions or billions."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def gib(size: Any) -> str:
    """Return a size in GiB, of pocket in more digits."""
    return f"{size / 2**30:.2f}" if size >= 2**30 / 100 else f"{size / 2**30:.4f}"
