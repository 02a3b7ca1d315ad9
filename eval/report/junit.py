"""junit.xml: the verdict of an audit for continuous integration, one test case per gate, in the format that Jenkins and GitLab read."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from eval.records.audit_result import AuditResult
from eval.records.gates import Gate
from eval.records.report import Report
from eval.report.verdict_summary import describe_gate
from eval.scoring.gates import applies_to, unmeasured_reasons

# not allowed in XML 1.0 (section 2.2), even escaped
INVALID_CHARACTERS = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class JUnitCase(NamedTuple):
    """A test case; without an outcome, it passed."""

    name: str
    outcome: Literal["", "failure", "error", "skipped"] = ""
    failure_type: str = ""  # of a failure or an error
    message: str = ""


def junit_xml(report: Report, result: AuditResult, gates: Sequence[Gate]) -> bytes:
    """Return the file's bytes: the same for the same audit, since it names no time and no machine.

    A gate that fails or is inconclusive is a failure; what is missing or crashed is an error; what does not apply is skipped.

    Args:
        gates: all thresholds, including those that do not apply to this audit.
    """
    suite, verdict, cases = report.suite, report.verdict, [*_gate_cases(report, result, gates), *_part_cases(result)]
    if verdict.state != "PASS" and not any(case.outcome in ("failure", "error") for case in cases):
        cases.append(JUnitCase("verdict", "failure" if gates else "skipped", verdict.state.lower(), " ".join(verdict.reasons)))
    counts = {"tests": len(cases)} | {
        counter: sum(c.outcome == outcome for c in cases) for counter, outcome in (("failures", "failure"), ("errors", "error"))
    }
    attributes = {name: str(n) for name, n in {**counts, "skipped": sum(c.outcome == "skipped" for c in cases)}.items()}
    root = Element("testsuites", attributes)
    audit_name = f"{suite.name}{f' ({suite.file})' if suite.file else ''}, tier {suite.tier}"
    if not report.thresholds.from_suite:
        audit_name += f", thresholds of {report.thresholds.file or 'another suite'} ({report.thresholds.digest})"
    testsuite = SubElement(root, "testsuite", {"name": _replace_invalid(f"erasing {report.concept}, {audit_name}"), **attributes})
    for case in cases:
        element = SubElement(
            testsuite, "testcase", {"classname": _replace_invalid(f"audit of {audit_name}"), "name": _replace_invalid(case.name)}
        )
        if case.outcome:
            type_attribute = {"type": case.failure_type} if case.failure_type and case.outcome != "skipped" else {}
            SubElement(element, case.outcome, {**type_attribute, "message": _replace_invalid(case.message)})
    SubElement(testsuite, "system-out").text = _replace_invalid("\n".join(report.conclusions))
    indent(root)
    return bytes(tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _gate_cases(report: Report, result: AuditResult, gates: Sequence[Gate]) -> list[JUnitCase]:
    decided = {gate.name: gate for gate in report.gates}
    cases = []
    for gate in gates:
        if not applies_to(gate, result):
            condition = f"in tier {gate.tier}" if gate.tier not in ("", result.tier) else "with --only"
            cases.append(JUnitCase(gate.name, "skipped", message=f"This gate applies only {condition}."))
        elif gate.name not in decided:
            cases.append(JUnitCase(gate.name, "failure", "inconclusive", *unmeasured_reasons([gate], result, [gate.name])))
        elif (state := decided[gate.name].state) == "PASS":
            cases.append(JUnitCase(gate.name))
        else:
            cases.append(JUnitCase(gate.name, "failure", state.lower(), describe_gate(decided[gate.name])))
    return cases


def _part_cases(result: AuditResult) -> list[JUnitCase]:
    """Return a test case for each other part of the audit that is missing, crashed or skipped."""
    cases = [JUnitCase(f"weights of {part}", "error", "missing", why) for part, why in result.missing.items()]
    for attack in result.attacks_not_run:
        cases += [JUnitCase(f"attack {attack.name}", "error", "crashed", attack.crashed)] if attack.crashed else []
        cases += [JUnitCase(f"attack {attack.name}", "skipped", message=attack.skipped)] if attack.skipped else []
    return cases


def _replace_invalid(text: str) -> str:
    return INVALID_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", text)
