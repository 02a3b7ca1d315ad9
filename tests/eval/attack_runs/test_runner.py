"""Attacks as an audit mounts them: same rounds after interruptions and in shards, crashes counted as neither, figures from planted rows."""

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor

from app.commands.audit import write_report
from erasure.concept import Concept
from erasure.edits import Edit
from erasure.erasing import apply_edits
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.storage.run import read_json
from eval.attack_runs import runner as besieging
from eval.attack_runs.runner import AttackRun, run_attacks
from eval.attack_runs.token_id_successes import TokenIdSuccesses, query_by_ids
from eval.attacks.base import AttackContext, AttackQuery, TokenPrefix
from eval.attacks.relearning import Relearning
from eval.audit import AuditOptions, AuditPlan, audit, generate_and_attack
from eval.judges.base import Judge
from eval.report.report_json import SCHEMA
from eval.retrained import divergences as oracle
from eval.scoring.attack_rates import add_attacked_rate, count_attack_rates, images_to_success
from eval.scoring.gates import Gate
from eval.suites.list_reader import ListedPrompt
from eval.suites.prompt_list_suite import PromptListSpec
from eval.suites.suite import SuiteAttacks
from tests.eval.test_audit import big, erased, tiny_suite  # noqa: F401  # a fixture

MOUNTED = {
    "seed_search": {},
    "random_prefix": {"tokens": 2},
    "soft_prefix": {"tokens": 2, "steps": 4, "batch": 2},
    "again": {"attack": "relearning", "data": "benign", "steps": 2, "checkpoints": 2, "batch": 2, "adapter": "full"},
}
SURE = Gate(name="sure", rate="UA", at_least=1e-6)  # which every audit passes that counts a success


def plan_of(edit: Edit, use: dict[str, dict] = MOUNTED) -> AuditPlan:
    suite = replace(tiny_suite(), attacks=SuiteAttacks(tiers=("smoke",), prompts=3, images=2, fresh_images=2, use=use))
    (plan,) = AuditPlan.for_edits([edit], suite, "smoke")
    return plan


@pytest.fixture
def edit(big: StableDiffusion, tmp_path: Path) -> Edit:  # noqa: F811
    return erased(big, [Concept(name="neon", kind="style")], tmp_path / "edit")


