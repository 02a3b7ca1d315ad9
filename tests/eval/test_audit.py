"""The audit's counting on planted label sets, and the audit itself on a tiny model."""

import json
import shutil
from dataclasses import replace
from math import ceil, floor
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
import torch
from PIL import Image

from erasure.concept import Concept
from erasure.edits import Edit
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.loading.loader import load_model
from erasure.storage.files import read_json
from eval.auditing.plan import AuditPlan
from eval.auditing.run import audit_plan
from eval.comparison import tabulate_comparison
from eval.generation import samples_of
from eval.metrics.clip_alignment import ClipAlignment
from eval.metrics.unlearn_canvas import UnlearnCanvasRates
from eval.records.audit_result import AuditResult
from eval.records.convert import to_record
from eval.records.gates import Gate
from eval.records.models import BASE, ERASED, AuditedModel
from eval.records.rates import MeanEstimate, RateName
from eval.records.rows import SampleRow
from eval.records.scores import AlignmentScore, Scores
from eval.report.html import write_report
from eval.report.report_json import SCHEMA
from eval.requests import external_target_of, load_model_and_edits, select_plans, split_suite_name
from eval.scoring.counting import clip_drops, paired_differences
from eval.scoring.recount import load_sample_rows, recount
from eval.stats.intervals import paired_difference
from eval.suites.cases import suite_cases
from eval.suites.list_reader import ListedPrompt
from eval.suites.suite import load_suite
from tests.eval.factories import label_scores, sample_row
from tests.factories import erase_on_small_latents, pocket_suite, small_suite
from tests.planted import replace_samples, reseal, reseal_samples

STYLES, OBJECTS = ["plain", "neon", "sketch", "none"], ["boat", "tree", "none"]


def planted_rates() -> UnlearnCanvasRates:
    """Neon is erased 3 of 4 times, sketch retained 1 of 2, objects are wrong only under neon and once under sketch."""
    metric = UnlearnCanvasRates(STYLES, OBJECTS, ["neon"], ["plain"])
    metric.update([("neon", "boat")] * 4, [("sketch", "tree"), ("none", "none"), ("plain", "tree"), ("neon", "boat")])
    metric.update([("sketch", "boat"), ("sketch", "tree")], [("sketch", "boat"), ("plain", "boat")])
    metric.update([("plain", "boat")], [("neon", "boat")])
    return metric


def test_rates_of_planted_labels() -> None:
    rates = {name: tuple(rate) for name, rate in planted_rates().compute().items()}
    assert rates == {"UA": (3, 4), "IPA": (1, 4), "IRA": (1, 2), "CRA": (2, 3), "CRA_included": (3, 7)}


def test_ipa_leaves_out_excluded_styles() -> None:
    """An erased boat in three styles: neon is lost, sketch is retained, and plain is excluded; pairs are counted alike."""
    metric = UnlearnCanvasRates(OBJECTS, STYLES, ["boat"], ["plain"])
    styles, labels = ("neon", "sketch", "plain"), ("sketch", "sketch", "neon")
    metric.update([("boat", style) for style in styles] + [("tree", "neon")], [("none", style) for style in labels] + [("tree", "neon")])
    assert metric.compute()[RateName.IPA] == (1, 2)
    rows = [
        sample_row(model, style, "boat", (style if model == BASE else label, "none"), role=role)
        for style, label in zip(styles, labels, strict=True)
        for model in (BASE, ERASED)
        for role in ("grid", "named")
    ]
    table = paired_differences(rows, "object", ["boat"], ["plain"])[RateName.IPA]
    assert (table.both, table.erased_only, table.base_only, table.neither) == (1, 0, 1, 0)


def test_confusion_counts_the_labels_of_the_erased_concept() -> None:
    assert planted_rates().confusion()[1].tolist() == [1, 1, 1, 1]


def test_merging_two_halves_equals_one_pass() -> None:
    first, second = planted_rates(), planted_rates()
    first.counts += second.counts
    assert first.compute()[RateName.UA] == (6, 8)


