"""`erasure audit report DIR`: report a finished audit again. And what every audit prints in the end."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from app.parsing import Switch

if TYPE_CHECKING:
    from eval.scoring.gates import Gate


@dataclass(frozen=True, kw_only=True)
class AuditReportCommand:
    """Write report.json, junit.xml and report.html of a finished audit again; other thresholds need no new images."""

    words: ClassVar[str] = "audit report"

    audit: Annotated[Path, tyro.conf.Positional]  # folder of the audit
    suite: str = ""  # suite whose gates decide, with the same judges; default: the gates the audit was made with
    blur: Switch = False  # blur its images until the reader reveals them; always on where the concept's kind is nsfw


def rewrite_report(command: AuditReportCommand) -> int:
    """Report a finished audit again and return its exit code.

    Raises:
        UserError: No finished audit in the folder, or the suite cannot decide about it.
    """
    from erasure.storage.locks import lock_folder
    from eval.scoring.recount import audit_gates, load_finished_audit, recount
    from eval.suites.suite import load_suite

    result = load_finished_audit(command.audit)
    with lock_folder(command.audit, "erasure audit report"):
        if not command.suite:
            return write_and_print_report(command.audit, audit_gates(command.audit, result), result, command.blur)
        suite = load_suite(command.suite)
        return write_and_print_report(command.audit, suite.gates, recount(command.audit, suite), command.blur, command.suite)


def write_and_print_report(out: Path, gates: "Sequence[Gate]", result: dict[str, Any], blur: bool = False, gates_from: str = "") -> int:
    """Write the report, print its path, the rates and the verdict, and return the exit code."""
    from erasure.storage.files import read_json
    from eval.report.html import write_report
    from eval.scoring.gates import exit_code_of

    print(write_report(out, result, gates, blur=blur, gates_source=gates_from))
    if result["models"]:
        print(format_headline(result))
    report = read_json(out / "report.json")
    for reason in [*report["verdict"]["reasons"], *report["conclusions"][1:]]:
        print(f"  {reason}")
    for part, reason in result["missing"].items():
        print(f"  INCOMPLETE, judge of {part}: {reason}", file=sys.stderr)
    if not report["thresholds"]["from_suite"]:
        source = f"{report['thresholds']['file'] or 'another suite'} (gates {report['thresholds']['digest']})"
        print(f"  decided by the thresholds of {source}, not by those that the audit was made with")
    print(report["verdict"]["state"])
    return exit_code_of(report["verdict"]["state"], result)


def format_headline(result: dict[str, Any]) -> str:
    """Format the headline rates in one line, with interval, counts and the base's rate: UA, then the others."""
    from eval.report.numbers import format_percent, format_percent_span

    erased, base = result["models"]["erased"]["rates"], result["models"].get("base", {"rates": {}})["rates"]
    parts = []
    for name in (n for n in ("UA", "UA_shown", "FR", "IRA", "CRA") if n in erased):
        base_part = f", base {format_percent(base[name]['estimate'])}" if name in base and name != "UA_shown" else ""
        rate = erased[name]
        bounds = format_percent_span(rate["low"], rate["high"])
        parts.append(f"{name} {format_percent(rate['estimate'])} % ({bounds}; {rate['k']}/{rate['n']}{base_part})")
    return ", ".join(parts)
