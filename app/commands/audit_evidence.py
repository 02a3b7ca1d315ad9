"""`erasure audit verify DIR` and `erasure audit attest DIR`: evidence about a finished audit for people who did not make it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from app.parsing import Switch

EXIT_BROKEN, EXIT_INCOMPLETE = 3, 2
MARKS = {"ok": "ok", "broken": "BROKEN", "not checked": "not checked"}


@dataclass(frozen=True, kw_only=True)
class AuditVerifyCommand:
    """Check a finished audit: every digest, and every figure counted again from its rows.

    Exit code 3: something does not fit. 2: a part could not be checked, except for what --rejudge would check. 0: everything fits.
    """

    words: ClassVar[str] = "audit verify"

    audit: Annotated[Path, tyro.conf.Positional]  # folder of the audit
    edit: tuple[Path, ...] = ()  # edits that it audited, in order; default: the one in the folder above
    suite: str = ""  # suite that it was made with, if not a shipped one: its YAML file
    rejudge: Switch = False  # let the judges read every image again


@dataclass(frozen=True, kw_only=True)
class AuditAttestCommand:
    """Write a statement about a finished audit that other tools read. It is not signed: sign it with a tool such as sigstore."""

    words: ClassVar[str] = "audit attest"

    audit: Annotated[Path, tyro.conf.Positional]  # folder of the audit
    format: Literal["in-toto", "inspect"] = "in-toto"  # in-toto: a test-result statement; inspect: a log for Inspect, an image a sample
    edit: tuple[Path, ...] = ()  # edits that it audited, in order; default: the one in the folder above
    suite: str = ""  # suite that it was made with, if not a shipped one: its YAML file
    out: Path | None = None  # file to write; default: attestation.json or inspect-log.json in the folder


def run_verify(command: AuditVerifyCommand) -> int:
    """Print every check and return the exit code.

    Raises:
        UserError: no finished audit.
    """
    from app.parsing import check_edits_exist
    from eval.evidence.verify import REJUDGED, verify_audit

    check_edits_exist(command.edit)
    checks = verify_audit(command.audit, command.edit, suite=command.suite, rejudge=command.rejudge)
    for check in checks:
        print(f"{MARKS[check.state]:<12}{check.name}: {check.detail}")
    if any(check.state == "broken" for check in checks):
        print("The audit is not what it says.")
        return EXIT_BROKEN
    left = [check.name for check in checks if check.state == "not checked" and (command.rejudge or check.name != REJUDGED)]
    print(f"Not checked: {', '.join(left)}." if left else "Everything that was checked fits.")
    return EXIT_INCOMPLETE if left else 0


def run_attest(command: AuditAttestCommand) -> int:
    """Write the statement and print its path.

    Raises:
        UserError: no finished audit, its edits are missing, or something in it does not fit or could not be checked.
    """
    from app.parsing import check_edits_exist
    from erasure.errors import UserError
    from erasure.storage.files import write_json
    from eval.evidence.attestation import make_statement
    from eval.evidence.inspect_log import make_log
    from eval.evidence.verify import verify_audit

    check_edits_exist(command.edit)
    checks = verify_audit(command.audit, command.edit, suite=command.suite)
    if broken := [check for check in checks if check.state == "broken"]:
        raise UserError(f"nothing is attested, because the audit is not what it says: {broken[0].name}: {broken[0].detail}")
    if left := [check for check in checks if check.state == "not checked" and check.name in ("files", "figures", "report")]:
        raise UserError(f"nothing is attested, because {left[0].name} could not be checked: {left[0].detail}")
    is_log = command.format == "inspect"
    record = make_log(command.audit) if is_log else make_statement(command.audit, command.edit)
    path = command.out or command.audit / ("inspect-log.json" if is_log else "attestation.json")
    write_json(path, record)
    print(path)
    return 0