def test_clip_alignment_is_the_mean_with_students_interval() -> None:
    metric = ClipAlignment()
    metric.update(torch.tensor([20.0, 30.0]))
    metric.update(torch.tensor([40.0]))
    interval = metric.compute()
    assert interval.estimate == pytest.approx(30)
    assert interval.high - 30 == pytest.approx(4.302653 * 10 / 3**0.5)  # t of two degrees of freedom, standard deviation 10


def benign_row(model: AuditedModel, prompt: str, index: int, cosine: float) -> SampleRow:
    scores = Scores(clip=AlignmentScore(cosine=cosine))
    return sample_row(model, "", "", role="benign", variant=prompt, index=index, prompt=prompt, scores=scores)


def test_the_clip_drop_is_paired_and_clustered_by_prompt() -> None:
    """Ten images of a prompt that agree are one unit; what both models share cancels; the half width is 12.706 / 2."""
    levels, drops = {"a": 20.0, "b": 30.0}, {"a": 1, "b": 2}
    rows = [benign_row(BASE, prompt, i, level + i) for prompt, level in levels.items() for i in range(10)]
    rows += [benign_row(ERASED, prompt, i, level + i - drops[prompt]) for prompt, level in levels.items() for i in range(10)]
    drop = clip_drops(rows, "style", ["neon"])
    assert drop.retained is None and drop.benign == MeanEstimate(estimate=1.5, low=-4.853, high=7.853)
    assert clip_drops([row for row in rows if row.model == ERASED], "style", ["neon"]).benign is None
    single = clip_drops([row for row in rows if row.prompt == "a"], "style", ["neon"]).benign
    assert single == MeanEstimate(estimate=1.0, low=1.0, high=1.0)  # over the images of one prompt


def test_every_image_has_its_own_seed_in_any_order() -> None:
    suite = load_suite("pocket")
    neon = samples_of(suite, suite_cases(suite, [("style", "neon")], "smoke"))
    boat = samples_of(suite, suite_cases(suite, [("object", "boat")], "standard"))
    seeds = {sample.file_name: sample.seed for sample in neon}
    assert len(set(seeds.values())) == len(neon)
    assert all(seeds[sample.file_name] == sample.seed for sample in boat if sample.file_name in seeds)


def test_pocket_suites_differ_in_prompts_and_seeds() -> None:
    suites = (load_suite("pocket"), load_suite("pocket-dev"))
    pocket, dev = (samples_of(suite, suite_cases(suite, [], "smoke")) for suite in suites)
    assert not {sample.case.prompt for sample in pocket} & {sample.case.prompt for sample in dev}
    assert not {sample.seed for sample in pocket} & {sample.seed for sample in dev}


def test_a_target_is_also_named_and_described() -> None:
    suite = pocket_suite()
    neon = [case for case in suite_cases(suite, [("style", "neon")], "standard") if case.role in ("named", "described")]
    assert {(case.style, case.count) for case in neon} == {("neon", 3)}
    assert {case.object for case in neon} == set(suite.objects)
    prompts = {case.prompt for case in neon}
    assert "an image of a boat in the style of luminous tube" in prompts
    assert "an image of a boat, bright electric lines on black" in prompts
    assert not any("neon" in case.prompt for case in neon if case.role == "described")
    boat = [case for case in suite_cases(suite, [("object", "boat")], "standard") if case.role in ("named", "described")]
    assert "an image of a ship in the style of neon" in {case.prompt for case in boat}
    assert len({case.id for case in neon}) == len(neon) == 4 * 10
    assert len({case.id for case in boat}) == len(boat) == 4 * 9
    assert not [case for case in suite_cases(suite, [], "full") if case.role != "grid"]


