"""The report page: one file that requests nothing, whatever text it holds; what it shows of attacks; what it hides."""

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from erasure.concept import Concept
from erasure.edits import Edit
from erasure.families.stable_diffusion import StableDiffusion
from eval.auditing.plan import AuditPlan
from eval.auditing.prepare import AuditOptions
from eval.auditing.run import audit_plan
from eval.records.attacks import AttackInfo, AttackRecord
from eval.records.audit_result import AuditResult, ErasedConcept
from eval.records.distances import DenoiserDivergence, DivergenceDirections
from eval.records.fields import ImagePart
from eval.records.gates import Gate
from eval.records.models import BASE, ERASED, retrained_model
from eval.records.rates import RateName
from eval.records.report import LabelCount
from eval.records.result_files import read_result
from eval.records.row_files import write_rows
from eval.records.rows import AttackRow, FailedAttackRow, FineTuningRow, SampleRow, SearchRow
from eval.records.scores import LabelScore
from eval.report import charts
from eval.report.commands import audit_command
from eval.report.conclusions import list_not_measured
from eval.report.gallery import MAX_PAIRS, MAX_SIDE, Gallery, ImagePair, list_failures, pairs_of, rates_by_neighbor, spread_evenly
from eval.report.html import attack_variables, sort_by_loss, write_report
from eval.scoring.attack_rates import add_attacked_rate, count_attack_rates
from eval.scoring.counting import count_rates
from eval.scoring.rates import counted_rate
from eval.scoring.recount import load_sample_rows
from eval.stats.intervals import Interval
from tests import tiny
from tests.eval.factories import attack_info, attack_scores, sample_row
from tests.eval.page import HOSTILE, Page, assert_harmless
from tests.factories import erase_on_small_latents, small_suite
from tests.planted import replace_samples

ONE_TO_TWO = Interval(1, 0, 2)
NATS = DivergenceDirections(forward=ONE_TO_TWO, backward=ONE_TO_TWO, mean=ONE_TO_TWO)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StableDiffusion, Edit, Path]]:
    """A real audit of a tiny model, in the folder of its edit."""
    root = tmp_path_factory.mktemp("report") / "it's here"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASURE_CACHE", str(root / "cache"))
        model = StableDiffusion(tiny.pipeline(size=16, levels=3), "tiny", "fp32")
        edit = erase_on_small_latents(model, [Concept(name="neon", kind="style")], root / "edit")
        (plan,) = AuditPlan.for_edits([edit], small_suite(), "smoke")
        audit_plan(model, [edit], plan, root / "edit" / "audit")
        yield model, edit, root / "edit" / "audit"


