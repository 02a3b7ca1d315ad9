"""Rows as frozen records: what is written is what is read, and a row that no audit wrote is refused by file and key."""

import json
from pathlib import Path
from typing import Any

import pytest

from erasure.errors import UserError
from eval.records.convert import parse_record, to_record
from eval.records.models import BASE, ERASED, AuditedModel, ModelRole, retrained_model
from eval.records.row_files import read_attack_rows, read_sample_rows, write_rows
from eval.records.rows import AttackRow, FailedAttackRow, FineTuningRow, SampleRow, SearchRow, TokenIdOutcome
from eval.records.scores import AlignmentScore, LabelScore, Scores
from tests.eval.factories import attack_scores, planted_attack_rows, sample_row


def test_a_model_is_a_role_with_a_number_and_has_one_text() -> None:
    assert [str(model) for model in (BASE, ERASED, retrained_model(12))] == ["base", "erased", "retrained-12"]
    assert AuditedModel.parse("retrained-12") == AuditedModel(ModelRole.RETRAINED, 12) != retrained_model(1)
    assert AuditedModel.parse("erased") == ERASED and not ERASED.is_retrained and retrained_model(1).is_retrained
    assert f"images/{retrained_model(2)}/x" == "images/retrained-2/x" and retrained_model(2).title == "retrained 2"


def rows_of_every_kind() -> list[SampleRow]:
    scores = Scores(style=LabelScore(label="neon", p=0.5, top5=(("neon", 0.5), ("glass", 0.25))), clip=AlignmentScore(cosine=21.5))
    detected = Scores(object=LabelScore(label="none", p=0.1, scores={"FACE_MALE": 0.1}))
    return [
        sample_row(BASE, "neon", "boat", scores=scores, seed=2**64 - 1),
        sample_row(retrained_model(3), "", "nudity", scores=detected, role="prompt_list"),
        sample_row(ERASED, "", "", scores=Scores(), role="benign", prompt="ünï “quoted”\n"),
    ]


def test_sample_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = rows_of_every_kind()
    write_rows(tmp_path / "samples.jsonl", rows)
    assert list(read_sample_rows(tmp_path / "samples.jsonl")) == rows and read_sample_rows(tmp_path / "none.jsonl") == ()
    first, second, third = map(json.loads, (tmp_path / "samples.jsonl").read_text().splitlines())
    assert first["model"] == "base" and second["model"] == "retrained-3"
    style = {"label": "neon", "p": 0.5, "top5": [["neon", 0.5], ["glass", 0.25]]}
    assert first["scores"] == {"style": style, "clip": {"cosine": 21.5}} and third["scores"] == {}  # nothing stands for a missing score


def test_attack_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    (search,) = planted_attack_rows("search", [1], fresh=1)
    rows: list[AttackRow] = [
        search,
        SearchRow(**{**vars(search), "token_ids": TokenIdOutcome(failed_round_trips=2, round=None)}),
        FineTuningRow(attack="tune", step=3, scores=attack_scores(True)),
        FailedAttackRow(attack="bell", skipped="it needs a template"),
        FailedAttackRow(attack="prefix", crashed="RuntimeError: "),
    ]
    write_rows(tmp_path / "attacks.jsonl", rows)
    assert list(read_attack_rows(tmp_path / "attacks.jsonl")) == rows
    records = [json.loads(line) for line in (tmp_path / "attacks.jsonl").read_text().splitlines()]
    assert ["token_ids" in record for record in records] == [False, True, False, False, False]
    assert records[3] == {"attack": "bell", "skipped": "it needs a template"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "reference"}, r"samples.jsonl: rows.1.model must match pattern .*retrained-\[0-9\]\+.*, got 'reference'"),
        ({"model": "retrained"}, "rows.1.model must match pattern"),
        ({"sed": 1}, r"unknown key in rows.1 in .*samples.jsonl 'sed'. Did you mean 'seed'"),
        ({"seed": "1"}, "rows.1.seed must be a whole number, got '1'"),
        ({"index": True}, "rows.1.index must be a whole number, got True"),
        ({"role": "grit"}, r"unknown rows.1.role in .*samples.jsonl 'grit'. Did you mean 'grid'"),
        ({"scores": {"style": {"label": "neon"}}}, r"rows.1.scores.style in .*samples.jsonl lacks p"),
        ({"scores": {"stile": {}}}, r"unknown key in rows.1.scores in .* 'stile'. Did you mean 'style'"),
        ({"scores": []}, r"rows.1.scores must be a mapping, got \[\]"),
        ({"scores": {"clip": {"cosine": float("nan")}}}, "rows.1.scores.clip.cosine must be a finite number, got nan"),
        ({"prompt": "\ud800"}, r"samples.jsonl: a text in it is not valid Unicode\."),
    ],
)
def test_a_row_that_no_audit_wrote_is_refused_by_file_and_key(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    records = [to_record(row) for row in rows_of_every_kind()]
    records[1] |= change
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(UserError, match=words) as error:
        read_sample_rows(tmp_path / "samples.jsonl")
    assert "\n" not in str(error.value)


def test_a_line_that_is_no_row_is_refused(tmp_path: Path) -> None:
    for line in ("3", "null", "[]", "{}"):
        (tmp_path / "attacks.jsonl").write_text(line + "\n")
        with pytest.raises(UserError, match=r"attacks\.jsonl: rows\.0|rows\.0.* in .*attacks\.jsonl"):
            read_attack_rows(tmp_path / "attacks.jsonl")


def test_a_field_of_another_type_is_not_written() -> None:
    row = sample_row(BASE, "neon", "boat", seed="3")
    with pytest.raises(ValueError, match="seed"):
        to_record(row)
    assert parse_record(to_record(sample_row(BASE, "neon", "boat")), SampleRow, "x") == sample_row(BASE, "neon", "boat")
