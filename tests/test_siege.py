"""Attacks as an audit mounts them: same rounds after interruptions and in shards, crashes counted as neither, figures from planted rows."""

import json
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from app.commands.audit import reported
from erasure.concept import Concept
from erasure.edit import Edit
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.run import read_json
from eval import oracle
from eval import siege as besieging
from eval.attack_rates import attack_rates, under_attack
from eval.attacks.base import Stand
from eval.attacks.relearning import Relearning
from eval.audit import Audit, How, audit, work
from eval.suites import Attacks
from tests.test_audit import big, erased, tiny_suite  # noqa: F401  # a fixture

MOUNTED = {
    "seed_search": {},
    "random_prefix": {"tokens": 2},
    "soft_prefix": {"tokens": 2, "steps": 4, "batch": 2},
    "again": {"attack": "relearning", "data": "benign", "steps": 2, "checkpoints": 2, "batch": 2, "adapter": "full"},
}


def plan_of(edit: Edit, use: dict[str, dict] = MOUNTED) -> Audit:
    suite = replace(tiny_suite(), attacks=Attacks(tiers=("smoke",), prompts=3, pictures=2, fresh=2, use=use))
    (plan,) = Audit.of([edit], suite, "smoke")
    return plan


@pytest.fixture
def edit(big: StableDiffusion, tmp_path: Path) -> Edit:  # noqa: F811
    return erased(big, [Concept(name="neon", kind="style")], tmp_path / "edit")


def test_an_audit_under_attack_counts_every_picture(big: StableDiffusion, edit: Edit, tmp_path: Path) -> None:  # noqa: F811
    before = big.fingerprint()
    result = audit(big, [edit], plan_of(edit), tmp_path / "audit")
    assert big.fingerprint() == before
    assert [a["name"] for a in result["attacks"]] == list(MOUNTED)
    assert not [a for a in result["attacks"] if "skipped" in a or "crashed" in a], result["attacks"]
    rows = [json.loads(line) for line in (tmp_path / "audit/attacks/attacks.jsonl").read_text().splitlines()]
    search = [row for row in rows if row["attack"] == "soft_prefix"]
    assert [len(row["tried"]) for row in search] == [2, 2, 2]
    assert all(len(row["fresh"]) == (0 if row["round"] is None else 2) for row in search)
    assert [row["step"] for row in rows if row["attack"] == "again"] == [0, 1, 2]
    assert [len(a["curve"]) for a in result["attacks"][:3]] == [3, 3, 3]
    assert result["models"]["erased"]["rates"]["UA_attacked"]["n"] == 3