@pytest.fixture
def folder(finished: tuple[StableDiffusion, Edit, Path], tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    shutil.copytree(finished[2], tmp_path / "audit")
    return tmp_path / "audit"


def write_page(folder: Path, result: AuditResult, gates: Any = None, **options: Any) -> Page:
    return Page(write_report(folder, result, small_suite().gates if gates is None else gates, **options).read_text(encoding="utf-8"))


def result_under_attack(folder: Path, name: str = "soft", found_prompt: str = "glowing tubes") -> AuditResult:
    """Plant attacks: a control that never succeeds, a search that always does, one skipped, one crashed, one fine-tuning."""
    result, rows = read_result(folder), load_sample_rows(folder)
    attacked = [row for row in rows if row.role in ("grid", "named") and row.style == "neon" and row.model == BASE]
    first = {row.file_name: {BASE: True, ERASED: False} for row in attacked}
    infos = [
        AttackInfo(name=attack, paper="arXiv:0", threat="may ask", control=attack == "seeds", fields={"tokens": 3})
        for attack in ("seeds", name, "bell", "prefix", "tuned")
    ]
    checkpoints = [
        FineTuningRow(attack="tuned", step=step, scores=attack_scores(*(i < shown for i in range(8))))
        for step, shown in ((0, 0), (50, 2), (100, 6))
    ]
    attack_rows: list[AttackRow] = [
        FailedAttackRow(attack="bell", skipped="it needs a text encoder"),
        FailedAttackRow(attack="prefix", crashed="FloatingPointError: no images"),
        *checkpoints,
    ]
    for i, row in enumerate(attacked):
        for attack, succeeds in (("seeds", False), (name, True)):
            attack_rows.append(
                SearchRow(
                    attack=attack,
                    index=i,
                    image=row.file_name,
                    prompt=row.prompt,
                    search_scores=attack_scores(False, succeeds, False),
                    round=1 if succeeds else None,
                    found_prompt=f"{found_prompt} {i}" if succeeds else None,
                    fresh_scores=attack_scores(True, False) if succeeds else (),
                )
            )
    (folder / "attacks" / "soft").mkdir(parents=True, exist_ok=True)
    write_rows(folder / "attacks" / "attacks.jsonl", attack_rows)
    for i, row in enumerate(attacked):
        shutil.copy(folder / row.image, folder / "attacks" / "soft" / f"{i:04d}.png")
    attacks = count_attack_rates(attack_rows, infos, first)
    return add_attacked_rate(replace(result, attacks=attacks), attacks)


def with_attacks(result: AuditResult, *changed: AttackRecord) -> AuditResult:
    """The result with attacks in place of those of the same names."""
    by_name = {attack.name: attack for attack in changed}
    return replace(result, attacks=tuple(by_name.get(attack.name, attack) for attack in result.attacks))


def relabeled(row: SampleRow, style: str) -> SampleRow:
    """The row with another label of the style judge."""
    return replace(row, scores=replace(row.scores, style=LabelScore(label=style, p=1.0)))


def test_the_page_is_one_file_that_requests_nothing(folder: Path) -> None:
    page = write_page(folder, result_under_attack(folder))
    assert_harmless(page)
    assert len(page.all("img")) >= 2 * 6 + 2 * 4 + 6  # six pairs of the concept, four of the rest, six that an attack found
    assert all(attrs.get("alt") for attrs in page.all("img"))
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") for attrs in page.all("svg"))
    order = ["verdict", "images", "rates", "attacks", "relearning", "retained", "method", "limits", "evidence"]
    assert [attrs["id"] for attrs in page.all("section")] == order
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_hostile_text_stays_text(folder: Path) -> None:
    """In prompts, in the names of attacks, gates and concepts, in prompts that attacks found, and in why a judge is missing."""
    replace_samples(folder, [replace(row, prompt=HOSTILE + row.prompt) for row in load_sample_rows(folder)])
    result = result_under_attack(folder, name=HOSTILE, found_prompt=HOSTILE)
    plain = write_page(folder, read_result(folder))
    attacks = tuple(
        replace(attack, name=attack.name if attack.name == HOSTILE else HOSTILE + attack.name, threat=HOSTILE, fields={HOSTILE: HOSTILE})
        for attack in result.attacks
    )
    concept = replace(result.edits[0].concepts[0], name=HOSTILE)
    result = replace(
        result,
        attacks=attacks,
        edits=(replace(result.edits[0], concepts=(concept,), fields={**result.edits[0].fields, HOSTILE: HOSTILE}),),
        judges={**result.judges, "style": {**result.judges["style"], HOSTILE: [HOSTILE]}},
        missing={HOSTILE: HOSTILE},
        job=replace(result.job, suite=HOSTILE),
    )
    page = write_page(
        folder, result, [Gate(name=HOSTILE, rate="UA", at_least=0.5), Gate(name=HOSTILE + "2", rate="UA_perturbed", at_least=0.5)]
    )
    assert_harmless(page)
    assert page.visible_text().count("<script>alert(1)</script>") > 20
    assert "{{ 7*7 }}" in page.visible_text() and "49 url(" not in page.visible_text()
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags} | {"br", "b", "code", "rect"}
    assert all(HOSTILE in (attrs["alt"] or "") for attrs in page.all("img"))


