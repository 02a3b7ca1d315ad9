"""Judge scores on disk: reused by the judge that wrote them, and by no other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.generation import samples_of, save_png
from eval.judges.base import Judge
from eval.records.models import ERASED
from eval.records.scores import LabelScore
from eval.scoring.judge_scores import score_samples
from eval.suites.cases import suite_cases
from tests.factories import small_suite


@dataclass(frozen=True, kw_only=True)
class FixedJudge(Judge):
    """Gives every image the same label."""

    label: str

    def identity(self) -> dict[str, Any]:
        return {"label": self.label}

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[LabelScore]:
        return [LabelScore(label=self.label, p=1.0) for _ in images]


def test_scores_of_two_judges_never_mix(tmp_path: Path) -> None:
    samples = samples_of(small_suite(), suite_cases(small_suite(), [], "smoke"))
    for sample in samples:
        save_png(torch.zeros(3, 2, 2, dtype=torch.uint8), tmp_path / "images" / "erased" / sample.file_name)

    def labels_of(label: str) -> set[str | None]:
        rows = score_samples(samples, [ERASED], {"style": FixedJudge(label=label)}, tmp_path)
        assert len(rows) == len(samples)
        return {row.judged("style") for row in rows}

    assert labels_of("neon") == {"neon"} and labels_of("plain") == {"plain"}
    for sample in samples:
        (tmp_path / "images" / "erased" / sample.file_name).unlink()
    assert labels_of("neon") == {"neon"}  # from disk