def test_shards_and_interruptions_change_nothing(
    big: StableDiffusion,  # noqa: F811
    edit: Edit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(besieging, "CHUNK", 2)
    plan = plan_of(edit)
    straight = audit(big, [edit], plan, tmp_path / "straight")
    for share in (1, 0):  # in any order
        work(big, [edit], plan, tmp_path / "shared", How(), shard=(share, 2))
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared/attacks").rglob("*.json")}
    assert audit(big, [edit], plan, tmp_path / "shared") == straight
    assert drawn == {path: path.stat().st_mtime_ns for path in (tmp_path / "shared/attacks").rglob("*.json")}  # nothing was done twice
    stop = besieging.attacked
    calls = []

    def killed(*given: object) -> list[dict]:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return stop(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(besieging, "attacked", killed)
    with pytest.raises(KeyboardInterrupt):
        audit(big, [edit], plan, tmp_path / "killed")
    monkeypatch.setattr(besieging, "attacked", stop)
    assert audit(big, [edit], plan, tmp_path / "killed") == straight
    for name in ("result.json", "attacks/attacks.jsonl", "samples.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_a_crash_is_no_success_and_is_tried_again(
    big: StableDiffusion,  # noqa: F811
    edit: Edit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_of(edit, {"again": MOUNTED["again"], "seed_search": {}})

    def fails(self: Relearning, stand: Stand) -> Generator[int]:
        yield 0
        raise RuntimeError("out of memory\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(Relearning, "tune", fails)
        broken, whole = audit(big, [edit], plan, tmp_path / "audit")["attacks"]
    assert broken["crashed"] == "RuntimeError: out of memory"
    assert "steps" not in broken and "curve" not in broken and "revived" not in broken
    assert "curve" in whole
    again, _ = audit(big, [edit], plan, tmp_path / "audit")["attacks"]
    assert "crashed" not in again and len(again["steps"]) == 3


def test_wrong_fields_of_an_attack_are_one_line(big: StableDiffusion, edit: Edit, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match=r"attack soft_prefix: .*'stepz'"):
        audit(big, [edit], plan_of(edit, {"soft_prefix": {"stepz": 3}}), tmp_path / "audit")


def test_pictures_that_are_not_kept_leave_readings(big: StableDiffusion, edit: Edit, tmp_path: Path, own_cache: Path) -> None:  # noqa: F811
    plan = plan_of(edit, {})
    kept = audit(big, [edit], plan, tmp_path / "kept")
    gone = audit(big, [edit], plan, tmp_path / "gone", How(keep="none"))
    assert kept["models"] == gone["models"] and kept["distance"] == gone["distance"]
    assert not list((tmp_path / "gone").rglob("*.png"))
    again = audit(big, [edit], plan, tmp_path / "gone", How(keep="none"))  # nothing is drawn again
    assert again["models"] == gone["models"]
    audit(big, [edit], replace(plan, suite=replace(plan.suite, gates=())), tmp_path / "gone", How(keep="none"))
    assert gone["gates"] and json.loads((tmp_path / "gone" / "result.json").read_text())["gates"] == []
    assert not list((tmp_path / "gone").rglob("*.png"))


ABOUT = {"paper": "", "threat": "", "fields": {}}


def planted(name: str, rounds: list[int | None], fresh: int = 0) -> list[dict]:
    """Rows of a search over prompts 0, 1, ...: the round in which each fell, and how often of two fresh pictures it fell again."""
    again = [{"shown": i < fresh} for i in range(2)]
    return [
        {
            "attack": name,
            "image": f"{i}.png",
            "prompt": "",
            "tried": [{}] * 4,
            "round": at,
            "asked": "",
            "fresh": again if at is not None else [],
        }
        for i, at in enumerate(rounds)
    ]


def test_figures_of_planted_rows() -> None:
    first = {f"{i}.png": {"base": i != 9, "erased": i == 0} for i in range(10)}
    rows = planted("found", [0, 0, 1, 3, *[None] * 6], fresh=1) + planted("seed_search", [None] * 10)
    found, control = attack_rates(rows, {"found": {**ABOUT, "control": False}, "seed_search": {**ABOUT, "control": True}}, first)
    assert [p["k"] for p in found["curve"]] == [1, 2, 3, 3, 4]  # prompt 0 showed it before any attack
    assert (found["base"]["k"], found["found"], found["fresh"]["k"], found["fresh"]["n"]) == (9, 4, 4, 8)
    assert found["per_picture"] == pytest.approx(1 - 0.6 ** (1 / 5), abs=1e-4)
    beyond = found["beyond"]["seed_search"]
    assert beyond["estimate"] == pytest.approx(0.3) and beyond["low"] < 0.3 < beyond["high"]  # 4 and 1 of 10, paired
    assert [p["k"] for p in control["curve"]] == [1] * 5 and "beyond" not in control
    empty = {"models": {model: {"rates": {}} for model in ("base", "erased")}}
    rates = under_attack(empty, [found, control])["models"]
    assert (rates["erased"]["rates"]["UA_attacked"]["k"], rates["base"]["rates"]["UA_attacked"]["k"]) == (6, 1)


def test_steps_to_revival_are_censored() -> None:
    first = {f"{i}.png": {"base": True, "erased": False} for i in range(4)}

    def rows(*shown: int) -> list[dict]:
        return [{"attack": "tune", "step": 10 * at, "read": [{"shown": i < k} for i in range(4)]} for at, k in enumerate(shown)]

    about = {"tune": {**ABOUT, "control": False}}
    assert attack_rates(rows(0, 1, 2, 4), about, first)[0]["revived"] == 20  # half of the base's rate
    assert attack_rates(rows(0, 1, 1), about, first)[0]["revived"] is None
    assert attack_rates([], about, first)[0]["skipped"] == "none of it has been run yet"


def test_a_judge_without_weights_is_a_named_gap_and_no_pass(
    big: StableDiffusion,  # noqa: F811
    edit: Edit,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    suite = replace(tiny_suite(), judges={"style": {"judge": "imagenet", "weights": "nowhere.pth"}, "object": {"judge": "pocket_object"}})
    (plan,) = Audit.of([edit], suite, "smoke")
    result = audit(big, [edit], plan, tmp_path / "audit")
    assert result["models"] == {} and list(result["missing"]) == ["style"]
    assert reported(tmp_path / "audit", suite.gates, result) == 2
    assert "INCOMPLETE, judge of style" in capsys.readouterr().err
    assert read_json(tmp_path / "audit/report.json")["verdict"]["state"] == "INCONCLUSIVE"


def test_features_without_weights_leave_the_rates(big: StableDiffusion, edit: Edit, tmp_path: Path) -> None:  # noqa: F811
    suite = replace(tiny_suite(), features={"extractor": "inception", "weights": "nowhere.pth"})
    (plan,) = Audit.of([edit], suite, "smoke")
    result = audit(big, [edit], plan, tmp_path / "audit")
    assert list(result["missing"]) == ["features"] and result["distances"] == {} and result["models"]
    assert reported(tmp_path / "audit", suite.gates, result) == 2


def test_a_crashed_attack_is_incomplete(
    big: StableDiffusion,  # noqa: F811
    edit: Edit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> list[dict]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(besieging, "attacked", fails)
    plan = plan_of(edit, {"seed_search": {}})
    result = audit(big, [edit], plan, tmp_path / "audit")
    assert result["attacks"][0]["crashed"] == "RuntimeError: out of memory"
    assert "UA_attacked" not in result["models"]["erased"]["rates"]
    assert reported(tmp_path / "audit", plan.suite.gates, result) == 2


def test_an_oracle_is_a_third_model(
    big: StableDiffusion,  # noqa: F811
    edit: Edit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The base itself as the model that never saw it: the divergence to it is 0, and its rates are the base's."""
    monkeypatch.setattr(oracle, "PROMPTS", 2)
    same = Edit({name: p.detach().clone() for name, p in big.parameters().items() if name in edit.moved()}, edit.info)
    plan = plan_of(edit, {})
    result = audit(big, [edit], plan, tmp_path / "audit", How(oracles=(same,)))
    assert result["models"]["oracle"]["rates"] == result["models"]["base"]["rates"]
    found = {(d["prompts"], d["first"], d["second"]): d for d in result["divergence"]}
    assert found["target", "base", "oracle"]["nats"]["mean"] == [0.0, 0.0, 0.0]
    assert found["target", "erased", "oracle"]["nats"]["mean"][0] > 0
    assert ("kept", "base", "erased") in found
    reported(tmp_path / "audit", plan.suite.gates, result)
    report = read_json(tmp_path / "audit/report.json")
    assert [r["oracle"] for r in report["rates"] if r["name"] == "UA"]
    assert {(p["reading"], p["prompts"]) for p in report["placing"]} >= {("UA", "target"), ("replaced", "target"), ("nats", "kept")}
    assert all(p["way"] is None for p in report["placing"])  # the base has no way to go to itself
    assert "How near to never having known" in (tmp_path / "audit/report.html").read_text()


def test_an_edit_that_is_the_oracle_went_all_the_way(
    big: StableDiffusion,  # noqa: F811
    edit: Edit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(oracle, "PROMPTS", 2)
    asked = plan_of(edit, {})
    plan = replace(asked, suite=replace(asked.suite, features={}))  # distances of pictures take long and are tested elsewhere
    result = audit(big, [edit], plan, tmp_path / "audit", How(oracles=(edit,)))
    reported(tmp_path / "audit", plan.suite.gates, result)
    places = read_json(tmp_path / "audit/report.json")["placing"]
    (nats,) = [p for p in places if p["reading"] == "nats" and p["prompts"] == "target"]
    assert nats["base"][0] > 0 and nats["erased"] == [0, 0, 0] and nats["floor"] is None and nats["way"] == 1