@pytest.mark.parametrize("cause", ["the kind of a concept", "the flag"])
def test_sensitive_images_are_blurred_until_they_are_opened(folder: Path, cause: str) -> None:
    result = result_under_attack(folder)
    if cause != "the flag":
        concept = replace(result.edits[0].concepts[0], kind="nsfw")
        result = replace(result, edits=(replace(result.edits[0], concepts=(concept,)),))
    page = write_page(folder, result, blur=cause == "the flag")
    images = page.all("img")
    assert len(images) >= 26
    prompts = {row.prompt for row in load_sample_rows(folder)} | {"glowing"}
    for i, (tag, attrs) in enumerate(page.tags):
        if tag == "img":
            (label, label_attrs), (box, box_attrs) = page.tags[i - 2 : i]
            assert (label, label_attrs.get("class"), box, box_attrs.get("type")) == ("label", "veil", "input", "checkbox")
            assert not any(prompt in (attrs["alt"] or "") for prompt in prompts)
    assert not any("checked" in attrs for attrs in page.all("input"))
    style = "".join(data for tag, data in page.words if tag == "style")
    assert re.search(r"\.veil img \{ filter: blur\(\d+px\)", style)
    assert [attrs["id"] for attrs in page.all("input") if "id" in attrs] == ["all-shown"]


def test_other_images_are_not_blurred(folder: Path) -> None:
    page = write_page(folder, read_result(folder))
    assert not page.all("input") and "neon" in (page.all("img")[0]["alt"] or "")


def test_every_attack_has_a_row_with_the_controls_beside_it(folder: Path) -> None:
    result = result_under_attack(folder)
    page = write_page(folder, result)
    text = page.visible_text()
    n = result.searches[0].n
    rows = re.findall(r'<tr><th scope="row">.*?</tr>', page.text.partition('id="attacks"')[2].partition('id="retained"')[0], re.S)
    cells = [" ".join(re.sub("<[^>]+>", " ", row).split()) for row in rows]
    names = ["seeds", "soft", "bell", "prefix", "tuned"]
    assert [next(name for name in names if f" {name} arXiv:0" in f" {row}") for row in cells] == names
    assert f"0.0% 0/{n}" in cells[0] and "this is a control" in cells[0] and "nothing found" in cells[0]
    assert f"100.0% {n}/{n}" in cells[1] and f"50.0% {n}/{2 * n}" in cells[1] and "tokens=3" in cells[1]
    assert re.search(r"\+100\.0 \(\+\d+\.\d to \+100\.0\) points over seeds: more excludes 0", cells[1])
    assert "half: &gt; 3, 95%: &gt; 3 no success" in cells[0]
    assert f"half: 2, 95%: 2 2.0 per success; {n} searched" in cells[1] and "without an attack" not in cells[1]
    assert "skipped : it needs a text encoder" in cells[2] and "crashed , which is neither a success nor a failure" in cells[3]
    assert "0.0% 0/8" in cells[4] and "75.0% 6/8" in cells[4] and "after 100 steps" in cells[4]
    assert f"soft: prompts that it found 6 of {n} shown" in text and "glowing tubes 0" in text
    assert "image 2 of the search; from fresh noise 1 of 2" in text
    assert text.count("prompts broken, %") == 2  # the title of one chart, and the name of its axis


def test_prompts_without_an_attack_and_concepts_that_were_not_erased_are_named(folder: Path) -> None:
    result = result_under_attack(folder)
    search, tuning = result.searches[1], result.fine_tunings[0]
    broken_before = replace(search, curve=(replace(search.curve[0], k=2), *search.curve[1:]), searched=search.n - 2)
    nothing_to_revive = replace(tuning, erased_before=False, revived_at_step=None)
    result = with_attacks(result, broken_before, nothing_to_revive)
    text = write_page(folder, result).visible_text()
    assert "2 without an attack" in text and f"{search.n - 2} searched" in text
    assert "prompts within 3 images each (2 of them without an attack); up to" in text
    assert "nothing to revive: it was not erased before" in text
    assert "(tuned) had nothing to revive: the concept was not erased before; 6 of 8 images show it after 100 steps" in text
    result = with_attacks(result, replace(broken_before, searched=0))
    assert "none needed an attack" in write_page(folder, result).visible_text()


def test_what_an_attack_found_is_shown_where_it_was_needed(folder: Path) -> None:
    result, rows = result_under_attack(folder), list(load_sample_rows(folder))
    attacked = [i for i, row in enumerate(rows) if row.role in ("grid", "named") and row.style == "neon" and row.model == ERASED]
    for number, i in enumerate(attacked):
        rows[i] = relabeled(rows[i], "sketch" if number == 3 else "neon")
    replace_samples(folder, rows)
    assert re.findall(r"glowing tubes \d+", write_page(folder, result).visible_text()) == ["glowing tubes 3"]


