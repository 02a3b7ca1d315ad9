"""An audit as an in-toto statement: predicate test-result 0.1, over the digests of the edits, the report and the manifest. Unsigned.

(https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erasure.edits import Edit
from erasure.errors import UserError
from erasure.storage.edit_folders import RECORD_FILE, TENSORS_FILE
from eval.evidence.manifest import MANIFEST_FILE, Manifest, file_digest, folders_of_edits, read_manifest
from eval.records.audit_result import AuditResult
from eval.records.gates import VerdictState
from eval.records.report import ReportHead
from eval.records.result_files import audit_gates, read_report_head, read_result
from eval.report.commands import audit_command
from eval.scoring.gates import applies_to, decide_verdict

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
RESULTS: dict[VerdictState, str] = {"PASS": "PASSED", "INCONCLUSIVE": "WARNED", "FAIL": "FAILED"}
REPORT_FILES = ("report.html", "report.json", "result.json", MANIFEST_FILE)


def make_statement(folder: Path, edits: Sequence[Path] = ()) -> dict[str, Any]:
    """Return the statement (JSON values) about a finished audit; subjects match by their digests.

    Args:
        edits: folders of the edits that it audited; by default the one above or beside it.

    Raises:
        UserError: no finished audit or no manifest, the edits are missing or not those that were audited, or the report was
            decided by thresholds from elsewhere.
    """
    result, head, manifest = read_result(folder), read_report_head(folder), read_manifest(folder)
    if not head.thresholds.from_suite:
        raise UserError(
            f"the report in {folder} was decided by thresholds from elsewhere; `erasure audit report` decides by the audit's own."
        )
    paths = find_edits(folder, result, edits)
    subjects = [subject(path / name, f"{path.name}/{name}") for path in paths for name in (TENSORS_FILE, RECORD_FILE)]
    subjects += [subject(folder / name, name) for name in REPORT_FILES]
    return {
        "_type": STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "result": RESULTS[head.verdict.state],
            "configuration": configuration(folder, result, manifest),
            **gate_lists(folder, result, head),
        },
    }


def find_edits(folder: Path, result: AuditResult, edits: Sequence[Path]) -> list[Path]:
    """Return the folders of the audited edits.

    Raises:
        UserError: they are missing, or not those that were audited.
    """
    if result.external_images:
        return []
    paths = folders_of_edits(folder, edits)
    digests = [Edit.load(path).digest() for path in paths]
    if digests != list(result.job.edits):
        found = ", ".join(digests) or "none"
        raise UserError(
            f"{folder} audited {', '.join(result.job.edits)}; found {found}. Name the folders of its edits with --edit, in order."
        )
    return paths


def subject(path: Path, name: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": file_digest(path)}}


def configuration(folder: Path, result: AuditResult, manifest: Manifest) -> list[dict[str, Any]]:
    """Return what the audit was made with as resource descriptors: suite, base, judges and code."""
    job = result.job
    suite = {"suite": job.suite, "version": job.suite_version, "tier": job.tier, "digest": job.suite_digest, "strength": job.strength}
    code = {"date": manifest.date, "command": audit_command(folder, result), "compute": job.compute, **manifest.software}
    descriptors = [
        descriptor("suite", f"{job.suite}, tier {job.tier}", {}, suite),
        descriptor("base", result.edits[0].base.source, {"sha256": job.base} if job.base else {}, {"fingerprint": job.base}),
        *(
            descriptor(f"judge of {part}", part, {"sha256": str(judge["weights"])} if "weights" in judge else {}, dict(judge))
            for part, judge in sorted(result.judges.items())
        ),
        descriptor("code", "erasure-studio", {"gitCommit": manifest.commit.rstrip("+")} if manifest.commit else {}, code),
    ]
    return descriptors


def descriptor(role: str, name: str, digest: dict[str, str], annotations: dict[str, Any]) -> dict[str, Any]:
    """Return a resource descriptor; empty digests are left out, as the format asks."""
    record = {"name": f"{role}: {name}", "annotations": annotations}
    return record | ({"digest": digest} if digest else {})


def gate_lists(folder: Path, result: AuditResult, head: ReportHead) -> dict[str, list[str]]:
    """Return the gates that passed, failed, and were not decided or not measured."""
    gates = audit_gates(folder, result)
    decided = decide_verdict(gates, result)
    by_state: dict[str, list[str]] = {"passedTests": [], "warnedTests": [], "failedTests": []}
    key_of = {"PASS": "passedTests", "INCONCLUSIVE": "warnedTests", "FAIL": "failedTests"}
    for gate in decided.gates:
        by_state[key_of[gate.state]].append(gate.name)
    names = {gate.name for gate in decided.gates}
    by_state["warnedTests"] += [gate.name for gate in gates if applies_to(gate, result) and gate.name not in names]
    by_state["warnedTests"] += [f"withheld: {reason}" for reason in decided.withheld]
    return by_state
