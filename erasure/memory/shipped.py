"""The forecasts of released models at their defaults, as shipped: counting all of them takes minutes. No torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from erasure.memory.formula import CARDS, GIB, RESERVED, Forecast

FORECASTS = Path(__file__).parent / "forecasts.json"


@dataclass(frozen=True, kw_only=True)
class ShippedForecast:
    """What `erasure models` lists of one model.

    Attributes:
        resolution: height and width of its images in pixels.
        parameters: by component.
        peaks: bytes of sampling and of each method by name.
        checkpointed: the same with gradient checkpointing, where that is possible.
        refused: methods that do not serve the model.
    """

    resolution: int
    parameters: Mapping[str, int]
    peaks: Mapping[str, int]
    checkpointed: Mapping[str, int] = field(default_factory=dict)
    refused: tuple[str, ...] = ()

    def names_by_card(self) -> dict[str, list[str]]:
        """Return sampling and the methods by the smallest card that is enough for them; "(c)" marks gradient checkpointing."""
        groups: dict[str, list[str]] = {f"from {card} GB": [] for card in CARDS} | {"over 80 GB": [], "not on it": list(self.refused)}
        for name, peak in self.peaks.items():
            card, card_checkpointed = smallest_card(peak), smallest_card(self.checkpointed.get(name, peak))
            groups[card].append(name)
            if card_checkpointed != card:
                groups[card_checkpointed].append(f"{name} (c)")
        return {title: names for title, names in groups.items() if names}


def smallest_card(peak: int) -> str:
    """Return the smallest card for a peak in bytes, as a title of `names_by_card`."""
    return next((f"from {card} GB" for card in CARDS if peak + RESERVED <= card * GIB), "over 80 GB")


def to_shipped(resolution: int, parameters: Mapping[str, int], forecasts: list[Forecast]) -> ShippedForecast:
    """Return what is listed of a model."""
    return ShippedForecast(
        resolution=resolution,
        parameters=parameters,
        peaks={forecast.name: forecast.peak for forecast in forecasts if not forecast.refusal},
        checkpointed={forecast.name: forecast.checkpointed.peak for forecast in forecasts if forecast.checkpointed},
        refused=tuple(forecast.name for forecast in forecasts if forecast.refusal),
    )


def load_forecasts() -> dict[str, ShippedForecast]:
    """Return the shipped forecasts by the name of their model."""
    content: dict[str, Any] = json.loads(FORECASTS.read_text(encoding="utf-8"))
    return {name: ShippedForecast(**{**entry, "refused": tuple(entry["refused"])}) for name, entry in content.items()}


def save_forecasts(forecasts: Mapping[str, ShippedForecast], path: Path = FORECASTS) -> None:
    """Write the shipped forecasts."""
    path.write_text(json.dumps({name: asdict(entry) for name, entry in forecasts.items()}, indent=1) + "\n", encoding="utf-8")