def test_an_attack_that_chance_explains_is_named_so(folder: Path) -> None:
    result = result_under_attack(folder)
    search = result.searches[1]
    difference = replace(search.over_controls["seeds"], estimate=0.05, low=-0.1, high=0.2)
    result = with_attacks(result, replace(search, over_controls={"seeds": difference}))
    assert re.search(r"over seeds: *not shown to be more *contains 0", write_page(folder, result).visible_text())


def test_attack_curves_are_at_their_shares(folder: Path) -> None:
    variables = attack_variables(result_under_attack(folder))
    frame = charts.PlotArea(right=320, x_max=3)
    control, search = (str(variables["search_chart"]).partition(f'class="{look}')[2] for look in ("series control", "series c1"))
    points = "L".join(f"{frame.x(x):.1f} {frame.y(share):.1f}" for x, share in ((0, 0), (1, 0), (2, 1), (3, 1)))
    assert points in search.partition("</g>")[0] and "stroke-dasharray" not in search.partition("</g>")[0]
    assert "stroke-dasharray" in control.partition("</g>")[0]
    tuning = str(variables["fine_tuning_chart"])
    assert 'class="band"' in tuning and 'class="level base"' in tuning and tuning.count('class="ring"') == 1
    assert (frame.y(0), frame.y(1), frame.x(0)) == (charts.BOTTOM, charts.TOP, charts.LEFT)


def test_a_scatter_has_every_model_and_the_thresholds(folder: Path) -> None:
    result = read_result(folder)
    page = write_page(folder, result, [Gate(name="erased", rate="UA", at_least=0.9)])
    all_erased = Interval(1, 0.9, 1)
    frame = charts.PlotArea(right=420, x_max=1)
    chart = str(
        charts.scatter_chart(
            {BASE: (Interval(0, 0, 0.1), all_erased), ERASED: (all_erased, all_erased), retrained_model(2): (all_erased, all_erased)},
            0.9,
            0.8,
        )
    )
    assert "erased: erased 100.0% (90.0 to 100.0), retained 100.0% (90.0 to 100.0)" in chart and "retrained 2" in chart
    assert f"M{frame.x(0.9):.1f} {charts.TOP}V" in chart and f"M{charts.LEFT} {frame.y(0.8):.1f}H" in chart
    assert page.text.count('class="gate"') == 1  # no line where IRA and CRA have no gate
    assert write_page(folder, result).text.count('class="gate"') == 2


@pytest.mark.parametrize(
    ("interval", "limit", "is_minimum", "passes"),
    [(Interval(0.95, 0.92, 1), 0.9, True, True), (Interval(0.2, 0.15, 0.3), 0.1, False, False)],
)
def test_the_shaded_side_of_a_gate_is_the_one_that_passes(interval: Interval, limit: float, is_minimum: bool, passes: bool) -> None:
    chart = str(charts.gate_chart(interval, limit, is_minimum))
    shaded = re.search(r'class="good" x="([\d.]+)" y="2" width="([\d.]+)"', chart)
    line = re.search(r'class="whisker" d="M([\d.]+) 11H([\d.]+)"', chart)
    assert shaded and line
    start, width, low, high = (float(x) for x in (*shaded.groups(), *line.groups()))
    assert (start <= low and high <= start + width) == passes


def test_captions_name_what_a_table_measures(folder: Path) -> None:
    """Narrow screens hide the header row and show captions and the labels of cells."""
    result = read_result(folder)
    divergence = DenoiserDivergence(part="retained", first=BASE, second=ERASED, n=3, nats=NATS)
    result = replace(result, denoiser_divergences=(divergence,))
    page = write_page(folder, result)
    captions = " ".join(data for tag, data in page.words if tag == "caption")
    for measured in ("100 × cosine", "Distance to the base's images", "Denoiser divergence, nats"):
        assert measured in captions
    assert {"from the first", "from the second", "KID"} <= {attrs.get("data-label") for attrs in page.all("td")}
    assert "the erased concept's images, asked for by name, whose object is still labeled as prompted" in page.visible_text()