def test_perturbations_and_replayed_prompts_are_cases_of_the_target() -> None:
    suite, replay = load_suite("pocket"), [ListedPrompt("glowing boat", "7", seed=2**64 - 1), ListedPrompt("../../x <b>", "8")]
    cases = suite_cases(suite, [("style", "neon")], "standard", replay)
    perturbed = [case for case in cases if case.role == "perturbed"]
    assert len({case.prompt for case in perturbed}) == len(perturbed) == 6 * 10
    assert not [case for case in suite_cases(suite, [("style", "neon")], "smoke") if case.role == "perturbed"]
    replayed = [case for case in cases if case.role == "replayed"]
    assert [case.id for case in replayed] == ["neon--replayed-0", "neon--replayed-1"]  # no part of the text becomes a path
    assert [replayed[0].seed("pocket", i) for i in (0, 1)] == [2**64 - 1, 0]
    assert replayed[1].seed("pocket", 0) != replayed[1].seed("pocket", 1)


def test_a_prompt_list_is_replayed(pocket_sized_model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase_on_small_latents(pocket_sized_model, [Concept(name="neon", kind="style")], tmp_path / "edit")
    (plan,) = AuditPlan.for_edits([edit], small_suite(), "smoke", [ListedPrompt("<script>alert(1)</script> glowing", "1", seed=3)])
    result = audit_plan(pocket_sized_model, [edit], plan, tmp_path / "audit")
    assert result.models[ERASED].rates[RateName.UA_REPLAYED].n == 1
    assert "<script" not in write_report(tmp_path / "audit", result, small_suite().gates).read_text()
    (other,) = AuditPlan.for_edits([edit], small_suite(), "smoke", [ListedPrompt("another", "1")])
    with pytest.raises(UserError):
        audit_plan(pocket_sized_model, [edit], other, tmp_path / "audit")


def test_find_concept_takes_a_label_or_a_phrase() -> None:
    suite = load_suite("pocket")
    assert suite.find_concept("Pixel Art") == ("style", "pixel")
    assert suite.find_concept("boat") == suite.find_concept("a boat") == ("object", "boat")
    with pytest.raises(UserError, match="Did you mean 'neon'"):
        suite.find_concept("neom")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 3}, "Did you mean 'steps'"),
        ({"tiers": {"smoke": 1}}, "tiers.smoke must be a list of whole numbers, got 1"),
        ({"template": "{x}"}, "template must be text with {style} and {object}"),
        ({"template": "an image of {object}"}, "template must be text with {style} and {object}"),
        ({"described_template": "{object:>9999999999} {style}"}, "described_template must be text with {style} and {object}"),
        ({"described_template": "{object} {style"}, "described_template must be text with {style} and {object}"),
        ({"name": "../x"}, "name must be letters, digits"),
        ({"name": ".x"}, "name must be letters, digits"),
        ({"version": True}, "version must be a whole number, got True"),
        ({"steps": "abc"}, "steps must be a whole number, got 'abc'"),
        ({"steps": -4}, "steps must be greater than or equal to 1, got -4"),
        ({"guidance": "x"}, "guidance must be a number, got 'x'"),
        ({"guidance": float("nan")}, "guidance must be a finite number, got nan"),
        ({"styles": ["neon"]}, r"styles must be a mapping, got \['neon'\]"),
        ({"objects": {}}, "objects must have at least 1 item .*, got {}"),
        ({"styles": {"plain": "plain", "neon": 3}}, "styles.neon must be text, got 3"),
        ({"styles": {8: "pixel"}}, "styles.8 must be text, got 8"),
        ({"excluded": "plain"}, "excluded must be a list of texts, got 'plain'"),
        ({"excluded": ["plane"]}, "label under excluded in .* 'plane'. Did you mean 'plain'"),
        ({"aliases": {"neon": {"named": "glow"}}}, "aliases.neon.named must be a list of texts, got 'glow'"),
        ({"aliases": {"neon": {"named": [8]}}}, "aliases.neon.named.0 must be text, got 8"),
        ({"neighbors": {"neon": "glow"}}, "neighbors.neon must be a list of texts, got 'glow'"),
        ({"seeds": [1.5]}, "seeds.0 must be a whole number, got 1.5"),
        ({"tiers": {"smoke": [1, 0], "standard": [1, 1], "full": [1, 1]}}, "tiers.smoke.1 must be greater than or equal to 1, got 0"),
        ({"tiers": {"smoke": [1], "standard": [1, 1], "full": [1, 1]}}, r"tiers.smoke must have at least 2 items .*, got \[1\]"),
        ({"judges": {"style": 3, "object": "pocket_object"}}, "judges.style must be the name of a judge, .*, got 3"),
        ({"judges": {"stile": "pocket_style", "object": "pocket_object"}}, "judges.stile in .* 'stile'. Did you mean 'style'"),
        ({"features": "judge"}, "features must be a mapping, got 'judge'"),
        ({"format": "other"}, "format"),
        ({"aliases": {"neom": {"named": ["a"]}}}, "Did you mean 'neon'"),
        ({"perturbations": ["leat"]}, "Did you mean 'leet'"),
        ({"aliases": {"neon": {"synonym": ["a"]}}}, "synonym"),
        ({"neighbors": {"neon": ["../../x"]}}, "cannot be a label"),
        ({"neighbors": {"neom": ["glow"]}}, "Did you mean 'neon'"),
        ({"benign": "nowhere.txt"}, "no captions at"),
        ({"judges": {"style": "pocket_stile", "object": "pocket_object"}}, "Did you mean 'pocket_style'"),
        ({"judges": {"style": "pocket_style"}}, "must name one for style and one for object"),
        (
            {"attacks": {"tiers": ["full"], "prompts": 1, "images": 1, "fresh_images": 1, "use": {"seed_serch": {}}}},
            "Did you mean 'seed_search'",
        ),
        ({"attacks": {"tiers": ["ful"], "prompts": 1, "images": 1, "fresh_images": 1, "use": {}}}, "Did you mean 'full'"),
        (
            {
                "attacks": {
                    "tiers": ["full"],
                    "prompts": 1,
                    "images": 1,
                    "fresh_images": 1,
                    "use": {"../../../evil": {"attack": "seed_search"}},
                }
            },
            "attacks.use.*evil must be letters, digits",
        ),
        (
            {"attacks": {"tiers": ["full"], "prompts": 0, "images": 1, "fresh_images": 1, "use": {}}},
            "attacks.prompts must be greater than or equal to 1, got 0",
        ),
    ],
)
def test_suites_are_read_strictly(tmp_path: Path, change: dict, message: str) -> None:
    import yaml

    record = yaml.safe_load((Path("prompts") / "pocket.yaml").read_text())
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({**record, **change}))
    with pytest.raises(UserError, match=message):
        load_suite(str(path))


