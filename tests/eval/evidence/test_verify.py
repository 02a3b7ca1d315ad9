"""`erasure audit verify` and `attest`: an honest audit fits; a changed digit, image, row or edit is found, with forged digests as well."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli import main
from erasure.concept import Concept
from erasure.families.stable_diffusion import StableDiffusion
from erasure.storage.files import read_checksummed_json, write_checksummed_json
from eval.auditing.plan import AuditPlan
from eval.auditing.run import audit_plan
from eval.evidence.attestation import PREDICATE_TYPE, STATEMENT_TYPE
from eval.evidence.manifest import write_manifest
from eval.evidence.verify import REJUDGED, Check, verify_audit
from eval.records.convert import to_record
from eval.report.html import write_report
from eval.scoring.rates import counted_rate
from eval.suites.suite import load_suite
from tests import tiny
from tests.factories import erase_on_small_latents, small_suite_record

ATTACKS = {"tiers": ["smoke"], "prompts": 2, "images": 2, "fresh_images": 1, "use": {"seed_search": {}, "random_prefix": {"tokens": 2}}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of an edit of a tiny model, with a real audit in audit/ and its suite beside it; another edit is in other/."""
    root = tmp_path_factory.mktemp("evidence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASURE_CACHE", str(root / "cache"))
        model = StableDiffusion(tiny.pipeline(size=16, levels=3), "tiny", "fp32")
        edit = erase_on_small_latents(model, [Concept(name="neon", kind="style")], root / "edit")
        erase_on_small_latents(model, [Concept(name="neon", kind="style")], root / "edit" / "other", seed=1)
        suite_file = root / "edit" / "suite.yaml"
        suite_file.write_text(yaml.safe_dump({**small_suite_record(), "attacks": ATTACKS}))
        suite = load_suite(suite_file)
        (plan,) = AuditPlan.for_edits([edit], suite, "smoke")
        write_report(root / "edit" / "audit", audit_plan(model, [edit], plan, root / "edit" / "audit"), suite.gates)
        yield root / "edit"


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "edit"))


def verify(folder: Path, **options: Any) -> dict[str, Check]:
    return {check.name: check for check in verify_audit(folder / "audit", suite=str(folder / "suite.yaml"), **options)}


def broken(folder: Path, **options: Any) -> set[str]:
    return {name for name, check in verify(folder, **options).items() if check.state == "broken"}


