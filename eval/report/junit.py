"""junit.xml: the verdict of an audit for continuous integration, one test case for every gate; the form that Jenkins and GitLab read."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from eval.report.sentences import sentence
from eval.scoring.gates import Gate, unmeasured

NO_CHARACTER = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # of XML 1.0 (section 2.2), not even when escaped


class Case(NamedTuple):
    """A test case; one without an outcome passed."""

    name: str
    outcome: Literal["", "failure", "error", "skipped"] = ""
    kind: str = ""  # of a failure or an error
    words: str = ""


def junit(found: Mapping[str, Any], result: Mapping[str, Any], gates: Sequence[Gate]) -> bytes:
    """The file's bytes: the same for the same audit, since no time and no machine is named.

    A gate that fails or decides nothing is a failure, what is missing or crashed an error, and what was not asked or cannot be, skipped.

    Args:
        found: the record of report.json.
        result: of the audit.
        gates: all thresholds, those that were not asked too.
    """
    suite, cases = found["suite"], [*_gates(found, result, gates), *_parts(result)]
    if found["verdict"]["state"] != "PASS" and not any(case.outcome in ("failure", "error") for case in cases):
        said = " ".join(found["verdict"]["reasons"])
        cases.append(Case("verdict", "failure" if gates else "skipped", found["verdict"]["state"].lower(), said))
    counts = {"tests": len(cases)} | {
        of: sum(c.outcome == one for c in cases) for of, one in (("failures", "failure"), ("errors", "error"))
    }
    numbers = {name: str(n) for name, n in {**counts, "skipped": sum(c.outcome == "skipped" for c in cases)}.items()}
    root = Element("testsuites", numbers)
    asked = f"{suite['name']}{f' ({file})' if (file := suite['file']) else ''}, tier {suite['tier']}"
    if not found["thresholds"]["own"]:
        asked += f", thresholds of {found['thresholds']['file'] or 'another suite'} ({found['thresholds']['digest']})"
    into = SubElement(root, "testsuite", {"name": _clean(f"erasing {found['concept']}, {asked}"), **numbers})
    for case in cases:
        element = SubElement(into, "testcase", {"classname": _clean(f"audit of {asked}"), "name": _clean(case.name)})
        if case.outcome:
            kind = {"type": case.kind} if case.kind and case.outcome != "skipped" else {}
            SubElement(element, case.outcome, {**kind, "message": _clean(case.words)})
    SubElement(into, "system-out").text = _clean("\n".join(found["conclusions"]))
    indent(root)
    return bytes(tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _gates(found: Mapping[str, Any], result: Mapping[str, Any], gates: Sequence[Gate]) -> list[Case]:
    decided = {gate["name"]: gate for gate in found["gates"]}
    cases = []
    for gate in gates:
        if not gate.asked(result):
            alone = f"in tier {gate.tier}" if gate.tier not in ("", result["tier"]) else "with --only"
            cases.append(Case(gate.name, "skipped", words=f"This gate is asked {alone} alone."))
        elif gate.name not in decided:
            cases.append(Case(gate.name, "failure", "inconclusive", *unmeasured([gate], result, [gate.name])))
        elif (state := decided[gate.name]["state"]) == "PASS":
            cases.append(Case(gate.name))
        else:
            cases.append(Case(gate.name, "failure", state.lower(), sentence(decided[gate.name])))
    return cases


def _parts(result: Mapping[str, Any]) -> list[Case]:
    """What else an audit was to do, where it did not."""
    cases = [Case(f"weights of {part}", "error", "missing", why) for part, why in result["missing"].items()]
    for attack in result["attacks"]:
        cases += [Case(f"attack {attack['name']}", "error", "crashed", attack["crashed"])] if "crashed" in attack else []
        cases += [Case(f"attack {attack['name']}", "skipped", words=attack["skipped"])] if "skipped" in attack else []
    return cases


def _clean(text: str) -> str:
    return NO_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", text)
