"""Images of another size than the model's own, and tiles: part of everything that identifies an erasure, an audit or a cached tensor."""

from dataclasses import replace
from pathlib import Path

import pytest

from erasure.concept import Concept
from erasure.edits import Edit
from erasure.erasing import erase
from erasure.erasure_job import make_job
from erasure.errors import UserError
from erasure.loading.loader import load_model
from erasure.methods.esd import ESD
from erasure.methods.uce import UCE
from erasure.training.fill_cache import teacher_cache_key
from eval.records.audit_result import AuditJob, EditBase
from eval.records.convert import parse_record, to_record
from eval.report.commands import audit_command
from tests.eval.factories import audit_job, audit_result, audited_edit

NEON = Concept(name="neon", kind="style", prompts=("a {} image | an image",))


def test_it_identifies_what_is_made(tmp_path: Path) -> None:
    own = load_model("pocket", device="cpu", dtype="fp32")
    large = load_model("pocket", device="cpu", dtype="fp32", resolution=96, vae="tiled")
    method, chosen = ESD(), {"resolution": 96, "vae": "tiled"}
    query = method.query([NEON], 0)
    assert teacher_cache_key(own, query) != teacher_cache_key(large, query)
    jobs = [make_job(model, [NEON], method, 0).to_record() for model in (own, large)]
    assert jobs[1] == {**jobs[0], **chosen} != jobs[0]
    edit = erase(large, [NEON], UCE(), out=tmp_path)
    assert Edit.load(tmp_path).info.base == edit.info.base == {**edit.info.base, **chosen}
    assert to_record(parse_record(edit.info.base, EditBase, "base")) == edit.info.base


def test_audits_record_it_only_if_it_is_chosen() -> None:
    job = audit_job(resolution=96, vae="tiled")
    assert parse_record(to_record(job), AuditJob, "job") == job
    assert to_record(audit_job()).keys() == to_record(job).keys() - {"resolution", "vae"}
    result = audit_result()
    command = audit_command(Path("out"), replace(result, job=job, edits=(audited_edit(),)))
    assert "--resolution 96 --vae tiled" in command and "--resolution" not in audit_command(Path("out"), result)


def test_a_size_the_model_cannot_make_is_refused() -> None:
    with pytest.raises(UserError, match="pocket makes no images of 100 pixels a side; use a multiple of 16"):
        load_model("pocket", device="cpu", resolution=100)