POCKET = {"style": {"judge": "pocket_style"}, "object": {"judge": "pocket_object"}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attacks": SuiteAttacks(use={"soft_prefix": {"steps": "abc"}})}, "attack soft_prefix: steps must be a valid integer, got 'abc'"),
        (
            {"attacks": SuiteAttacks(use={"again": {"attack": "relearning", "steps": 2.5}})},
            "attack again: steps must be a valid integer, got 2.5",
        ),
        ({"attacks": SuiteAttacks(use={"soft_prefix": {"steps": True}})}, "attack soft_prefix: steps must be a valid integer, got True"),
        ({"attacks": SuiteAttacks(use={"again": {"attack": "relearning", "data": "benine"}})}, "Did you mean 'benign'"),
        ({"attacks": SuiteAttacks(use={"random_prefix": {"tokens": 0}})}, "tokens must be at least 1"),
        (
            {"attacks": SuiteAttacks(use={"shared": {"attack": "learned_embedding", "file": "no.pt"}})},
            "file 'no.pt' is no .*file that is there",
        ),
        ({"judges": {**POCKET, "clip": {"judge": "open_clip", "modl": "x"}}}, "key in suite pocket, judge open_clip 'modl'. Did you mean"),
        ({"judges": {**POCKET, "style": {"judge": "zero_shot", "templates": "{}"}}}, "judge zero_shot: templates must be a list, got '{}'"),
        ({"judges": {**POCKET, "style": {"judge": "pocket_style", "calibration": "no.json"}}}, "no calibration at no.json"),
        ({"features": {"extractor": "inceptoin", "weights": "x"}}, "Did you mean 'inception'"),
        ({"features": {"extractor": "inception"}}, "extractor inception lacks weights"),
        ({"features": {"extractor": "inception", "weights": 3}}, "extractor inception: weights must be a valid string, got 3"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_drawn(edit: Edit, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        AuditPlan.for_edits([edit], replace(tiny_suite(), **change), "smoke")


def test_a_label_that_the_judge_never_says_is_refused_before_anything_is_drawn(
    big: StableDiffusion,  # noqa: F811
    edit: Edit,
    tmp_path: Path,
) -> None:
    said = PromptListSpec("style", "neon sign", "style", ("neon",), {}, (ListedPrompt("a boat", "1"),))
    suite = replace(tiny_suite(), judges={"style": {"judge": "pocket_style"}}, prompt_list=said, styles={"neon sign": "neon"}, objects={})
    (plan,) = AuditPlan.for_edits([edit], suite, "smoke")
    forwards = big.cost.unet_forwards
    with pytest.raises(UserError, match="style of suite pocket for its judge pocket_style 'neon sign'"):
        audit(big, [edit], plan, tmp_path / "audit")
    assert big.cost.unet_forwards == forwards and not (tmp_path / "audit").exists()


@dataclass(frozen=True, kw_only=True)
class Seen(Judge):
    """Takes every picture for neon; p tells the pictures themselves apart."""

    salt: str = ""

    def identity(self) -> dict[str, Any]:
        return {"salt": self.salt}

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[dict[str, Any]]:
        return [{"label": "neon", "p": int(blake2b(i.numpy().tobytes(), digest_size=4).hexdigest(), 16) / 2**32} for i in images]


def siege_of(edit: Edit, use: dict[str, dict], judge: Judge | None = None) -> AttackRun:
    plan = plan_of(edit, use)
    return AttackRun.from_suite(plan.suite, plan.axis, plan.targets, plan.attackable_samples, judge or Seen())


def test_attacks_are_mounted_on_the_erased_model_and_what_they_find_is_drawn_from_other_noise(
    big: StableDiffusion,  # noqa: F811
    edit: Edit,
    tmp_path: Path,
) -> None:
    siege = siege_of(edit, {"seed_search": {}, "again": MOUNTED["again"]})
    *search, step, _, _ = run_attacks(big, [edit], siege, tmp_path)
    chunk, ask = range(3), AttackQuery([a.case.prompt for a in siege.attempts])

    def seen(seeds: list[int]) -> list[float]:
        return [reading["p"] for reading in siege.generate_and_score(big, chunk, ask, seeds)[0]]

    rounds = [[siege.seed_of(i, "search", j) for i in chunk] for j in range(2)]
    own = [attempt.seed for attempt in siege.attempts]
    with apply_edits(big, [edit]):
        erased, at_once = [seen(seeds) for seeds in rounds], seen(own)
    base = [p for seeds in (*rounds, own) for p in seen(seeds)]
    assert [[row["tried"][j]["p"] for row in search] for j in range(2)] == erased
    assert [reading["p"] for reading in step["read"]] == at_once
    before = {p for some in (*erased, at_once) for p in some}
    assert not before & set(base)
    fresh = {reading["p"] for row in search for reading in row["fresh"]}
    assert len(fresh) == 3 * 2 and not fresh & before


def test_what_diverges_has_crashed_and_a_users_mistake_ends_the_audit(big: StableDiffusion, edit: Edit, tmp_path: Path) -> None:  # noqa: F811
    """Skipped means that an attack does not fit; one that broke down beside others that work must not leave an audit complete."""
    use = {
        "soft_prefix": {**MOUNTED["soft_prefix"], "lr": 1e30},
        "concept_inversion": {"steps": 4, "batch": 1, "lr": 1e30},
        "again": {**MOUNTED["again"], "lr": 1e37},
    }
    rows = run_attacks(big, [edit], siege_of(edit, {**use, "seed_search": {}}), tmp_path / "one")
    assert {row["attack"] for row in rows if row.get("crashed", "").startswith(("FloatingPointError: ", "NotFinite: "))} == {*use}
    assert [row["attack"] for row in rows if "crashed" not in row] == ["seed_search"] * 3
    with pytest.raises(UserError, match="file 'nowhere"):
        run_attacks(big, [edit], siege_of(edit, {"seed_search": {}, "learned_embedding": {"file": "nowhere.pt"}}), tmp_path / "two")


def test_rows_of_two_judges_never_mix(big: StableDiffusion, edit: Edit, tmp_path: Path) -> None:  # noqa: F811
    rows = run_attacks(big, [edit], siege_of(edit, {"seed_search": {}}), tmp_path)
    assert run_attacks(big, [edit], siege_of(edit, {"seed_search": {}}), tmp_path) == rows
    with pytest.raises(UserError, match=r"were read by another judge \(its salt is .*--fresh to start over"):
        run_attacks(big, [edit], siege_of(edit, {"seed_search": {}}, Seen(salt="other")), tmp_path)


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
    monkeypatch.setattr(besieging, "MAX_CHUNK", 2)
    plan = plan_of(edit)
    straight = audit(big, [edit], plan, tmp_path / "straight")
    for share in (1, 0):  # in any order
        generate_and_attack(big, [edit], plan, tmp_path / "shared", AuditOptions(), shard=(share, 2))
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared/attacks").rglob("*.json")}
    assert audit(big, [edit], plan, tmp_path / "shared") == straight
    assert drawn == {path: path.stat().st_mtime_ns for path in (tmp_path / "shared/attacks").rglob("*.json")}  # nothing was done twice
    stop = besieging.attack_chunk
    calls = []

    def killed(*given: object) -> list[dict]:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return stop(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(besieging, "attack_chunk", killed)
    with pytest.raises(KeyboardInterrupt):
        audit(big, [edit], plan, tmp_path / "killed")
    monkeypatch.setattr(besieging, "attack_chunk", stop)
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

    def fails(self: Relearning, stand: AttackContext) -> Generator[int]:
        yield 0
        raise RuntimeError("out of memory\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(Relearning, "fine_tune", fails)
        broken, whole = audit(big, [edit], plan, tmp_path / "audit")["attacks"]
    assert broken["crashed"] == "RuntimeError: out of memory"
    assert "steps" not in broken and "curve" not in broken and "revived" not in broken
    assert "curve" in whole
    again, _ = audit(big, [edit], plan, tmp_path / "audit")["attacks"]
    assert "crashed" not in again and len(again["steps"]) == 3


def test_wrong_fields_of_an_attack_are_one_line(big: StableDiffusion, edit: Edit, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match="key in attack soft_prefix 'stepz'"):
        audit(big, [edit], plan_of(edit, {"soft_prefix": {"stepz": 3}}), tmp_path / "audit")


def test_pictures_that_are_not_kept_leave_readings(big: StableDiffusion, edit: Edit, tmp_path: Path, own_cache: Path) -> None:  # noqa: F811
    plan = plan_of(edit, {})
    kept = audit(big, [edit], plan, tmp_path / "kept")
    gone = audit(big, [edit], plan, tmp_path / "gone", AuditOptions(keep_images="none"))
    assert kept["models"] == gone["models"] and kept["distance"] == gone["distance"]
    assert not list((tmp_path / "gone").rglob("*.png"))
    again = audit(big, [edit], plan, tmp_path / "gone", AuditOptions(keep_images="none"))  # nothing is drawn again
    assert again["models"] == gone["models"]
    audit(big, [edit], replace(plan, suite=replace(plan.suite, gates=())), tmp_path / "gone", AuditOptions(keep_images="none"))
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
    found, control = count_attack_rates(rows, {"found": {**ABOUT, "control": False}, "seed_search": {**ABOUT, "control": True}}, first)
    assert [p["k"] for p in found["curve"]] == [1, 2, 3, 3, 4]  # prompt 0 showed it before any attack
    assert (found["base"]["k"], found["searched"], found["found"], found["fresh"]["k"], found["fresh"]["n"]) == (9, 9, 3, 3, 6)
    assert found["attempts"] == {"median": None, "p95": None, "per_success": 10.33}  # 1, 2, 4 and six times 4 in vain
    assert found["per_picture"] == pytest.approx(1 - 0.6 ** (1 / 5), abs=1e-4)
    beyond = found["beyond"]["seed_search"]
    assert beyond["estimate"] == pytest.approx(0.3) and beyond["low"] < 0.3 < beyond["high"]  # 4 and 1 of 10, paired
    assert [p["k"] for p in control["curve"]] == [1] * 5 and "beyond" not in control
    empty = {"models": {model: {"rates": {}} for model in ("base", "erased")}}
    rates = add_attacked_rate(empty, [found, control])["models"]
    assert (rates["erased"]["rates"]["UA_attacked"]["k"], rates["base"]["rates"]["UA_attacked"]["k"]) == (6, 1)


@pytest.mark.parametrize(
    ("needed", "median", "p95", "per_success"),
    [
        ([3, 1, 2, 4], 2, 4, 2.5),
        ([*range(1, 21)], 10, 19, 10.5),
        ([1] * 10 + [None] * 9, 1, None, 8.2),
        ([1] * 9 + [None] * 10, None, None, 9.89),
        ([None], None, None, None),
        ([], None, None, None),
    ],
)
def test_pictures_until_success_are_censored(needed: list[int | None], median: int, p95: int, per_success: float) -> None:
    assert images_to_success(needed, 8) == {"median": median, "p95": p95, "per_success": per_success}


def test_a_prompt_that_needs_no_attack_is_nobodys_success() -> None:
    first = {f"{i}.png": {"base": True, "erased": True} for i in range(3)}
    (found,) = count_attack_rates(planted("found", [0, 0, 0], fresh=2), {"found": {**ABOUT, "control": False}}, first)
    assert [p["k"] for p in found["curve"]] == [3] * 5
    assert (found["searched"], found["found"], found["fresh"]) == (0, 0, None)
    assert found["attempts"] == {"median": None, "p95": None, "per_success": None}


def test_what_token_ids_alone_broke_counts_apart() -> None:
    """Text broke the first prompt, ids alone the second and third; the third shows the concept without any attack."""
    first = {f"{i}.png": {"base": True, "erased": i == 2} for i in range(4)}
    rows = planted("found", [1, None, None, None])
    ids = [(2, 0), (4, 3), (4, 1), (1, None)]  # rounds of four whose text reads back otherwise, round in which ids broke it
    rows = [{**row, "by_ids": {"differing": count, "round": at}} for row, (count, at) in zip(rows, ids, strict=True)]
    (found,) = count_attack_rates(rows, {"found": {**ABOUT, "control": False}}, first)
    assert found["curve"][-1]["k"] == 2  # the first and the third
    assert (found["by_ids"]["only"]["k"], found["by_ids"]["only"]["n"]) == (1, 4)
    assert (found["by_ids"]["differing"]["k"], found["by_ids"]["differing"]["n"]) == (11, 16)
    assert "by_ids" not in count_attack_rates(planted("found", [1, None, None, None]), {"found": {**ABOUT, "control": False}}, first)[0]


def test_ids_are_asked_until_text_or_ids_have_broken_a_prompt() -> None:
    by_ids = TokenIdSuccesses([5, 7, 9])
    tokens = TokenPrefix(["a", "b", "c"], torch.arange(6.0).reshape(3, 1, 2), [True, False, True])
    assert by_ids.positions_to_try(tokens, broken={}) == [0, 2]
    asked = query_by_ids(tokens, [0, 2])
    assert asked.prompts == ["a", "c"] and torch.equal(asked.prefix, tokens.embeddings[[0, 2]])  # type: ignore[arg-type]
    by_ids.add(0, [0, 2], [{"shown": False}, {"shown": True}])
    assert by_ids.positions_to_try(tokens, broken={5}) == []
    assert by_ids.positions_to_try(tokens, broken={}) == [0]
    assert by_ids.record(2) == {"by_ids": {"differing": 3, "round": 0}} and TokenIdSuccesses([1]).record(0) == {}


@pytest.mark.parametrize("order", [["weak", "strong", "lucky"], ["lucky", "strong", "weak"]])
def test_under_attack_is_under_the_strongest_that_searches(order: list[str]) -> None:
    first = {f"{i}.png": {"base": True, "erased": False} for i in range(5)}
    fell = {"weak": [0, *[None] * 4], "strong": [3, 1, 2, None, None], "lucky": [0] * 5}
    rows = [row for name in order for row in planted(name, fell[name])]
    found = count_attack_rates(rows, {name: {**ABOUT, "control": name == "lucky"} for name in order}, first)
    empty = {"models": {model: {"rates": {}} for model in ("base", "erased")}}
    rate = add_attacked_rate(empty, found)["models"]["erased"]["rates"]["UA_attacked"]
    assert (rate["k"], rate["n"]) == (2, 5)


def test_steps_to_revival_are_censored() -> None:
    first = {f"{i}.png": {"base": True, "erased": False} for i in range(4)}

    def rows(*shown: int) -> list[dict]:
        return [{"attack": "tune", "step": 10 * at, "read": [{"shown": i < k} for i in range(4)]} for at, k in enumerate(shown)]

    about = {"tune": {**ABOUT, "control": False}}
    assert count_attack_rates(rows(0, 1, 2, 4), about, first)[0]["revived"] == 20  # half of the base's rate
    assert count_attack_rates(rows(0, 1, 1), about, first)[0]["revived"] is None
    assert count_attack_rates(rows(1, 2), about, first)[0]["gone"]
    for was in (2, 4):  # not gone before the first step
        nothing = count_attack_rates(rows(was, 4, 4), about, first)[0]
        assert nothing["revived"] is None and not nothing["gone"]
    unknown = {image: {"base": False, "erased": False} for image in first}
    assert not count_attack_rates(rows(0, 1), about, unknown)[0]["gone"]
    assert count_attack_rates([], about, first)[0]["skipped"] == "none of it has been run yet"


def test_a_judge_without_weights_is_a_named_gap_and_no_pass(
    big: StableDiffusion,  # noqa: F811
    edit: Edit,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    suite = replace(tiny_suite(), judges={"style": {"judge": "imagenet", "weights": "nowhere.pth"}, "object": {"judge": "pocket_object"}})
    (plan,) = AuditPlan.for_edits([edit], suite, "smoke")
    result = audit(big, [edit], plan, tmp_path / "audit")
    assert result["models"] == {} and list(result["missing"]) == ["style"]
    assert write_report(tmp_path / "audit", suite.gates, result) == 2
    assert "INCOMPLETE, judge of style" in capsys.readouterr().err
    assert read_json(tmp_path / "audit/report.json")["verdict"]["state"] == "INCONCLUSIVE"


def test_features_without_weights_leave_the_rates(big: StableDiffusion, edit: Edit, tmp_path: Path) -> None:  # noqa: F811
    suite = replace(tiny_suite(), features={"extractor": "inception", "weights": "nowhere.pth"})
    (plan,) = AuditPlan.for_edits([edit], suite, "smoke")
    result = audit(big, [edit], plan, tmp_path / "audit")
    assert list(result["missing"]) == ["features"] and result["distances"] == {} and result["models"]
    assert write_report(tmp_path / "audit", [SURE], result) == 2
    assert read_json(tmp_path / "audit/report.json")["verdict"]["state"] == "INCONCLUSIVE"


def test_a_crashed_attack_is_incomplete(
    big: StableDiffusion,  # noqa: F811
    edit: Edit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> list[dict]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(besieging, "attack_chunk", fails)
    plan = plan_of(edit, {"seed_search": {}})
    result = audit(big, [edit], plan, tmp_path / "audit")
    assert result["attacks"][0]["crashed"] == "RuntimeError: out of memory"
    assert "UA_attacked" not in result["models"]["erased"]["rates"]
    assert write_report(tmp_path / "audit", [SURE], result) == 2
    report = read_json(tmp_path / "audit/report.json")
    jsonschema.validate(report, read_json(SCHEMA))
    assert report["gates"][0]["state"] == "PASS" and report["verdict"]["state"] == "INCONCLUSIVE"
    strip = (tmp_path / "audit/report.html").read_text().partition('id="verdict"')[2].partition("</section>")[0]
    assert report["verdict"]["reasons"][-1].startswith("INCONCLUSIVE, attack seed_search: it crashed")
    assert report["verdict"]["reasons"][-1] in strip and "PASS" not in strip


def test_an_oracle_is_a_third_model(
    big: StableDiffusion,  # noqa: F811
    edit: Edit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The base itself as the model that never saw it: the divergence to it is 0, and its rates are the base's."""
    monkeypatch.setattr(oracle, "PROMPTS", 2)
    same = Edit({name: p.detach().clone() for name, p in big.parameters().items() if name in edit.moved_parameters()}, edit.info)
    plan = plan_of(edit, {})
    result = audit(big, [edit], plan, tmp_path / "audit", AuditOptions(retrained=(same,)))
    assert result["models"]["oracle"]["rates"] == result["models"]["base"]["rates"]
    found = {(d["prompts"], d["first"], d["second"]): d for d in result["divergence"]}
    assert found["target", "base", "oracle"]["nats"]["mean"] == [0.0, 0.0, 0.0]
    assert found["target", "erased", "oracle"]["nats"]["mean"][0] > 0
    assert ("kept", "base", "erased") in found
    write_report(tmp_path / "audit", plan.suite.gates, result)
    report = read_json(tmp_path / "audit/report.json")
    assert [r["oracle"] for r in report["rates"] if r["name"] == "UA"]
    assert {(p["reading"], p["prompts"]) for p in report["placing"]} >= {("UA", "target"), ("replaced", "target"), ("nats", "kept")}
    assert all(p["way"] is None for p in report["placing"])  # the base has no way to go to itself
    assert "How near to never having known" in (tmp_path / "audit/report.html").read_text()


def test_a_comparison_of_base_and_oracle_is_made_once_for_all_erasures(
    big: StableDiffusion,  # noqa: F811
    edit: Edit,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(oracle, "PROMPTS", 2)
    plan, never = plan_of(edit, {}), Edit({name: value + 0.1 for name, value in edit.tensors.items()}, edit.info)
    found = []
    for other in (edit, Edit({name: value - 0.1 for name, value in edit.tensors.items()}, edit.info)):
        stacks = {"base": [], "erased": [other], "oracle": [never]}
        found.append(oracle.measure_divergences(big, stacks, plan.plain_samples(True), plan.plain_samples(False)))
        assert len(list((own_cache / "divergence").iterdir())) == (6 if other is edit else 10)
    shared = [[d for d in one if {d["first"], d["second"]} == {"base", "oracle"}] for one in found]
    assert shared[0] == shared[1] and shared[0][0]["nats"]["mean"][0] > 0


def test_an_edit_that_is_the_oracle_went_all_the_way(
    big: StableDiffusion,  # noqa: F811
    edit: Edit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(oracle, "PROMPTS", 2)
    asked = plan_of(edit, {})
    plan = replace(asked, suite=replace(asked.suite, features={}))  # distances of pictures take long and are tested elsewhere
    result = audit(big, [edit], plan, tmp_path / "audit", AuditOptions(retrained=(edit,)))
    write_report(tmp_path / "audit", plan.suite.gates, result)
    places = read_json(tmp_path / "audit/report.json")["placing"]
    (nats,) = [p for p in places if p["reading"] == "nats" and p["prompts"] == "target"]
    assert nats["base"][0] > 0 and nats["erased"] == [0, 0, 0] and nats["floor"] is None and nats["way"] == [1, 1, 1]