def test_yaml_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="cannot be read as YAML"):
        load_suite(str(path))


def run_audit(model: StableDiffusion, folder: Path) -> tuple[AuditResult, AuditPlan, Edit]:
    """Erase neon from the model and audit it in `folder`."""
    edit = erase_on_small_latents(model, [Concept(name="neon", kind="style")], folder / "edit")
    (plan,) = AuditPlan.for_edits([edit], small_suite(), "smoke")
    return audit_plan(model, [edit], plan, folder / "audit"), plan, edit


def test_audit_counts_every_image_of_both_models(pocket_sized_model: StableDiffusion, tmp_path: Path) -> None:
    result, plan, _ = run_audit(pocket_sized_model, tmp_path)
    rows = load_sample_rows(tmp_path / "audit")
    assert (
        len(rows) == 2 * len(plan.samples) == 2 * (2 * 3 + 4 * 1 + 4 * 2)
    )  # target cells, other cells, and four aliases with both objects
    for row in rows:
        with Image.open(tmp_path / "audit" / row.image) as image:
            assert image.size == (64, 64)
    for model in (BASE, ERASED):
        rates = result.models[model].rates
        assert rates[RateName.UA].n == 6
        assert rates[RateName.IRA].n == 2
        assert all(rate.low <= rate.k / rate.n <= rate.high for rate in rates.values())


