"""junit.xml, read by a parser: what CI systems are told of an audit, and that no text of a suite breaks it."""

from typing import Any
from xml.etree import ElementTree

import pytest

from eval.report.conclusions import describe_gate
from eval.report.junit import junit_xml
from eval.scoring.gates import Gate, decide_verdict

GATES = (
    Gate(name="gone", rate="UA", at_least=0.9),
    Gate(name="kept", rate="IRA", drop_at_most=0.1),
    Gate(name="near", rate="NRA", at_least=0.5),
    Gate(name="attacked", rate="UA_attacked", at_least=0.5, tier="full"),
    Gate(name="elsewhere", rate="FR", drop_at_most=0.1),
)
ATTACKS = [
    {"name": "soft", "crashed": "FloatingPointError: x"},
    {"name": "bell", "skipped": "no text encoder"},
    {"name": "seeds", "curve": []},
]


def result(k: int = 300, **more: Any) -> dict[str, Any]:
    """An audit in which k of 300 pictures are erased and all others kept."""
    rates = {"UA": {"k": k, "n": 300}}
    paired = {"IRA": {"both": 300, "erased_only": 0, "base_only": 0, "neither": 0}}
    return {"tier": "standard", "job": {}, "models": {"erased": {"rates": rates}}, "paired": paired, "missing": {}, "attacks": [], **more}


def told(of: dict[str, Any], gates: tuple[Gate, ...] = GATES, concept: str = "neon") -> tuple[bytes, dict[str, tuple[str, str, str]]]:
    """The file, and of every test case its outcome, the type and the message."""
    decided = decide_verdict(gates, of)
    found = {
        "suite": {"name": "pocket", "file": None, "tier": of["tier"]},
        "thresholds": {"digest": "0" * 16, "own": True, "file": None},
        "concept": concept,
        "gates": decided["gates"],
        "verdict": {"state": decided["state"], "reasons": [describe_gate(gate) for gate in decided["gates"]] + decided["withheld"]},
        "conclusions": [f"Asked for {concept}"],
    }
    made = junit_xml(found, of, gates)
    root = ElementTree.fromstring(made)
    (suite,) = root
    cases = {
        case.get("name") or "": (case[0].tag, case[0].get("type", ""), case[0].get("message", "")) if len(case) else ("", "", "")
        for case in suite.iter("testcase")
    }
    outcomes = [outcome for outcome, _, _ in cases.values()]
    for element in (root, suite):
        assert element.get("tests") == str(len(cases))
        assert [element.get(n) for n in ("failures", "errors", "skipped")] == [
            str(outcomes.count(o)) for o in ("failure", "error", "skipped")
        ]
    return made, cases


def test_every_gate_is_a_case_and_every_gap_is_named() -> None:
    _, cases = told(result(missing={"clip": "no weights"}, attacks=ATTACKS))
    assert {name: case[:2] for name, case in cases.items()} == {
        "gone": ("", ""),
        "kept": ("", ""),
        "near": ("failure", "inconclusive"),
        "attacked": ("skipped", ""),
        "elsewhere": ("skipped", ""),
        "weights of clip": ("error", "missing"),
        "attack soft": ("error", "crashed"),
        "attack bell": ("skipped", ""),
    }
    words = {name: case[2] for name, case in cases.items()}
    assert words["near"] == "INCONCLUSIVE, near: NRA had nothing to measure; the suite asks for nothing that it counts."
    assert (words["attacked"], words["elsewhere"]) == ("This gate is asked in tier full alone.", "This gate is asked with --only alone.")
    assert (words["weights of clip"], words["attack soft"], words["attack bell"]) == (
        "no weights",
        "FloatingPointError: x",
        "no text encoder",
    )


@pytest.mark.parametrize(("k", "kind"), [(200, "fail"), (273, "inconclusive")])
def test_a_gate_that_fails_or_decides_nothing_is_a_failure(k: int, kind: str) -> None:
    _, cases = told(result(k), GATES[:2])
    assert cases["gone"][:2] == ("failure", kind) and cases["gone"][2].startswith(f"{kind.upper()}, gone: UA is ")
    assert cases["kept"] == ("", "", "")


def test_nothing_is_green_without_a_verdict() -> None:
    """No gate at all, none in this tier, and one cell without a gate on FR."""
    ((outcome, kind, words),) = told(result(), ())[1].values()
    assert (outcome, kind) == ("skipped", "") and "sets no gates" in words
    outcome, kind, words = told(result(), GATES[3:4])[1]["verdict"]
    assert (outcome, kind) == ("failure", "inconclusive") and "asks none of its gates of an audit like this one (tier standard" in words
    assert told(result(job={"only": "fish"}), GATES[:2])[1]["verdict"][:2] == ("failure", "inconclusive")
    assert "verdict" not in told(result(), GATES[:2])[1]


def test_poisoned_names_stay_names_and_the_bytes_are_the_same() -> None:
    evil = '"></testcase><failure/>&lol;<!--\x00\x1b\ud800\ufffe\n]]>'
    of = result(missing={evil: evil}, attacks=[{"name": evil, "crashed": evil}])
    gate = Gate(name=evil, rate="UA", at_least=0.9)
    made, cases = told(of, (gate,), evil)
    clean = evil[: evil.index("\x00")] + 4 * "\ufffd" + "\n]]>"
    assert cases == {
        clean: ("", "", ""),
        f"weights of {clean}": ("error", "missing", clean),
        f"attack {clean}": ("error", "crashed", clean),
    }
    assert made == told(of, (gate,), evil)[0] and made.startswith(b"<?xml version='1.0' encoding='utf-8'?>")
