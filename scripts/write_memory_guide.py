"""Count the memory of every released model and write it: the shipped forecasts, and the tables of docs/guides/memory.md.

python scripts/write_memory_guide.py            all models, some minutes
python scripts/write_memory_guide.py sdxl       one model; the others stay as they are
"""

import argparse
from pathlib import Path

from fill_docs import fill_section

from erasure.families.placement import components_of
from erasure.families.released_models import RELEASED, ReleasedModel
from erasure.families.resolution import resolution_of
from erasure.loading.loader import FLOW_FOLDER
from erasure.loading.skeleton import build_skeleton, read_model
from erasure.memory.forecast import ModelForecast
from erasure.memory.formula import GIB
from erasure.memory.shipped import FORECASTS, ShippedForecast, load_forecasts, save_forecasts, smallest_card, to_shipped

GUIDE = Path("docs/guides/memory.md")
METHODS = ("esd", "npo", "duo", "doco", "advunlearn", "salun", "sfd", "uce", "fia", "ssd", "sld")  # in the order of the table


def count(released: ReleasedModel) -> ShippedForecast:
    """Count one model at its defaults."""
    model = build_skeleton(read_model(released.source, released.config), released.source)
    parameters = {part: sum(p.numel() for p in network.parameters()) for part, network in components_of(model.pipe).items()}
    return to_shipped(resolution_of(model), parameters, ModelForecast(model).defaults())


def card_table(forecasts: dict[str, ShippedForecast]) -> list[str]:
    """Return the table of smallest cards, a row for each model."""
    lines = [f"| Model | Sampling | {' | '.join(METHODS)} |", "|---" * (2 + len(METHODS)) + "|"]
    for name, entry in forecasts.items():
        cells = [card_cell(entry, method) for method in ("sampling", *METHODS)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def card_cell(entry: ShippedForecast, name: str) -> str:
    """Return the peak in GiB, and the smallest card for it, without and with gradient checkpointing."""
    if name in entry.refused:
        return "does not run"
    cell = peak_in_words(entry.peaks[name])
    checkpointed = entry.checkpointed.get(name, entry.peaks[name])
    return cell if checkpointed == entry.peaks[name] else f"{cell}; (c) {peak_in_words(checkpointed)}"


def peak_in_words(peak: int) -> str:
    return f"{peak / GIB:.1f}, {smallest_card(peak).removeprefix('from ')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    chosen = parser.parse_args().models
    forecasts = load_forecasts() if FORECASTS.is_file() else {}
    for released in RELEASED:
        if released.name == "pocket-flow" and not FLOW_FOLDER.is_dir():
            continue
        if not chosen or released.name in chosen:
            forecasts[released.name] = count(released)
            print(released.name, flush=True)
            save_forecasts(forecasts)
    in_order = {model.name: forecasts[model.name] for model in RELEASED if model.name in forecasts}
    save_forecasts(in_order)
    fill_section(GUIDE, "cards", card_table(in_order))


if __name__ == "__main__":
    main()
