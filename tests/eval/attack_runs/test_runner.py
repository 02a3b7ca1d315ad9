"""Attacks as an audit runs them: same rounds after interruptions and in shards, crashes that count as neither, figures of planted rows."""

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

from erasure.edits import Edit, apply_edits
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.storage.run import read_json
from eval.attack_runs.attack_run import AttackRun, build_attacks
from eval.attack_runs.prompt_search import attack_chunk
from eval.attack_runs.runner import run_attacks
from eval.attack_runs.token_id_successes import TokenIdSuccesses, query_by_ids
from eval.attacks.base import AttackContext, AttackQuery, TokenPrefix
from eval.attacks.relearning import Relearning
from eval.auditing.plan import AuditPlan
from eval.auditing.prepare import AuditOptions, prepare_audit
from eval.auditing.run import audit_plan, generate_and_attack
from eval.judges.base import Judge
from eval.records.attacks import AttackInfo, AttackNotRun, FineTuningAttack, ImagesToSuccess, PromptSearch
from eval.records.gates import Gate
from eval.records.models import BASE, ERASED, AuditedModel, retrained_model
from eval.records.rates import RateName
from eval.records.row_files import read_attack_rows
from eval.records.rows import AttackRow, FailedAttackRow, FineTuningRow, SearchRow, TokenIdOutcome
from eval.records.scores import LabelScore
from eval.report.report_json import SCHEMA
from eval.retrained.divergences import measure_divergences
from eval.scoring.attack_rates import ShownByImage, add_attacked_rate, count_attack_rates, images_to_success
from eval.suites.formats import ExtractorSpec, JudgePart, JudgeSpec, ListTier, PromptListSuite, SuiteAttacks, parse_attacks
from eval.suites.list_reader import ListedPrompt
from tests.command_line import report_and_print
from tests.eval.factories import attack_info, attack_scores, audit_counts, model_figures, planted_attack_rows
from tests.factories import ATTACKS, attack_plan, small_suite

EASY_GATE = Gate(name="easy", rate=RateName.UA, at_least=1e-6)  # every audit passes it that counts a success