def forge_result(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change result.json and give it a checksum that fits."""
    record = read_checksummed_json(folder / "audit" / "result.json")
    change(record)
    write_checksummed_json(folder / "audit" / "result.json", record)


def edit_first_row(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "audit" / "samples.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[0])
    change(row)
    path.write_text("\n".join([json.dumps(row, sort_keys=True), *lines[1:]]) + "\n")


def test_an_honest_audit_fits(folder: Path) -> None:
    checks = verify(folder, rejudge=True)
    assert {check.state for check in checks.values()} == {"ok"}, checks
    assert "attacks follow from" in checks["attacks"].detail and "images as the audit did" in checks[REJUDGED].detail


def test_a_changed_digit_is_found(folder: Path) -> None:
    path = folder / "audit" / "result.json"
    text = path.read_text()
    place = text.index('"estimate": 0') + len('"estimate": 0.')
    path.write_text(text[:place] + ("1" if text[place] != "1" else "2") + text[place + 1 :])
    assert broken(folder) == {"files", "result.json"}


def test_a_forged_rate_is_found_by_counting(folder: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        rates = record["models"]["erased"]["rates"]
        k, n = rates["UA"]["k"], rates["UA"]["n"]
        rates["UA"] = to_record(counted_rate(k - 1 if k else 1, n))  # with the interval that belongs to it

    forge_result(folder, change)
    write_manifest(folder / "audit")
    assert {"figures", "report"} <= broken(folder)


def test_a_forged_attack_is_found_by_counting(folder: Path) -> None:
    path = folder / "audit" / "attacks" / "attacks.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for score in rows[-1]["search_scores"]:
        score["shows_concept"] = not score["shows_concept"]
    rows[-1]["round"] = None if rows[-1]["round"] is not None else 0
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(folder / "audit")
    assert "attacks" in broken(folder)


def test_a_swapped_image_is_found(folder: Path) -> None:
    images = sorted((folder / "audit" / "images" / "erased").glob("*.png"))
    first, other = images[0], next(path for path in images if path.read_bytes() != images[0].read_bytes())
    first.write_bytes(other.read_bytes())
    assert broken(folder) == {"files"}
    write_manifest(folder / "audit")
    assert broken(folder) == set()
    assert broken(folder, rejudge=True) == {REJUDGED}, "digests that were made anew do not help"


def test_an_edited_row_is_found(folder: Path) -> None:
    edit_first_row(folder, lambda row: row["scores"]["style"].update(label="neon"))
    assert {"files", "rows"} <= broken(folder)
    digest = hashlib.sha256((folder / "audit" / "samples.jsonl").read_bytes()).hexdigest()
    forge_result(folder, lambda record: record.update(samples_sha256=digest))
    write_manifest(folder / "audit")
    assert "rows" in broken(folder), "the judge's own file says something else"


def test_a_replaced_edit_is_found(folder: Path) -> None:
    assert verify(folder, edits=[folder / "other"])["edits"].state == "broken"
    for name in ("edit.safetensors", "edit.json"):
        shutil.copy(folder / "other" / name, folder / name)
    assert broken(folder) == {"edits"}


def test_an_added_and_a_missing_file_are_named(folder: Path) -> None:
    (folder / "audit" / "notes.txt").write_text("x")
    (folder / "audit" / "junit.xml").unlink()
    detail = verify(folder)["files"].detail
    assert "missing: junit.xml" in detail and "not listed: notes.txt" in detail


def test_the_command_says_what_it_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit = str(folder / "audit")
    assert main(["audit", "verify", audit]) == 2
    assert "name the suite with --suite" in capsys.readouterr().out
    assert main(["audit", "verify", audit, "--suite", str(folder / "suite.yaml"), "--rejudge"]) == 0
    (folder / "audit" / "junit.xml").write_text("x")
    assert main(["audit", "verify", audit, "--suite", str(folder / "suite.yaml")]) == 3
    assert main(["audit", "verify", str(folder)]) == 1
    assert "no finished audit" in capsys.readouterr().err


def test_a_statement_names_what_it_is_about(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit = folder / "audit"
    assert main(["audit", "attest", str(audit)]) == 1
    assert "nothing is attested, because figures could not be checked" in capsys.readouterr().err
    assert not (audit / "attestation.json").exists()
    assert main(["audit", "attest", str(audit), "--suite", str(folder / "suite.yaml")]) == 0
    statement = json.loads((audit / "attestation.json").read_text())
    assert (statement["_type"], statement["predicateType"]) == (STATEMENT_TYPE, PREDICATE_TYPE)
    for subject in statement["subject"]:
        path = audit / subject["name"] if (audit / subject["name"]).exists() else folder.parent / subject["name"]
        assert subject["digest"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    predicate = statement["predicate"]
    assert predicate["result"] in ("PASSED", "WARNED", "FAILED")
    gates = [name for key in ("passedTests", "warnedTests", "failedTests") for name in predicate[key]]
    assert "erased" in gates and len(set(gates)) == len(gates)
    assert any(entry["name"].startswith("judge of style") and len(entry["digest"]["sha256"]) == 64 for entry in predicate["configuration"])
    assert verify(folder)["files"].state == "ok", "a statement about the files is not one of them"


def test_a_log_has_every_image_of_the_erased_model(folder: Path) -> None:
    assert main(["audit", "attest", str(folder / "audit"), "--format", "inspect", "--suite", str(folder / "suite.yaml")]) == 0
    log = json.loads((folder / "audit" / "inspect-log.json").read_text())
    assert log["version"] == 2 and log["results"]["total_samples"] == len(log["samples"]) > 0
    metric = log["results"]["scores"][0]["metrics"]["UA"]
    assert metric["value"] == metric["metadata"]["k"] / metric["metadata"]["n"]


def test_nothing_is_attested_about_a_changed_audit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "audit" / "junit.xml").write_text("x")
    assert main(["audit", "attest", str(folder / "audit")]) == 1
    assert "the audit is not what it says: files" in capsys.readouterr().err
    assert not (folder / "audit" / "attestation.json").exists()
