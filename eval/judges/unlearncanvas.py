"""The two classifiers of UnlearnCanvas (Zhang et al., arXiv:2402.11846): ViT-L/16 with 51 styles or 20 objects, top-1."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import timm
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import normalize, resize

from erasure.errors import unknown_value_error
from eval.judges._classifier import file_sha256, load_network, top5_scores
from eval.judges.base import Judge, MissingWeights
from eval.records.scores import LabelScore

Axis = Literal["style", "object"]
ARCHITECTURE = "vit_large_patch16_224.augreg_in21k"  # timm's name
SIZE = 224  # pixels
STYLES = """
Abstractionism Artist_Sketch Blossom_Season Bricks Byzantine Cartoon Cold_Warm Color_Fantasy Comic_Etch Crayon Cubism Dadaism Dapple
Defoliation Early_Autumn Expressionism Fauvism French Glowing_Sunset Gorgeous_Love Greenfield Impressionism Ink_Art Joy Liquid_Dreams
Magic_Cube Meta_Physics Meteor_Shower Monet Mosaic Neon_Lines On_Fire Pastel Pencil_Drawing Picasso Pop_Art Red_Blue_Ink Rust Seed_Images
Sketch Sponge_Dabbed Structuralism Superstring Surrealism Ukiyoe Van_Gogh Vibrant_Flow Warm_Love Warm_Smear Watercolor Winter
"""
OBJECTS = """
Architectures Bears Birds Butterfly Cats Dogs Fishes Flame Flowers Frogs Horses Human Jellyfish Rabbits Sandwiches Sea Statues Towers Trees
Waterfalls
"""
LABELS: dict[str, tuple[str, ...]] = {"style": tuple(STYLES.split()), "object": tuple(OBJECTS.split())}  # in the order of the head


@dataclass(frozen=True, kw_only=True)
class UnlearnCanvas(Judge):
    """Labels images resized to a square; never "none".

    `Seed_Images`, photographs without a style, is the 51st style. The benchmark's authors report no accuracy for these classifiers.
    """

    optional: ClassVar[bool] = True

    axis: Axis = "style"  # style or object
    weights: str = ""  # the authors' checkpoint (.pth, with model_state_dict) or a state dict as .safetensors

    def __post_init__(self) -> None:
        if self.axis not in get_args(Axis):
            raise unknown_value_error("axis of the UnlearnCanvas judge", self.axis, get_args(Axis))

    def identity(self) -> dict[str, Any]:
        return {
            "network": ARCHITECTURE,
            "weights": self._load()[1],
            "labels": list(LABELS[self.axis]),
            "preprocess": f"stretched to {SIZE}x{SIZE}, mean 0.5, std 0.5",
        }

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> list[LabelScore]:
        network, _ = self._load()
        inputs = normalize(resize(images.float().cpu(), [SIZE, SIZE], antialias=True), [0.5] * 3, [0.5] * 3)
        return top5_scores(network(inputs), LABELS[self.axis])

    def _load(self) -> tuple[nn.Module, str]:
        path = Path(self.weights).expanduser()
        if not path.is_file():
            location = str(path) if self.weights else "the judge's field `weights`, which is empty"
            remedy = "download the one that OPTML-Group/UnlearnCanvas links to and give its path"
            raise MissingWeights(f"UnlearnCanvas {self.axis} classifier", location, remedy)
        return _load_vit(ARCHITECTURE, self.axis, path)


@cache
def _load_vit(architecture: str, axis: Axis, path: Path) -> tuple[nn.Module, str]:
    return load_network(lambda: timm.create_model(architecture, num_classes=len(LABELS[axis])), path, "model_state_dict"), file_sha256(path)