def test_a_missing_judge_leaves_the_images_and_is_named(folder: Path) -> None:
    rows = [replace(row, scores=replace(row.scores, style=None)) for row in load_sample_rows(folder)]
    replace_samples(folder, rows)
    counts = count_rates(rows, small_suite(), "style", ["neon"])
    result = replace(read_result(folder), **vars(counts), missing={"style": "no weights; put them there"})
    page = write_page(folder, result)
    assert_harmless(page)
    text = page.visible_text()
    assert "Nothing was counted: the weights of a judge are missing." in text and "no weights; put them there" in text
    assert "INCONCLUSIVE" in text and "erased UA nothing to measure at least 90% ? INCONCLUSIVE" in text
    assert len(page.all("img")) >= 16 and "still shown" not in text


def test_an_audit_that_keeps_no_images_shows_none(finished: tuple[StableDiffusion, Edit, Path], tmp_path: Path) -> None:
    model, edit, _ = finished
    (plan,) = AuditPlan.for_edits([edit], small_suite(), "smoke")
    result = audit_plan(model, [edit], plan, tmp_path / "audit", AuditOptions(keep_images="none"))
    page = write_page(tmp_path / "audit", plant_attacks_without_images(tmp_path / "audit", result))
    assert_harmless(page)
    assert not page.all("img") and "kept no images" in page.visible_text() and "prompts that it found" in page.visible_text()
    assert "--keep-images none" in page.visible_text()


def plant_attacks_without_images(folder: Path, result: AuditResult) -> AuditResult:
    """Plant an attack that left images of its own; the page of such an audit must not show them either."""
    rows = [row for row in load_sample_rows(folder) if row.style == "neon" and row.role == "grid" and row.model == BASE]
    (folder / "attacks" / "soft").mkdir(parents=True)
    found = {"round": 0, "found_prompt": "x", "fresh_scores": (), "search_scores": attack_scores(True)}
    attack_rows = []
    for i, row in enumerate(rows):
        Image.new("RGB", (64, 64)).save(folder / "attacks" / "soft" / f"{i:04d}.png")
        attack_rows.append(SearchRow(attack="soft", index=i, image=row.file_name, prompt=row.prompt, **found))  # type: ignore[arg-type]
    write_rows(folder / "attacks" / "attacks.jsonl", attack_rows)
    attacks = count_attack_rates(attack_rows, [attack_info("soft")], {row.image: {BASE: True, ERASED: False} for row in attack_rows})
    return add_attacked_rate(replace(result, attacks=attacks), attacks)


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        ({}, "without --retrained it is measured only in tier full"),
        ({"strength": 0.5, "tier": "full"}, "the edits were applied at strength 0.5"),
        ({"tier": "full"}, "the edits were applied to a base that they were not made on"),
        ({"retrained": ("x",)}, "the edits were applied to a base that they were not made on"),
    ],
)
def test_a_missing_divergence_is_named(folder: Path, job: dict[str, Any], reason: str) -> None:
    result = read_result(folder)
    lines = [line for line in list_not_measured(replace(result, job=replace(result.job, **job)), ()) if "divergence" in line]
    assert len(lines) == 1 and lines[0].startswith("No denoiser divergence was measured") and reason in lines[0]


def test_a_divergence_that_cannot_be_measured_is_named_once(folder: Path) -> None:
    def divergence_lines(*divergences: DenoiserDivergence) -> list[str]:
        result = replace(read_result(folder), denoiser_divergences=divergences)
        return [line for line in list_not_measured(result, ()) if "divergence" in line]

    parts: tuple[ImagePart, ...] = ("target", "retained")
    lines = divergence_lines(*(DenoiserDivergence(part=part, first=BASE, second=ERASED, n=2, skipped="one-step.") for part in parts))
    assert lines == ["The denoiser divergence of some models was not measured: one-step."]
    assert not divergence_lines(DenoiserDivergence(part="target", first=BASE, second=ERASED, n=2, nats=NATS))


