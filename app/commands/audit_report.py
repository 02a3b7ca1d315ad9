"""`erasure audit report DIR`: report a finished audit again. And what every audit prints in the end."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from app.parsing import Switch

if TYPE_CHECKING:
    from eval import Audit, AuditResult

EXIT_CODES = {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4, "INCOMPLETE": 2}


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
        UserError: As `eval.rewrite_report`.
    """
    import eval

    return print_audit(eval.rewrite_report(command.audit, command.suite, blur=command.blur))


def print_audit(audited: "Audit") -> int:
    """Print the path of every report, the rates and the verdict, and return the exit code of the worst."""
    for report, result in zip(audited.reports, audited.results, strict=True):
        print_report(report, result)
    return EXIT_CODES[audited.verdict]


def print_report(report_file: Path, result: "AuditResult") -> None:
    """Print the path of a report, the rates, and the verdict with its reasons."""
    from eval.records.result_files import read_report_head

    print(report_file)
    if result.models:
        print(format_headline(result))
    report = read_report_head(report_file.parent)
    for reason in [*report.verdict.reasons, *report.conclusions[1:]]:
        print(f"  {reason}")
    for part, reason in result.missing.items():
        print(f"  INCOMPLETE, judge of {part}: {reason}", file=sys.stderr)
    if not report.thresholds.from_suite:
        source = f"{report.thresholds.file or 'another suite'} (gates {report.thresholds.digest})"
        print(f"  decided by the thresholds of {source}, not by those that the audit was made with")
    print(f"{report.verdict.state}: {report.verdict.summary}")
    if report.verdict.next_step:
        print(f"Next: {report.verdict.next_step}")


def format_headline(result: "AuditResult") -> str:
    """Format the headline rates in one line, with interval, counts and the base's rate: UA, then the others."""
    from eval.records.rates import RateName
    from eval.report.numbers import format_percent, format_percent_span

    erased, base = result.erased.rates if result.erased else {}, result.base.rates if result.base else {}
    parts = []
    for name in (n for n in (RateName.UA, RateName.UA_SHOWN, RateName.FR, RateName.IRA, RateName.CRA) if n in erased):
        base_part = f", base {format_percent(base[name].estimate)}" if name in base and name != RateName.UA_SHOWN else ""
        rate = erased[name]
        parts.append(f"{name} {format_percent(rate.estimate)}% ({format_percent_span(rate.low, rate.high)}; {rate.k}/{rate.n}{base_part})")
    return ", ".join(parts)