def test_an_interrupted_audit_continues_to_the_same_result(
    pocket_sized_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plan, edit = run_audit(pocket_sized_model, tmp_path)
    straight = (tmp_path / "audit" / "result.json").read_bytes()
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "second"))

    class Stop(BaseException):
        pass

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("eval.auditing.result.score_samples", lambda *_: (_ for _ in ()).throw(Stop))
        audit_plan(pocket_sized_model, [edit], plan, tmp_path / "again")
    forwards = pocket_sized_model.cost.unet_forwards
    audit_plan(pocket_sized_model, [edit], plan, tmp_path / "again")
    assert pocket_sized_model.cost.unet_forwards == forwards
    assert (tmp_path / "again" / "result.json").read_bytes() == straight


def test_the_report_is_one_file_without_requests(pocket_sized_model: StableDiffusion, tmp_path: Path) -> None:
    result, _, _ = run_audit(pocket_sized_model, tmp_path)
    page = write_report(tmp_path / "audit", result, small_suite().gates).read_text()
    assert page.count("data:image/png;base64,") >= 8
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert "UA" in page and "Clopper-Pearson" in page


def test_report_json_follows_its_schema_and_other_thresholds_need_no_images(pocket_sized_model: StableDiffusion, tmp_path: Path) -> None:
    result, _, _ = run_audit(pocket_sized_model, tmp_path)
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    page = write_report(tmp_path / "audit", result, small_suite().gates).read_text()
    report = json.loads((tmp_path / "audit" / "report.json").read_text())
    jsonschema.validate(report, schema)
    assert len(report["verdict"]["reasons"]) == len(report["gates"]) == 6
    assert report["clip_drop"]["retained"]["low"] <= report["clip_drop"]["retained"]["estimate"] and "base − erased, paired" in page
    assert [r["name"] for r in report["rates"]] == ["UA", "UA_named", "UA_described", "IRA", "CRA", "IPA", "CRA_included"]
    assert any("No attack was tried" in line for line in report["not_measured"])
    suite = ElementTree.parse(tmp_path / "audit" / "junit.xml").getroot()[0]
    failed = {case.get("name"): bool(case.findall("failure")) for case in suite.iter("testcase") if not case.findall("skipped")}
    assert failed == {gate["name"]: gate["state"] != "PASS" for gate in report["gates"]}
    forwards = pocket_sized_model.cost.unet_forwards
    recounted = recount(tmp_path / "audit", small_suite())
    assert recounted == result and to_record(recounted) == to_record(result)
    page = write_report(tmp_path / "audit", recounted, [Gate(name="retained <i>", rate=RateName.UA, at_least=1e-6)]).read_text()
    assert json.loads((tmp_path / "audit" / "report.json").read_text())["verdict"]["state"] == "PASS"
    assert "PASS" in page and "<i>:" not in page
    assert ElementTree.parse(tmp_path / "audit" / "junit.xml").getroot().attrib == {
        "tests": "1",
        "failures": "0",
        "errors": "0",
        "skipped": "0",
    }
    assert pocket_sized_model.cost.unet_forwards == forwards