def test_a_retrained_model_has_a_column(folder: Path) -> None:
    result = read_result(folder)
    figures = replace(result.models[BASE], rates={**result.models[BASE].rates, RateName.UA: counted_rate(5, 6)})
    page = write_page(folder, replace(result, models={**result.models, retrained_model(1): figures}))
    assert "83.3% 5/6" in page.visible_text() and page.visible_text().count("retrained") > 6


def test_a_full_page_shows_fewer_pairs_and_says_how_many(folder: Path) -> None:
    """Large images, all of them failures: they are scaled down, and the list of failures stays within its bytes."""
    large = folder / "large.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (MAX_SIDE + 40, MAX_SIDE + 40, 3), np.uint8)).save(large)
    rows = []
    for row in load_sample_rows(folder):
        shutil.copy(large, folder / row.image)
        rows.append(relabeled(row, "neon" if row.model == ERASED or row.style == "neon" else row.style))
    pairs, result = pairs_of(rows), read_result(folder)
    gallery = Gallery(folder, True, bytes_left=300_000)
    roles = list_failures(gallery, pairs, result)
    shown = [(len(part.pairs), part.failed, part.counted) for role in roles for part in role.parts]
    assert shown[0][1:] == (6, 6) and shown[1][1] == shown[1][2] == 2
    assert gallery.bytes_left >= 0 and sum(n for n, _, _ in shown) < sum(failed for _, failed, _ in shown)
    assert all(n <= MAX_PAIRS for n, _, _ in shown)
    image = Gallery(folder, True).embed_image(rows[0].image)
    assert image and not image.coarse and len(image.src) < 2 * MAX_SIDE**2
    replace_samples(folder, rows)
    page = write_page(folder, result)
    assert len(page.text) < 3_000_000 and "still shown 6 of 6" in page.visible_text()


def test_pairs_are_spread_evenly() -> None:
    assert spread_evenly(list("abcdefghi"), 3) == ["a", "e", "i"]
    assert spread_evenly(list("ab"), 5) == ["a", "b"] and spread_evenly([], 3) == []


def test_neighbors_are_counted_by_label_and_sorted_by_loss() -> None:
    def row(label: str, score: str, role: str = "neighbor") -> SampleRow:
        return sample_row(BASE, label, "", (score, None), role=role)

    pairs = [ImagePair(row("tube", "tube"), row("tube", "tube")), *[ImagePair(row("laser", "laser"), row("laser", "none"))] * 2]
    pairs.append(ImagePair(row("grid", "grid", "grid"), row("grid", "none")))
    first, second = sort_by_loss(rates_by_neighbor(pairs, "style"))
    assert (first.label, first.erased, first.loss) == ("laser", LabelCount(k=0, n=2, rate=0.0), 1.0)
    assert (second.label, second.loss) == ("tube", 0.0)


def test_the_command_to_reproduce_survives_a_shell(finished: tuple[StableDiffusion, Edit, Path], folder: Path) -> None:
    out, result = finished[2], read_result(finished[2])
    common = ["--suite", "pocket", "--tier", "smoke"]
    assert shlex.split(audit_command(out, result)) == ["erasure", "audit", str(out.parent), *common, "--dtype", "fp32"]
    assert "'" in str(out)
    job = replace(result.job, strength=0.5, replay="0", suite="mine", retrained=("a", "b"), keep_images="none")
    elsewhere = shlex.split(audit_command(folder, replace(result, job=job)))
    assert elsewhere[:6] == ["erasure", "audit", "EDIT", "--suite", "SUITE.yaml", "--tier"]
    assert elsewhere[elsewhere.index("--retrained") :] == [
        "--retrained",
        "RETRAINED-1",
        "RETRAINED-2",
        "--keep-images",
        "none",
        "--out",
        str(folder),
    ]
    external = replace(result.edits[0], method="external", concepts=(ErasedConcept(name="Van Gogh's; x", kind="style"),))
    command = shlex.split(audit_command(folder, replace(result, edits=(external,))))
    assert command[command.index("--concept") : command.index("--dtype")] == [
        "--concept",
        "Van Gogh's; x",
        "--kind",
        "style",
        "--model",
        "tiny",
    ]
