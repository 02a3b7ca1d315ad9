"""edit.safetensors as somebody else may hand it over: every damaged one is refused in one line."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from erasure.edits import Edit
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from tests.synthetic_edits import EDIT_KINDS, edit_of_kind, write_with_checksum


def test_any_flipped_bit_of_the_tensors_is_detected(saved_edits: dict[str, Path], tmp_path: Path) -> None:
    rng = random.Random(1)
    for kind in EDIT_KINDS:
        data = (saved_edits[kind] / "edit.safetensors").read_bytes()
        (tmp_path / "edit.json").write_bytes((saved_edits[kind] / "edit.json").read_bytes())
        for position in [*range(16), len(data) - 1, *(rng.randrange(len(data)) for _ in range(40))]:
            flipped = bytearray(data)
            flipped[position] ^= 1 << rng.randrange(8)
            (tmp_path / "edit.safetensors").write_bytes(flipped)
            with pytest.raises(UserError, match=r"broken edit: edit.safetensors is not the file"):
                Edit.load(tmp_path)


W, ONE = "unet.mid_block.attentions.0.to_q.weight", torch.ones(4, 3).half()


UP, DOWN = torch.ones(4, 2).half(), torch.ones(2, 3).half()


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({}, "0 tensors"),
        ({W: torch.full((4, 3), float("nan")).half()}, r"to_q\.weight in the edit holds NaN or Inf \(12 of 12"),
        ({W: torch.tensor([1.0, float("inf")])}, "NaN or Inf"),
        ({W + "::up": UP, W + "::down": DOWN * float("nan")}, "::down in the edit holds NaN or Inf"),
        ({W: ONE.double()}, "has dtype float64"),
        ({W: ONE.int()}, "has dtype int32; allowed are float16, bfloat16, float32"),
        ({W: ONE.bool()}, "has dtype bool"),
        ({W: ONE[:0]}, r"is empty \(shape \(0, 3\)\)"),
        ({W + "::up": UP, W + "::down": DOWN[:0]}, "is empty"),
        ({W + "::up": UP}, "has ::up in the edit; it needs"),
        ({W + "::down": DOWN}, "has ::down in the edit; it needs"),
        ({W: ONE, W + "::up": UP, W + "::down": DOWN}, "::down and ::up and? new values|new values and ::down and ::up"),
        ({W: ONE, W + "::zeroed": torch.tensor([1])}, "new values and ::zeroed"),
        ({W + "::up": UP, W + "::down": torch.ones(3, 3).half()}, "do not multiply"),
        ({W + "::up": UP[:, :, None, None], W + "::down": DOWN}, "do not multiply"),
        ({W + "::up": torch.ones(4, 2, 3, 3).half(), W + "::down": torch.ones(2, 3, 3, 3).half()}, "do not multiply"),
        ({W + "::up": UP[0], W + "::down": DOWN[0]}, "do not multiply"),
        ({W + "::up": UP.int(), W + "::down": DOWN}, "::up in the edit has dtype int32"),
        ({W + "::zeroed": torch.tensor([1.0])}, "::zeroed in the edit has dtype float32; allowed are int32, int64"),
        ({W + "::zeroed": torch.tensor([-1, 2])}, "holds the negative index -1"),
        ({W + "::zeroed": torch.tensor([2, 2])}, "unordered or duplicated"),
        ({W + "::zeroed": torch.tensor([3, 2])}, "unordered or duplicated"),
        ({W + "::zeroed": torch.tensor([[1]])}, "has 2 dimensions"),
        ({W + "::zeroed": torch.tensor([], dtype=torch.int32)}, "is empty"),
        ({W + "::alpha": ONE}, "unknown suffix; known are ::up, ::down and ::zeroed"),
        ({W + "::": ONE}, "unknown suffix"),
        ({W + "::up::up": UP}, "unknown suffix"),
        ({"vae.encoder.weight": ONE}, "is not the name of a parameter of unet or text_encoder"),
        ({"unet": ONE}, "is not the name"),
        ({"unet../x": ONE}, "is not the name"),
        ({"": ONE}, "is not the name"),
        (b"", "broken edit"),
        (b"\xff" * 8, "broken edit"),
        ((2).to_bytes(8, "little") + b"{}", "0 tensors"),
        ((2**40).to_bytes(8, "little") + b"{}", "broken edit"),
        ((4).to_bytes(8, "little") + b"\xff\xff{}", "broken edit"),
    ],
)
def test_hostile_tensors_are_named(tensors: Any, complaint: str, saved_edits: dict[str, Path], tmp_path: Path) -> None:
    record = json.loads((saved_edits["value"] / "edit.json").read_text())
    with pytest.raises(UserError, match=complaint) as error:
        Edit.load(write_with_checksum(tmp_path, tensors, record))
    assert "\n" not in str(error.value)


def test_indices_beyond_the_weight_do_not_fit(model: StableDiffusion) -> None:
    edit = edit_of_kind(model.pipe, "zeroed", layers=1)
    (key,) = edit.tensors
    with pytest.raises(UserError, match="does not fit this model"):
        Edit({key: torch.tensor([0, 10**6])}, edit.info).apply(model.pipe)