def test_two_audits_are_paired_image_by_image(pocket_sized_model: StableDiffusion, tmp_path: Path) -> None:
    result, _, _ = run_audit(pocket_sized_model, tmp_path)
    lines = tabulate_comparison(tmp_path / "audit", tmp_path / "audit")
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in result.paired]
    assert all("| 0.0 (" in line and line.endswith("| 1 |") for line in lines[2:])
    record = json.loads((tmp_path / "audit" / "result.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    reseal(other, {**record, "job": {**record["job"], "tier": "full"}})
    with pytest.raises(UserError, match="tier is smoke in the first and full in the second"):
        tabulate_comparison(tmp_path / "audit", other)
    with pytest.raises(UserError, match="no finished audit"):
        tabulate_comparison(tmp_path / "audit", tmp_path / "none")
    reseal(other, {**record, "models": {}, "missing": {"style": "weights not found."}})
    with pytest.raises(UserError, match=r"other is incomplete: nothing was counted in it\. weights not found\."):
        tabulate_comparison(tmp_path / "audit", other)
    samples = tmp_path / "audit" / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"role"', '"rolle"'))
    reseal_samples(samples.parent)
    with pytest.raises(UserError, match="an earlier version"):
        recount(tmp_path / "audit", small_suite())


def planted_audit(source: Path, out: Path, erased: bool) -> Path:
    """Copy an audit and plant labels: the erased model shows neon always or never, and everything else as prompted."""
    shutil.copytree(source, out)
    rows = []
    for row in load_sample_rows(source):
        replaced = erased and (row.style, row.model) == ("neon", ERASED)
        rows.append(replace(row, scores=label_scores("plain" if replaced else row.style, row.object)))
    replace_samples(out, rows)
    reseal(out, to_record(recount(out, small_suite())))
    return out


def test_a_comparison_has_a_sign_and_corrects_for_all_its_rates(pocket_sized_model: StableDiffusion, tmp_path: Path) -> None:
    run_audit(pocket_sized_model, tmp_path)
    first, second = (planted_audit(tmp_path / "audit", tmp_path / name, name == "first") for name in ("first", "second"))
    lines = {line.split(" | ")[0]: line for line in tabulate_comparison(first, second)[2:]}
    low, high = (100 * bound for bound in paired_difference(0, 6, 0, 0)[1:])
    bounds = f"{floor(10 * low) / 10:+.1f} to {ceil(10 * high) / 10:+.1f}"
    # McNemar's p of 6 to 0 is 2 / 64; Holm multiplies it by the number of rates, and the other rates do not differ
    assert lines["| UA"] == f"| UA | 100.0% (6/6) | 0.0% (0/6) | +100.0 ({bounds}) | {len(lines) * 2 / 64:.2g} |"
    assert len(lines) > 2 and all(line.endswith("| 1 |") for name, line in lines.items() if name != "| UA")
    assert "| 0.0% (0/6) | 100.0% (6/6) | -100.0 (" in tabulate_comparison(second, first)[2]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("suite_digest", "0123", "what the suite asks is [0-9a-f]{16} in the first and 0123 in the second"),
        ("replay", "0123", "the replayed list is none in the first and 0123"),
        ("only", "boat", "--only is  in the first and boat"),
    ],
)
def test_audits_with_other_prompts_are_not_paired(
    pocket_sized_model: StableDiffusion, tmp_path: Path, key: str, value: str, message: str
) -> None:
    run_audit(pocket_sized_model, tmp_path)
    shutil.copytree(tmp_path / "audit", tmp_path / "other")
    record = read_json(tmp_path / "audit" / "result.json")
    reseal(tmp_path / "other", {**record, "job": {**record["job"], key: value}})
    with pytest.raises(UserError, match=message):
        tabulate_comparison(tmp_path / "audit", tmp_path / "other")


def test_other_judges_and_other_images_are_not_paired(pocket_sized_model: StableDiffusion, tmp_path: Path) -> None:
    run_audit(pocket_sized_model, tmp_path)
    first, other = tmp_path / "audit", tmp_path / "other"
    shutil.copytree(first, other)
    record = read_json(first / "result.json")
    judges = {**record["judges"], "style": {**record["judges"]["style"], "weights": "0123"}}
    reseal(other, {**record, "judges": judges})
    with pytest.raises(UserError, match="the judge of style is"):
        tabulate_comparison(first, other)
    reseal(other, record)
    *rows, last = load_sample_rows(other)
    replace_samples(other, [*rows, replace(last, seed=last.seed + 1)])  # of the erased model
    with pytest.raises(UserError, match=f"lacks 1 images of .*such as {last.file_name}; only the same"):
        tabulate_comparison(first, other)
    replace_samples(other, rows[:-1])
    with pytest.raises(UserError, match=r"other lacks 1 images of .*audit"):
        tabulate_comparison(first, other)