POCKET_JUDGES: dict[JudgePart, JudgeSpec] = {"style": JudgeSpec("pocket_style"), "object": JudgeSpec("pocket_object")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"attacks": SuiteAttacks(use=parse_attacks({"soft_prefix": {"steps": "abc"}}))},
            "attack soft_prefix: steps must be a whole number, got 'abc'",
        ),
        (
            {"attacks": SuiteAttacks(use=parse_attacks({"again": {"attack": "relearning", "steps": 2.5}}))},
            "attack again: steps must be a whole number, got 2.5",
        ),
        (
            {"attacks": SuiteAttacks(use=parse_attacks({"soft_prefix": {"steps": True}}))},
            "attack soft_prefix: steps must be a whole number, got True",
        ),
        ({"attacks": SuiteAttacks(use=parse_attacks({"again": {"attack": "relearning", "data": "benine"}}))}, "Did you mean 'benign'"),
        ({"attacks": SuiteAttacks(use=parse_attacks({"random_prefix": {"tokens": 0}}))}, "tokens must be at least 1"),
        (
            {"attacks": SuiteAttacks(use=parse_attacks({"shared": {"attack": "learned_embedding", "file": "no.pt"}}))},
            r"file 'no.pt' does not exist or is not a \.safetensors",
        ),
        (
            {"judges": {**POCKET_JUDGES, "clip": JudgeSpec("open_clip", {"modl": "x"})}},
            "key in suite pocket, judge open_clip 'modl'. Did you mean",
        ),
        (
            {"judges": {**POCKET_JUDGES, "style": JudgeSpec("zero_shot", {"templates": "{}"})}},
            "judge zero_shot: templates must be a list of texts, got '{}'",
        ),
        ({"judges": {**POCKET_JUDGES, "style": JudgeSpec("pocket_style", calibration="no.json")}}, "no calibration at no.json"),
        ({"features": ExtractorSpec("inceptoin", {"weights": "x"})}, "Did you mean 'inception'"),
        ({"features": ExtractorSpec("inception")}, "extractor inception lacks weights"),
        ({"features": ExtractorSpec("inception", {"weights": 3})}, "extractor inception: weights must be text, got 3"),
    ],
)
def test_wrong_fields_are_refused_before_anything_is_generated(neon_edit: Edit, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AuditPlan.for_edits([neon_edit], replace(small_suite(), **change), "smoke")


def test_an_unknown_label_is_refused_before_anything_is_generated(
    pocket_sized_model: StableDiffusion,
    neon_edit: Edit,
    tmp_path: Path,
) -> None:
    suite = PromptListSuite(
        name="pocket",
        version=1,
        steps=2,
        guidance=4.0,
        judges={"style": JudgeSpec("pocket_style")},
        concept="neon",
        label="neon sign",
        kind="style",
        names=("neon",),
        tiers={"smoke": ListTier(1)},
        prompts=(ListedPrompt("a boat", "1"),),
    )
    (plan,) = AuditPlan.for_edits([neon_edit], suite, "smoke")
    forwards = pocket_sized_model.cost.unet_forwards
    with pytest.raises(UserError, match="style of suite pocket for its judge pocket_style 'neon sign'"):
        audit_plan(pocket_sized_model, [neon_edit], plan, tmp_path / "audit")
    assert pocket_sized_model.cost.unet_forwards == forwards and not (tmp_path / "audit").exists()


@dataclass(frozen=True, kw_only=True)
class NeonJudge(Judge):
    """Labels every image neon; p identifies the image."""

    salt: str = ""

    def identity(self) -> dict[str, Any]:
        return {"salt": self.salt}

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[LabelScore]:
        digests = [blake2b(image.numpy().tobytes(), digest_size=4).hexdigest() for image in images]
        return [LabelScore(label="neon", p=int(digest, 16) / 2**32) for digest in digests]


def attack_run_of(edit: Edit, use: dict[str, dict], judge: Judge | None = None) -> AttackRun:
    plan = attack_plan(edit, use)
    return AttackRun.from_suite(
        plan.suite, plan.axis, plan.targets, plan.attackable_samples, judge or NeonJudge(), build_attacks(plan.suite.attacks.use)
    )


def test_attacks_run_on_the_erased_model_and_found_prompts_get_fresh_noise(
    pocket_sized_model: StableDiffusion,
    neon_edit: Edit,
    tmp_path: Path,
) -> None:
    attack_run = attack_run_of(neon_edit, {"seed_search": {}, "again": ATTACKS["again"]})
    rows = run_attacks(pocket_sized_model, [neon_edit], attack_run, tmp_path)
    search, (step, _, _) = [row for row in rows if isinstance(row, SearchRow)], [row for row in rows if isinstance(row, FineTuningRow)]
    chunk, query = range(3), AttackQuery([sample.case.prompt for sample in attack_run.samples])

    def image_ids(seeds: list[int]) -> list[float]:
        return [score.p for score in attack_run.generate_and_score(pocket_sized_model, chunk, query, seeds)[0]]

    rounds = [[attack_run.seed_of(i, "search", j) for i in chunk] for j in range(2)]
    own = [sample.seed for sample in attack_run.samples]
    with apply_edits(pocket_sized_model, [neon_edit]):
        searched, fine_tuned = [image_ids(seeds) for seeds in rounds], image_ids(own)
    base = {p for seeds in (*rounds, own) for p in image_ids(seeds)}
    assert [[row.search_scores[j].p for row in search] for j in range(2)] == searched
    assert [score.p for score in step.scores] == fine_tuned
    erased = {p for ids in (*searched, fine_tuned) for p in ids}
    assert not erased & base
    fresh = {score.p for row in search for score in row.fresh_scores}
    assert len(fresh) == 3 * 2 and not fresh & erased


def test_divergence_is_a_crash_and_a_users_mistake_ends_the_audit(
    pocket_sized_model: StableDiffusion, neon_edit: Edit, tmp_path: Path
) -> None:
    """Skipped means that an attack does not apply; one that crashes beside others that work must leave the audit incomplete."""
    use = {
        "soft_prefix": {**ATTACKS["soft_prefix"], "lr": 1e30},
        "concept_inversion": {"steps": 4, "batch": 1, "lr": 1e30},
        "again": {**ATTACKS["again"], "lr": 1e37},
    }
    rows = run_attacks(pocket_sized_model, [neon_edit], attack_run_of(neon_edit, {**use, "seed_search": {}}), tmp_path / "one")
    crashed = {row.attack: row.crashed for row in rows if isinstance(row, FailedAttackRow)}
    assert crashed.keys() == {*use} and all(why.startswith(("FloatingPointError: ", "NotFiniteError: ")) for why in crashed.values())
    assert [row.attack for row in rows if row.attack not in crashed] == ["seed_search"] * 3
    with pytest.raises(UserError, match="file 'nowhere"):
        run_attacks(
            pocket_sized_model,
            [neon_edit],
            attack_run_of(neon_edit, {"seed_search": {}, "learned_embedding": {"file": "nowhere.pt"}}),
            tmp_path / "two",
        )


def test_rows_of_two_judges_never_mix(pocket_sized_model: StableDiffusion, neon_edit: Edit, tmp_path: Path) -> None:
    rows = run_attacks(pocket_sized_model, [neon_edit], attack_run_of(neon_edit, {"seed_search": {}}), tmp_path)
    assert run_attacks(pocket_sized_model, [neon_edit], attack_run_of(neon_edit, {"seed_search": {}}), tmp_path) == rows
    with pytest.raises(UserError, match=r"were scored by another judge \(its salt is .*--fresh to start over"):
        run_attacks(pocket_sized_model, [neon_edit], attack_run_of(neon_edit, {"seed_search": {}}, NeonJudge(salt="other")), tmp_path)


def test_an_audit_under_attack_counts_every_image(pocket_sized_model: StableDiffusion, neon_edit: Edit, tmp_path: Path) -> None:
    before = pocket_sized_model.fingerprint()
    result = audit_plan(pocket_sized_model, [neon_edit], attack_plan(neon_edit), tmp_path / "audit")
    assert pocket_sized_model.fingerprint() == before
    assert [attack.name for attack in result.attacks] == list(ATTACKS)
    assert not result.attacks_not_run, result.attacks
    rows = read_attack_rows(tmp_path / "audit/attacks/attacks.jsonl")
    search = [row for row in rows if isinstance(row, SearchRow) and row.attack == "soft_prefix"]
    assert [len(row.search_scores) for row in search] == [2, 2, 2]
    assert all(len(row.fresh_scores) == (0 if row.round is None else 2) for row in search)
    assert [row.step for row in rows if isinstance(row, FineTuningRow)] == [0, 1, 2]
    assert [len(attack.curve) for attack in result.searches] == [3, 3, 3]
    assert result.models[ERASED].rates[RateName.UA_ATTACKED].n == 3


def test_shards_and_interruptions_change_nothing(
    pocket_sized_model: StableDiffusion,
    neon_edit: Edit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eval.attack_runs.attack_run.MAX_CHUNK", 2)
    plan = attack_plan(neon_edit)
    straight = audit_plan(pocket_sized_model, [neon_edit], plan, tmp_path / "straight")
    for share in (1, 0):  # in any order
        generate_and_attack(prepare_audit(pocket_sized_model, [neon_edit], plan, tmp_path / "shared"), (share, 2))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared/attacks").rglob("*.json")}
    assert audit_plan(pocket_sized_model, [neon_edit], plan, tmp_path / "shared") == straight
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "shared/attacks").rglob("*.json")}  # nothing was done twice
    calls = []

    def interrupted_chunk(*args: Any) -> tuple[SearchRow, ...]:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return attack_chunk(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("eval.attack_runs.prompt_search.attack_chunk", interrupted_chunk)
        audit_plan(pocket_sized_model, [neon_edit], plan, tmp_path / "killed")
    assert audit_plan(pocket_sized_model, [neon_edit], plan, tmp_path / "killed") == straight
    for name in ("result.json", "attacks/attacks.jsonl", "samples.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_a_crash_is_not_a_success_and_is_repeated(
    pocket_sized_model: StableDiffusion,
    neon_edit: Edit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = attack_plan(neon_edit, {"again": ATTACKS["again"], "seed_search": {}})

    def fail(self: Relearning, context: AttackContext) -> Generator[int]:
        yield 0
        raise RuntimeError("out of memory\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(Relearning, "fine_tune", fail)
        broken, complete = audit_plan(pocket_sized_model, [neon_edit], plan, tmp_path / "audit").attacks
    assert isinstance(broken, AttackNotRun) and broken.crashed == "RuntimeError: out of memory"
    assert isinstance(complete, PromptSearch)
    repeated, _ = audit_plan(pocket_sized_model, [neon_edit], plan, tmp_path / "audit").attacks
    assert isinstance(repeated, FineTuningAttack) and len(repeated.steps) == 3


def test_wrong_fields_of_an_attack_are_one_line(pocket_sized_model: StableDiffusion, neon_edit: Edit, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="key in attack soft_prefix 'stepz'"):
        audit_plan(pocket_sized_model, [neon_edit], attack_plan(neon_edit, {"soft_prefix": {"stepz": 3}}), tmp_path / "audit")


def test_scores_stay_when_images_are_not_kept(
    pocket_sized_model: StableDiffusion, neon_edit: Edit, tmp_path: Path, own_cache: Path
) -> None:
    plan = attack_plan(neon_edit, {})
    options, out = AuditOptions(keep_images="none"), tmp_path / "without"
    with_images = audit_plan(pocket_sized_model, [neon_edit], plan, tmp_path / "with")
    without = audit_plan(pocket_sized_model, [neon_edit], plan, out, options)
    assert with_images.models == without.models and with_images.pixel_distance == without.pixel_distance
    assert not list(out.rglob("*.png"))
    repeated = audit_plan(pocket_sized_model, [neon_edit], plan, out, options)  # nothing is generated again
    assert repeated.models == without.models
    audit_plan(pocket_sized_model, [neon_edit], replace(plan, suite=replace(plan.suite, gates=())), out, options)
    assert without.gates and json.loads((out / "result.json").read_text())["gates"] == []
    assert not list(out.rglob("*.png"))


SEARCH = [attack_info("search")]


def count_searches(rows: Sequence[AttackRow], infos: Sequence[AttackInfo], shown_unattacked: ShownByImage) -> list[PromptSearch]:
    """The figures of attacks that all are searches."""
    records = count_attack_rates(rows, infos, shown_unattacked)
    searches = [record for record in records if isinstance(record, PromptSearch)]
    assert len(searches) == len(records)
    return searches


def ua_attacked(attacks: Sequence[PromptSearch]) -> dict[AuditedModel, tuple[int, int]]:
    """k and n of UA_attacked, by model."""
    counts = audit_counts(models={model: model_figures() for model in (BASE, ERASED)})
    rates = {model: figures.rates[RateName.UA_ATTACKED] for model, figures in add_attacked_rate(counts, attacks).models.items()}
    return {model: (rate.k, rate.n) for model, rate in rates.items()}


def test_figures_of_planted_rows() -> None:
    first = {f"{i}.png": {BASE: i != 9, ERASED: i == 0} for i in range(10)}
    rows = planted_attack_rows("search", [0, 0, 1, 3, *[None] * 6], fresh=1) + planted_attack_rows("seed_search", [None] * 10)
    search, control = count_searches(rows, [*SEARCH, attack_info("seed_search", control=True)], first)
    assert [point.k for point in search.curve] == [1, 2, 3, 3, 4]  # prompt 0 showed it before any attack
    assert (search.base.k, search.searched, search.broken_by_search) == (9, 9, 3)
    assert search.fresh_noise and (search.fresh_noise.k, search.fresh_noise.n) == (3, 6)
    # 1, 2, 4 and six times 4 without success
    assert search.images_to_success == ImagesToSuccess(median=None, p95=None, per_success=10.33)
    assert search.per_image == pytest.approx(1 - 0.6 ** (1 / 5), abs=1e-4)
    assert search.over_controls and (difference := search.over_controls["seed_search"])
    assert difference.estimate == pytest.approx(0.3) and difference.low < 0.3 < difference.high  # 4 and 1 of 10, paired
    assert [point.k for point in control.curve] == [1] * 5 and control.over_controls is None
    assert ua_attacked([search, control]) == {ERASED: (6, 10), BASE: (1, 10)}


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
def test_images_to_success_are_censored(needed: list[int | None], median: int, p95: int, per_success: float) -> None:
    assert images_to_success(needed, 8) == ImagesToSuccess(median=median, p95=p95, per_success=per_success)


def test_a_prompt_that_needs_no_attack_is_not_a_success() -> None:
    first = {f"{i}.png": {BASE: True, ERASED: True} for i in range(3)}
    (search,) = count_searches(planted_attack_rows("search", [0, 0, 0], fresh=2), SEARCH, first)
    assert [point.k for point in search.curve] == [3] * 5
    assert (search.searched, search.broken_by_search, search.fresh_noise) == (0, 0, None)
    assert search.images_to_success == ImagesToSuccess(median=None, p95=None, per_success=None)


def test_what_only_token_ids_broke_is_counted_separately() -> None:
    """Text broke the first prompt, only token ids the second and third; the third shows the concept without any attack."""
    first = {f"{i}.png": {BASE: True, ERASED: i == 2} for i in range(4)}
    rows = planted_attack_rows("search", [1, None, None, None])
    assert count_searches(rows, SEARCH, first)[0].token_ids is None
    by_ids = [(2, 0), (4, 3), (4, 1), (1, None)]  # rounds of four whose text has other token ids, round in which the ids broke it
    rows = [
        replace(row, token_ids=TokenIdOutcome(failed_round_trips=failed, round=broken_in))
        for row, (failed, broken_in) in zip(rows, by_ids, strict=True)
    ]
    (search,) = count_searches(rows, SEARCH, first)
    assert search.curve[-1].k == 2  # the first and the third
    assert search.token_ids
    assert (search.token_ids.ids_only.k, search.token_ids.ids_only.n) == (1, 4)
    assert (search.token_ids.failed_round_trips.k, search.token_ids.failed_round_trips.n) == (11, 16)


def test_ids_are_tried_until_text_or_ids_break_a_prompt() -> None:
    by_ids = TokenIdSuccesses([5, 7, 9])
    tokens = TokenPrefix(["a", "b", "c"], torch.arange(6.0).reshape(3, 1, 2), [True, False, True])
    assert by_ids.positions_to_try(tokens, broken={}) == [0, 2]
    query = query_by_ids(tokens, [0, 2])
    assert query.prompts == ["a", "c"] and torch.equal(query.prefix, tokens.embeddings[[0, 2]])  # type: ignore[arg-type]
    by_ids.add(0, [0, 2], attack_scores(False, True))
    assert by_ids.positions_to_try(tokens, broken={5}) == []
    assert by_ids.positions_to_try(tokens, broken={}) == [0]
    assert by_ids.outcome(2) == TokenIdOutcome(failed_round_trips=3, round=0) and TokenIdSuccesses([1]).outcome(0) is None


@pytest.mark.parametrize("order", [["weak", "strong", "lucky"], ["lucky", "strong", "weak"]])
def test_ua_attacked_is_of_the_strongest_search(order: list[str]) -> None:
    first = {f"{i}.png": {BASE: True, ERASED: False} for i in range(5)}
    rounds: dict[str, list[int | None]] = {"weak": [0, *[None] * 4], "strong": [3, 1, 2, None, None], "lucky": [0] * 5}
    rows = [row for name in order for row in planted_attack_rows(name, rounds[name])]
    attacks = count_searches(rows, [attack_info(name, control=name == "lucky") for name in order], first)
    assert ua_attacked(attacks)[ERASED] == (2, 5)


def test_steps_to_revival_are_censored() -> None:
    first = {f"{i}.png": {BASE: True, ERASED: False} for i in range(4)}

    def rows(*shown: int) -> list[FineTuningRow]:
        return [FineTuningRow(attack="tune", step=10 * i, scores=attack_scores(*(j < k for j in range(4)))) for i, k in enumerate(shown)]

    def figures(*shown: int, unattacked: ShownByImage = first) -> FineTuningAttack:
        (record,) = count_attack_rates(rows(*shown), [attack_info("tune")], unattacked)
        assert isinstance(record, FineTuningAttack)
        return record

    assert figures(0, 1, 2, 4).revived_at_step == 20  # half of the base's rate
    assert figures(0, 1, 1).revived_at_step is None
    assert figures(1, 2).erased_before
    for before in (2, 4):  # not erased before the first step
        not_erased = figures(before, 4, 4)
        assert not_erased.revived_at_step is None and not not_erased.erased_before
    assert not figures(0, 1, unattacked={image: {BASE: False, ERASED: False} for image in first}).erased_before
    (not_run,) = count_attack_rates([], [attack_info("tune")], first)
    assert isinstance(not_run, AttackNotRun) and not_run.skipped == "none of it has been run yet"


def test_a_judge_without_weights_is_reported_and_nothing_passes(
    pocket_sized_model: StableDiffusion,
    neon_edit: Edit,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    suite = replace(small_suite(), judges={**POCKET_JUDGES, "style": JudgeSpec("imagenet", {"weights": "nowhere.pth"})})
    (plan,) = AuditPlan.for_edits([neon_edit], suite, "smoke")
    result = audit_plan(pocket_sized_model, [neon_edit], plan, tmp_path / "audit")
    assert result.models == {} and list(result.missing) == ["style"]
    assert report_and_print(tmp_path / "audit", suite.gates, result) == 2
    assert "INCOMPLETE, judge of style" in capsys.readouterr().err
    assert read_json(tmp_path / "audit/report.json")["verdict"]["state"] == "INCONCLUSIVE"


def test_features_without_weights_leave_the_rates(pocket_sized_model: StableDiffusion, neon_edit: Edit, tmp_path: Path) -> None:
    suite = replace(small_suite(), features=ExtractorSpec("inception", {"weights": "nowhere.pth"}))
    (plan,) = AuditPlan.for_edits([neon_edit], suite, "smoke")
    result = audit_plan(pocket_sized_model, [neon_edit], plan, tmp_path / "audit")
    assert list(result.missing) == ["features"] and result.image_set_distances is None and result.models
    assert report_and_print(tmp_path / "audit", [EASY_GATE], result) == 2
    assert read_json(tmp_path / "audit/report.json")["verdict"]["state"] == "INCONCLUSIVE"


def test_a_crashed_attack_is_incomplete(
    pocket_sized_model: StableDiffusion,
    neon_edit: Edit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> list[dict]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("eval.attack_runs.prompt_search.attack_chunk", fail)
    plan = attack_plan(neon_edit, {"seed_search": {}})
    result = audit_plan(pocket_sized_model, [neon_edit], plan, tmp_path / "audit")
    assert result.crashes == {"seed_search": "RuntimeError: out of memory"}
    assert RateName.UA_ATTACKED not in result.models[ERASED].rates
    assert report_and_print(tmp_path / "audit", [EASY_GATE], result) == 2
    report = read_json(tmp_path / "audit/report.json")
    jsonschema.validate(report, read_json(SCHEMA))
    assert report["gates"][0]["state"] == "PASS" and report["verdict"]["state"] == "INCONCLUSIVE"
    strip = (tmp_path / "audit/report.html").read_text().partition('id="verdict"')[2].partition("</section>")[0]
    assert report["verdict"]["reasons"][-1].startswith("INCONCLUSIVE, attack seed_search: it crashed")
    assert report["verdict"]["reasons"][-1] in strip and "PASS" not in strip


def test_a_retrained_model_is_a_third_model(
    pocket_sized_model: StableDiffusion,
    neon_edit: Edit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The base itself as the retrained model: the divergence to it is 0, and its rates are the base's."""
    monkeypatch.setattr("eval.retrained.divergences.PROMPTS", 2)
    same = Edit(
        {name: p.detach().clone() for name, p in pocket_sized_model.parameters().items() if name in neon_edit.moved_parameters()},
        neon_edit.info,
    )
    plan = attack_plan(neon_edit, {})
    result = audit_plan(pocket_sized_model, [neon_edit], plan, tmp_path / "audit", AuditOptions(retrained=(same,)))
    retrained = retrained_model(1)
    assert result.models[retrained].rates == result.models[BASE].rates
    nats = {(row.part, row.first, row.second): row.nats.mean for row in result.denoiser_divergences if row.nats}
    assert nats["target", BASE, retrained] == (0.0, 0.0, 0.0)
    assert nats["target", ERASED, retrained].estimate > 0
    assert ("retained", BASE, ERASED) in nats
    report_and_print(tmp_path / "audit", plan.suite.gates, result)
    report = read_json(tmp_path / "audit/report.json")
    assert [rate["retrained-1"] for rate in report["rates"] if rate["name"] == "UA"]
    measures = {(gap["measure"], gap["prompts"]) for gap in report["retrain_gap"]}
    assert measures >= {("UA", "target"), ("replacement_labels", "target"), ("nats", "retained")}
    assert all(gap["gap_closed"] is None for gap in report["retrain_gap"])  # there is no gap between the base and itself
    assert "Distance to models retrained without the concept" in (tmp_path / "audit/report.html").read_text()


def test_a_divergence_of_base_and_retrained_model_is_measured_once_for_all_edits(
    pocket_sized_model: StableDiffusion,
    neon_edit: Edit,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eval.retrained.divergences.PROMPTS", 2)
    plan, retrained = attack_plan(neon_edit, {}), Edit({name: value + 0.1 for name, value in neon_edit.tensors.items()}, neon_edit.info)
    results = []
    for other in (neon_edit, Edit({name: value - 0.1 for name, value in neon_edit.tensors.items()}, neon_edit.info)):
        stacks: dict[AuditedModel, list[Edit]] = {BASE: [], ERASED: [other], retrained_model(1): [retrained]}
        results.append(
            measure_divergences(
                pocket_sized_model, pocket_sized_model.fingerprint(), stacks, plan.plain_samples(True), plan.plain_samples(False)
            )
        )
        assert len(list((own_cache / "divergence").iterdir())) == (6 if other is neon_edit else 10)
    shared = [[row for row in rows if {row.first, row.second} == {BASE, retrained_model(1)}] for rows in results]
    assert shared[0] == shared[1] and shared[0][0].nats and shared[0][0].nats.mean.estimate > 0


def test_an_edit_that_is_the_retrained_model_closes_the_whole_gap(
    pocket_sized_model: StableDiffusion,
    neon_edit: Edit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eval.retrained.divergences.PROMPTS", 2)
    plan = attack_plan(neon_edit, {})
    plan = replace(plan, suite=replace(plan.suite, features=None))  # distances of images take long and are tested elsewhere
    result = audit_plan(pocket_sized_model, [neon_edit], plan, tmp_path / "audit", AuditOptions(retrained=(neon_edit,)))
    report_and_print(tmp_path / "audit", plan.suite.gates, result)
    gaps = read_json(tmp_path / "audit/report.json")["retrain_gap"]
    (nats,) = [gap for gap in gaps if gap["measure"] == "nats" and gap["prompts"] == "target"]
    assert nats["base"][0] > 0 and nats["erased"] == [0, 0, 0]
    assert nats["between_retrained"] is None and nats["gap_closed"] == [1, 1, 1]
