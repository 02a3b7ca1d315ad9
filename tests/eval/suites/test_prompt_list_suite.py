"""Suites of prompts alone: strict files, every role and attack on a tiny model, rates without a grid, and a page that reads well."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from huggingface_hub import constants

from app.commands.audit import Options, audit_folder_of, format_headline, warn_about_lists, write_report
from erasure.concept import Concept
from erasure.edits import Edit
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from eval import generation as samples
from eval.audit import AuditPlan, audit, suite_digest
from eval.report.html import audit_command
from eval.report.report_json import SCHEMA
from eval.scoring.counting import count_rates
from eval.scoring.gates import Gate, decide_verdict
from eval.scoring.judge_scores import available_judges
from eval.scoring.recount import load_sample_rows, recount
from eval.stats.intervals import clopper_pearson
from eval.suites.cases import suite_cases
from eval.suites.list_reader import ListedPrompt
from eval.suites.prompt_list_suite import load_prompt_list
from eval.suites.suite import Suite, load_suite, suite_names
from tests.eval.report.test_html import Page, harmless
from tests.eval.test_audit import big, erased  # noqa: F401  # a fixture
from tests.planted import replace_samples

ASKS: dict[str, Any] = {
    "name": "boats",
    "version": 1,
    "form": "prompts",
    "concept": "boat",
    "names": ["ships"],
    "kind": "object",
    "judge": "pocket_object",
    "list": "list.csv",
    "steps": 2,
    "guidance": 4.0,
    "tiers": {"smoke": {"pictures": 2, "prompts": 3}, "standard": {"pictures": 1}, "full": {"pictures": 1}},
    "gates": {"gone": {"rate": "UA", "at_least": 0.5}, "gone where shown": {"rate": "UA_shown", "at_least": 0.5}},
}
LIST = "prompt,evaluation_seed,evaluation_guidance\n" + "".join(f"sail {i},{i},{7 if i % 2 else ''}\n" for i in range(6))


def written(folder: Path, **change: Any) -> str:
    (folder / "list.csv").write_text(LIST)
    (folder / "benign.txt").write_text("a tree\na lamp\n")
    path = folder / "boats.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in {**ASKS, **change}.items() if value is not None}))
    return str(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"listt": "x"}, "Did you mean 'list'"),
        ({"stpes": 2, "steps": None}, "Did you mean 'steps'"),  # and not that steps are missing
        ({"template": "a {object}"}, "unknown key"),
        ({"name": "a/b"}, "name must be letters, digits"),
        ({"steps": 0}, "steps must be greater than or equal to 1, got 0"),
        ({"kind": "objct"}, "Did you mean 'object'"),
        ({"concept": 3}, "concept must be a valid string, got 3"),
        ({"list": "none.csv"}, "no prompt list at"),
        ({"list": 3}, "list must be a valid string, got 3"),
        ({"names": "ships"}, "names must be a valid list, got 'ships'"),
        ({"judge": "pocket_objct"}, "Did you mean 'pocket_object'"),
        ({"label": "../x"}, "cannot be a label"),
        ({"tiers": {**ASKS["tiers"], "smoke": [1, 1]}}, r"tiers.smoke must be a valid dictionary, got \[1, 1\]"),
        ({"tiers": {**ASKS["tiers"], "smoke": {"pictures": 0}}}, "tiers.smoke.pictures must be greater than or equal to 1, got 0"),
        ({"tiers": {**ASKS["tiers"], "smoke": {"pictures": 1, "promts": 2}}}, "Did you mean 'prompts'"),
        ({"tiers": {**ASKS["tiers"], "smoke": {"prompts": 2}}}, "tiers.smoke in .* lacks pictures"),
        ({"tiers": {"smoke": {"pictures": 1}}}, "tiers must be a mapping with each of smoke, standard, full"),
        ({"gates": {"kept": {"rate": "UA_shwn", "at_least": 0.5}}}, "Did you mean 'UA_shown'"),
        ({"judge": None}, "lacks judge"),
        ({"published": "unlearncanvas"}, "needs a grid"),
        ({"published": "unlearndiffatk"}, "needs attacks"),
        ({"form": ["prompts"]}, "unknown form"),
    ],
)
def test_suites_of_prompts_are_read_strictly(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = written(tmp_path, **change)
    with pytest.raises(UserError, match=words):
        load_suite(path)


def test_a_label_that_the_judge_never_says_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"object of suite boats for its judge pocket_object 'boad'\. Did you mean 'boat'"):
        available_judges(load_suite(written(tmp_path, label="boad")))
    assert set(available_judges(load_suite(written(tmp_path)))[0]) == {"object", "clip"}


def test_a_tier_takes_prompts_evenly_and_keeps_their_seeds(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path))
    smoke = suite_cases(suite, [("object", "boat")], "smoke")
    assert [(c.prompt, c.count, c.list_seed, c.guidance, c.id) for c in smoke] == [
        ("sail 0", 2, 0, None, "-boat-listed-0"),
        ("sail 2", 2, 2, None, "-boat-listed-2"),
        ("sail 4", 2, 4, None, "-boat-listed-4"),
    ]
    assert [c.seed("boats", 1) for c in smoke] == [1, 3, 5]
    every = suite_cases(suite, [("object", "boat")], "standard", [ListedPrompt("again", "1", 9, 2.0)])
    assert [c.guidance for c in every] == [None, 7.0] * 3 + [2.0]
    assert every[-1].role == "replayed" and suite.find_concept("Ships") == ("object", "boat")
    with pytest.raises(UserError, match="Did you mean 'boat'"):
        suite.find_concept("boad")


def test_the_users_copy_is_read_where_the_suite_ships_none(tmp_path: Path) -> None:
    path = written(tmp_path, list=None)
    with pytest.raises(UserError, match="ships no prompts; give your own copy of a list with --prompts"):
        suite_cases(load_suite(path), [], "smoke")
    assert len(suite_cases(load_suite(path, str(tmp_path / "list.csv")), [], "standard")) == 6
    for other in (written(tmp_path), "pocket"):
        with pytest.raises(UserError, match="leave --prompts out"):
            load_suite(other, str(tmp_path / "list.csv"))


def test_every_column_of_a_list_has_a_folder_of_its_own() -> None:
    lists = ("a/list.csv", "a/list.csv#Spanish", "a/list.tsv#sensitive prompt")
    names = [audit_folder_of(Options(edits=(Path("e"),), replay=given), "pocket", "").name for given in lists]
    assert names == [f"audit-pocket-standard-replay-{name}" for name in ("list", "list-Spanish", "list-sensitive-prompt")]


def test_the_shipped_suites_of_prompts_blur_and_ship_nothing() -> None:
    for name in ("nudity", "unlearndiffatk"):
        asks = load_suite(name).prompt_list
        assert asks and asks.kind == "nsfw" and not asks.prompts and name not in suite_names(complete=True)


def test_a_dataset_file_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place = tmp_path / "hub" / "datasets--some--lists"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40) / "deep").mkdir(parents=True)
    (place / "snapshots" / ("0" * 40) / "deep" / "list.csv").write_text(LIST)
    suite = load_suite(written(tmp_path, list="hub:some/lists/deep/list.csv"))
    assert suite.prompt_list and len(suite.prompt_list.prompts) == 6
    for source, words in (
        ("hub:some/lists/other.csv", "hub:some/lists/other.csv .*not in the cache"),
        ("hub:some/lists", "names no file of a dataset"),
        ("hub:-a/b--/c.csv", "cannot be fetched"),
    ):
        with pytest.raises(UserError, match=words) as error:
            load_suite(written(tmp_path, list=source))
        assert "\n" not in str(error.value)


@pytest.fixture
def edit(big: StableDiffusion, tmp_path: Path) -> Edit:  # noqa: F811
    return erased(big, [Concept(name="boat", kind="object")], tmp_path / "edit")


def plan_of(edit: Edit, suite: Suite, tier: str = "smoke", replay: tuple[ListedPrompt, ...] = ()) -> AuditPlan:
    (plan,) = AuditPlan.for_edits([edit], suite, tier, replay)
    return plan


def planted(out: Path, shown: dict[str, set[int]]) -> list[dict[str, Any]]:
    """The rows of an audit with other readings: the boat is read in the listed pictures of these numbers."""
    rows = load_sample_rows(out)
    for model, numbers in shown.items():
        for i, row in enumerate(r for r in rows if r["role"] == "listed" and r["model"] == model):
            row["read"]["object"]["label"] = "boat" if i in numbers else "none"
    replace_samples(out / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_an_audit_of_prompts_alone(big: StableDiffusion, edit: Edit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    suite = load_suite(written(tmp_path, benign="benign.txt", features={"extractor": "judge"}))
    out = tmp_path / "audit"
    audit(big, [edit], plan_of(edit, suite, replay=(ListedPrompt("another", "1"),)), out)
    planted(out, {"base": {0, 1, 2, 3}, "erased": {0, 5}})
    result = recount(out, suite)
    rates = {model: figures["rates"] for model, figures in result["models"].items()}
    assert {name: (r["k"], r["n"]) for name, r in rates["erased"].items() if name != "UA_replayed"} == {"UA": (4, 6), "UA_shown": (3, 4)}
    assert (rates["base"]["UA"]["k"], rates["base"]["UA_shown"]["k"]) == (2, 0)
    assert rates["erased"]["UA_replayed"]["n"] == 1
    assert {key: result["paired"]["UA"][key] for key in ("both", "erased_only", "base_only", "neither")} == {
        "both": 1,
        "erased_only": 3,
        "base_only": 1,
        "neither": 1,
    }
    assert result["distance"]["estimate"] > 0 and list(result["distances"]["parts"]["kept"]) == ["erased"]  # of the captions
    assert format_headline(result) == "UA 66.7 % (22.2 to 95.7; 4/6, base 33.3), UA_shown 75.0 % (19.4 to 99.4; 3/4)"
    assert write_report(out, suite.gates, result) == 4
    record = json.loads((out / "report.json").read_text())
    jsonschema.validate(record, json.loads(SCHEMA.read_text()))
    assert not {r["name"] for r in record["rates"]} & {"IRA", "CRA", "NRA", "CRA_included"}
    assert {r["name"]: r["ci_method"] for r in record["rates"]} == {
        "UA": "Clopper-Pearson, clustered by prompt",
        "UA_shown": "Clopper-Pearson, clustered by prompt",
        "UA_replayed": "Clopper-Pearson",
    }
    assert "Where the base shows it, the erased model still does in 1 of 4; up to" in capsys.readouterr().out
    page = Page((out / "report.html").read_text())
    harmless(page)
    said = page.said()
    assert "count as a cluster" in said
    assert "How much is gone" in said and "so no rate says what else was lost" in said and "IRA" not in said and "CRA" not in said
    assert "Asked for by the prompts of the suite's list" in said and "nothing to draw" not in said
    assert "style" not in said.partition("What could mislead")[0].replace("--", "")


def test_the_report_names_the_files_and_what_was_left_out(
    big: StableDiffusion,  # noqa: F811
    edit: Edit,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = written(tmp_path, list="church.csv")
    rows = "".join(f"{i},sail {i},{2**33 + i},{200 if i else 7.5}\n" for i in range(4))
    (tmp_path / "church.csv").write_text("case_number,prompt,evaluation_seed,evaluation_guidance\n" + rows + "9,,1,7.5\n")
    (tmp_path / "<b>replay.txt").write_text("a boat\n" + "x" * 5001 + "\n")
    suite, (replay, replayed) = load_suite(path), load_prompt_list("<b>replay.txt", tmp_path)
    (plan,) = AuditPlan.for_edits([edit], suite, "smoke", replay, "", replayed)
    out = tmp_path / "audit"
    result = audit(big, [edit], plan, out)
    assert write_report(out, suite.gates, recount(out, suite)) in (0, 3, 4)
    record = json.loads((out / "report.json").read_text())
    jsonschema.validate(record, json.loads(SCHEMA.read_text()))
    own, other = record["lists"]
    assert (own["use"], own["file"], own["rows"], own["prompts"]) == ("prompts", "church.csv", 5, 4)
    assert own["sha256"] == hashlib.sha256((tmp_path / "church.csv").read_bytes()).hexdigest()
    assert (other["use"], other["file"], other["left_out"]) == ("replay", "<b>replay.txt", {"of more than 5,000 letters": 1})
    wanted = [
        "Of the 5 rows of church.csv these were left out: 1 without a prompt.",
        "church.csv: it has 5 rows, and the file that was published under this name has 50.",
        "Of the 2 rows of <b>replay.txt these were left out: 1 of more than 5,000 letters.",
    ]
    page = Page((out / "report.html").read_text())
    harmless(page)
    capsys.readouterr()
    warn_about_lists(result["lists"])
    warned = capsys.readouterr().err
    for line in wanted:
        assert line in [*record["skipped"], *record["threats_to_validity"]] and line in page.said() and f"warning: {line}" in warned
    assert own["sha256"] in page.said()
    renamed = load_suite(written(tmp_path, list="church.csv"))
    (tmp_path / "church.csv").rename(tmp_path / "other.csv")
    assert suite_digest(load_suite(written(tmp_path, list="other.csv"))) == suite_digest(renamed)  # the same prompts are the same audit


def readings(prompts: int, pictures: int, shown: set[int], role: str = "listed") -> list[dict[str, Any]]:
    """Pictures of both models by row number and index; the base shows it always, the erased model under the prompts of these numbers."""
    about = {"role": role, "style": "", "object": "nudity"}
    return [
        {**about, "model": model, "variant": str(i), "prompt": f"p{i}", "index": j, "seed": j, "read": {"object": {"label": label}}}
        for model in ("base", "erased")
        for i in range(prompts)
        for j in range(pictures)
        for label in ["nudity" if model == "base" or i in shown else "none"]
    ]


def test_pictures_of_one_prompt_are_not_counted_as_independent() -> None:
    """Two equal pictures of every prompt say as much as one, in the rates and in the gates."""
    suite = load_suite("nudity")
    gate = Gate(name="erased", rate="UA", at_least=0.9)

    def both(prompts: int, pictures: int, shown: set[int]) -> tuple[dict[str, Any], dict[str, Any]]:
        rows = readings(prompts, pictures, shown) + readings(prompts, pictures, shown, "replayed")
        result = {"tier": "full", **count_rates(rows, suite, "object", ["nudity"])}
        return result["models"]["erased"]["rates"], decide_verdict([gate], result)["gates"][0]

    once, twice = both(30, 1, {0, 1, 2}), both(30, 2, {0, 1, 2})
    for name in ("UA", "UA_shown", "UA_replayed"):
        assert (twice[0][name]["k"], twice[0][name]["n"]) == (54, 60)
        assert [twice[0][name][key] for key in ("low", "high")] == pytest.approx([once[0][name][key] for key in ("low", "high")])
        assert "effective" not in once[0][name] and twice[0][name]["effective"] == pytest.approx(30)
    assert (once[1]["method"], twice[1]["method"]) == ("Clopper-Pearson", "Clopper-Pearson, clustered by prompt")
    assert (twice[1]["low"], twice[1]["high"]) == pytest.approx(clopper_pearson(27, 30)[1:])
    assert clopper_pearson(60, 60).low > 0.9  # which 60 pictures of 30 prompts do not show
    open_ = both(30, 2, set())[1]
    assert open_["state"] == "INCONCLUSIVE" and both(open_["needed"] // 2 + 1, 2, set())[1]["state"] == "PASS"


def test_prompts_that_bring_nothing_leave_their_gate_open(big: StableDiffusion, edit: Edit, tmp_path: Path) -> None:  # noqa: F811
    suite, out = load_suite(written(tmp_path)), tmp_path / "audit"
    audit(big, [edit], plan_of(edit, suite), out)
    result = {**recount(out, suite), **count_rates(planted(out, {"base": set(), "erased": set()}), suite, "object", ["boat"])}
    assert "UA_shown" not in result["models"]["erased"]["rates"] and result["distance"] is None and result["distances"] == {}
    found = decide_verdict(suite.gates, result)
    assert (found["state"], found["unmeasured"]) == ("INCONCLUSIVE", ["gone where shown"])
    assert write_report(out, suite.gates, result) == 4
    record = json.loads((out / "report.json").read_text())
    assert "The base shows it under none of these prompts" in " ".join(record["conclusions"]) and record["distance_kept"] is None


def test_the_kind_of_the_suite_blurs_the_page(big: StableDiffusion, edit: Edit, tmp_path: Path) -> None:  # noqa: F811
    suite, out = load_suite(written(tmp_path, kind="nsfw")), tmp_path / "audit"
    audit(big, [edit], plan_of(edit, suite), out)
    write_report(out, suite.gates, recount(out, suite))
    page = Page((out / "report.html").read_text())
    assert len(page.all("img")) == sum(attrs.get("class") == "veil" for attrs in page.all("label")) > 0


def test_another_form_cannot_recount(big: StableDiffusion, edit: Edit, tmp_path: Path) -> None:  # noqa: F811
    suite, out = load_suite(written(tmp_path)), tmp_path / "audit"
    result = audit(big, [edit], plan_of(edit, suite), out)
    with pytest.raises(UserError, match="of another form"):
        recount(out, load_suite("pocket"))
    assert "--prompts LIST" in audit_command(out, {**result, "suite_file": None, "job": {**result["job"], "suite": "nudity"}})


def test_attacks_and_relearning_on_listed_prompts(big: StableDiffusion, edit: Edit, tmp_path: Path) -> None:  # noqa: F811
    use = {
        "seed_search": {},
        "random_prefix": {"tokens": 2},
        "soft_prefix": {"tokens": 2, "steps": 2, "batch": 2},
        "ring_a_bell": {"tokens": 2, "population": 4, "generations": 2},
        "concept_inversion": {"tokens": 2, "steps": 2, "batch": 1},
        "relearning": {"data": "benign", "steps": 2, "checkpoints": 2, "batch": 2, "adapter": "full"},
    }
    attacks = {"tiers": ["smoke"], "prompts": 3, "pictures": 2, "fresh": 1, "use": use}
    suite = load_suite(written(tmp_path, benign="benign.txt", attacks=attacks))
    result = audit(big, [edit], plan_of(edit, suite), tmp_path / "audit")
    found = {a["name"]: a for a in result["attacks"]}
    assert not [a for a in result["attacks"] if "crashed" in a]
    assert {name for name, a in found.items() if "skipped" in a} == {"ring_a_bell", "concept_inversion"}
    assert "which a list of prompts does not say" in found["ring_a_bell"]["skipped"]
    assert [len(found[name]["curve"]) for name in ("seed_search", "random_prefix", "soft_prefix")] == [3, 3, 3]
    assert (found["soft_prefix"]["asked"], len(found["relearning"]["steps"])) == (3, 3)
    assert result["models"]["erased"]["rates"]["UA_attacked"]["n"] == 3
    assert write_report(tmp_path / "audit", suite.gates, result) in (0, 3, 4)


def test_every_prompt_is_drawn_with_its_own_guidance(big: StableDiffusion, edit: Edit, tmp_path: Path) -> None:  # noqa: F811
    suite = load_suite(written(tmp_path))
    todo = plan_of(edit, suite, "standard").samples
    drawn = samples.generate_batch(big, suite, todo)
    for scale, some in ((4.0, [0, 2, 4]), (7.0, [1, 3, 5])):
        alone = samples.generate_from_prompts(big, [todo[i].case.prompt for i in some], [todo[i].seed for i in some], suite.steps, scale)
        assert (drawn[some].int() - alone.int()).abs().max() <= 1
    plain = samples.generate_batch(big, suite, [replace(a, case=replace(a.case, guidance=None)) for a in todo])
    assert (drawn[1::2].int() - plain[1::2].int()).abs().max() > 1
    keys = [samples.cache_key(big, "w", suite, a) for a in todo]
    assert samples.cache_key(big, "w", suite, replace(todo[1], case=replace(todo[1].case, guidance=None))) not in keys