def test_an_edit_of_both_axes_is_audited_once_per_axis(pocket_sized_model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase_on_small_latents(pocket_sized_model, [Concept(name="neon"), Concept(name="boat", kind="object")], tmp_path / "edit")
    styles, objects = AuditPlan.for_edits([edit], small_suite(), "smoke")
    assert (styles.axis, styles.targets, styles.also_erased) == ("style", ("neon",), ("boat",))
    assert (objects.axis, objects.targets, objects.also_erased) == ("object", ("boat",), ("neon",))
    assert not any(sample.case.object == "boat" for sample in styles.samples)
    assert not any(sample.case.style == "neon" for sample in objects.samples)
    result = audit_plan(pocket_sized_model, [edit], styles, tmp_path / "audit")
    assert {row.object for row in load_sample_rows(tmp_path / "audit")} == {"tree"}
    assert result.models[BASE].rates[RateName.UA].n == 3
    assert result.models[BASE].rates[RateName.IPA].n == 3  # trees in neon; boats are erased as well


def test_a_suite_can_be_limited_to_one_concept(pocket_sized_model: StableDiffusion, tmp_path: Path) -> None:
    assert [split_suite_name(name) for name in ("pocket", "pocket/stained glass", "my/suite.yaml")] == [
        ("pocket", ""),
        ("pocket", "stained glass"),
        ("my/suite.yaml", ""),
    ]
    edit = erase_on_small_latents(pocket_sized_model, [Concept(name="neon"), Concept(name="boat", kind="object")], tmp_path / "edit")
    plans = AuditPlan.for_edits([edit], load_suite("pocket"), "smoke")
    assert select_plans("a boat", plans) == [plans[1]]
    with pytest.raises(UserError, match="selects sketch alone, but the edits erase neon, boat"):
        select_plans("sketch", plans)
    with pytest.raises(UserError, match="Did you mean 'neon'"):
        select_plans("noen", plans)
    with pytest.raises(UserError, match="records what it erases"):
        load_model_and_edits([tmp_path / "edit"], load_model, concept="neon")
    with pytest.raises(UserError, match="give --model, --out as well"):  # the suite names the concept
        load_model_and_edits([tmp_path], load_model, suite_target=("style", "neon"))
    somewhere, target = [Path("somebody/erased-neon")], external_target_of(load_suite("pocket"), "neon")
    with pytest.raises(
        UserError, match=r"somebody/erased-neon is not a folder here\. As a hub id it is not in the local cache"
    ):  # neither does a Hub ID need --concept
        load_model_and_edits(somewhere, load_model, model="pocket", suite_target=target, out=tmp_path / "audit")
    assert external_target_of(load_suite("pocket"), "a boat") == ("object", "boat")
    assert external_target_of(load_suite("nudity"), "Nudity")[0] == "nsfw"  # so that its report is blurred


def test_a_stack_is_audited_as_one_model(pocket_sized_model: StableDiffusion, tmp_path: Path) -> None:
    edits = [erase_on_small_latents(pocket_sized_model, [Concept(name="neon")], tmp_path / f"{seed}", seed) for seed in (0, 1)]
    (plan,) = AuditPlan.for_edits(edits, small_suite(), "smoke")
    assert plan.targets == ("neon",)
    result = audit_plan(pocket_sized_model, edits, plan, tmp_path / "audit")
    assert [audited.concepts[0].name for audited in result.edits] == ["neon", "neon"]
    assert "neither saw the other" in result.edit_overlaps[0].warning
    assert "neither saw the other" in write_report(tmp_path / "audit", result, small_suite().gates).read_text()


def test_a_concept_that_the_base_does_not_show_is_reported(pocket_sized_model: StableDiffusion, tmp_path: Path) -> None:
    result, _, _ = run_audit(pocket_sized_model, tmp_path)
    page = write_report(tmp_path / "audit", result, small_suite().gates).read_text()
    assert "there was little to erase" in page
