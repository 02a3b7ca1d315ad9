"""Readings on disk: used again by the judge that made them, and by no other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.generation import samples_of, save_png
from eval.judges.base import Judge
from eval.scoring.judge_scores import score_samples
from eval.suites.cases import suite_cases
from tests.eval.test_audit import tiny_suite


@dataclass(frozen=True, kw_only=True)
class Says(Judge):
    """Reads the same in every picture."""

    label: str

    def identity(self) -> dict[str, Any]:
        return {"label": self.label}

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[dict[str, Any]]:
        return [{"label": self.label, "p": 1.0} for _ in images]


def test_readings_of_two_judges_never_mix(tmp_path: Path) -> None:
    todo = samples_of(tiny_suite(), suite_cases(tiny_suite(), [], "smoke"))
    for attempt in todo:
        save_png(torch.zeros(3, 2, 2, dtype=torch.uint8), tmp_path / "images" / "erased" / attempt.file_name)

    def said(label: str) -> set[str]:
        rows = score_samples(todo, ["erased"], {"style": Says(label=label)}, tmp_path)
        assert len(rows) == len(todo)
        return {row["read"]["style"]["label"] for row in rows}

    assert said("neon") == {"neon"} and said("plain") == {"plain"}
    for attempt in todo:
        (tmp_path / "images" / "erased" / attempt.file_name).unlink()
    assert said("neon") == {"neon"}  # from disk
