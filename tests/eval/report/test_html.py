"""The page that is signed from: one file that asks for nothing, whatever text is in it; what it shows of attacks; what it hides."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from erasure.concept import Concept
from erasure.edits import Edit
from erasure.families.stable_diffusion import StableDiffusion
from eval.audit import AuditOptions, AuditPlan, audit
from eval.report import charts as drawing
from eval.report.conclusions import list_not_measured
from eval.report.gallery import MAX_PAIRS, MAX_SIDE, Gallery, ImagePair, list_failures, pairs_of, rates_by_neighbor, spread_evenly
from eval.report.html import attack_variables, audit_command, sort_by_loss, write_report
from eval.scoring.attack_rates import add_attacked_rate, count_attack_rates
from eval.scoring.counting import count_rates
from eval.scoring.gates import Gate
from eval.scoring.recount import load_finished_audit, load_sample_rows
from eval.stats.intervals import Interval, wilson
from tests import tiny
from tests.eval.test_audit import erased, tiny_suite
from tests.planted import replace_samples

HOSTILE = "\"><script>alert(1)</script><img src=x onerror='alert(2)'><a href=//evil.example>{{ 7*7 }} url(http://evil.example/x)"
VOID = {"meta", "img", "input", "br", "path", "circle", "rect"}


class Page(HTMLParser):
    """What a browser would make of a page: tags with their attributes in order, and the text by the tag it stands in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.tags, self.open, self.words = text, [], [], []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID or tag in ("path", "circle", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"closed out of order: {tag}"

    def handle_data(self, data: str) -> None:
        self.words.append((self.open[-1] if self.open else "", data))

    def said(self) -> str:
        return " ".join(" ".join(data for tag, data in self.words if tag != "style").split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def harmless(page: Page) -> None:
    """No script, no handler, and nothing that would be fetched."""
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form", "use", "foreignobject", "a"}
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on") or name in ("srcset", "xlink:href", "href", "action", "poster")], tag
        assert (attrs.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
        assert "url(" not in (attrs.get("style") or "")
    style = "".join(data for tag, data in page.words if tag == "style")
    assert "url(" not in style and "@import" not in style and len(page.all("style")) == 1
    policy = next(attrs["content"] or "" for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StableDiffusion, Edit, Path]]:
    """A real audit of a tiny model, in the folder of its edit."""
    place = tmp_path_factory.mktemp("report") / "it's here"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASURE_CACHE", str(place / "cache"))
        model = StableDiffusion(tiny.pipeline(size=16, levels=3), "tiny", "fp32")
        edit = erased(model, [Concept(name="neon", kind="style")], place / "edit")
        (plan,) = AuditPlan.for_edits([edit], tiny_suite(), "smoke")
        audit(model, [edit], plan, place / "edit" / "audit")
        yield model, edit, place / "edit" / "audit"


@pytest.fixture
def folder(made: tuple[StableDiffusion, Edit, Path], tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    shutil.copytree(made[2], tmp_path / "audit")
    return tmp_path / "audit"


def written(folder: Path, result: dict[str, Any], gates: Any = None, **options: Any) -> Page:
    return Page(write_report(folder, result, tiny_suite().gates if gates is None else gates, **options).read_text(encoding="utf-8"))


def besieged(folder: Path, name: str = "soft", asked: str = "glowing tubes") -> dict[str, Any]:
    """The result with attacks: a control that never succeeds, a search that always does, one skipped, one crashed, one fine-tuning."""
    result, rows = load_finished_audit(folder), load_sample_rows(folder)
    mine = [r for r in rows if r["role"] in ("grid", "named") and r["style"] == "neon" and r["model"] == "base"]
    first = {Path(r["image"]).name: {"base": True, "erased": False} for r in mine}
    about = {
        n: {"paper": "arXiv:0", "threat": "may ask", "control": n == "seeds", "fields": {"tokens": 3}}
        for n in ("seeds", name, "bell", "prefix", "tuned")
    }
    lines: list[dict[str, Any]] = [
        {"attack": "bell", "skipped": "it needs a text encoder"},
        {"attack": "prefix", "crashed": "FloatingPointError: no pictures"},
        *(
            {"attack": "tuned", "step": step, "read": [{"shown": i < shown} for i in range(8)]}
            for step, shown in ((0, 0), (50, 2), (100, 6))
        ),
    ]
    for i, row in enumerate(mine):
        for attack, hit in (("seeds", False), (name, True)):
            tried = [{"shown": False}, {"shown": hit}, {"shown": False}]
            fresh = [{"shown": True}, {"shown": False}] if hit else []
            lines.append(
                {"attack": attack, "index": i, "image": Path(row["image"]).name, "prompt": row["prompt"], "tried": tried}
                | {"round": 1 if hit else None, "asked": f"{asked} {i}" if hit else None, "fresh": fresh}
            )
    (folder / "attacks" / "soft").mkdir(parents=True, exist_ok=True)
    (folder / "attacks" / "attacks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for i, row in enumerate(mine):
        shutil.copy(folder / row["image"], folder / "attacks" / "soft" / f"{i:04d}.png")
    attacks = count_attack_rates(lines, about, first)
    return add_attacked_rate({**result, "attacks": attacks}, attacks)


def test_the_page_is_one_file_that_asks_for_nothing(folder: Path) -> None:
    page = written(folder, besieged(folder))
    harmless(page)
    assert len(page.all("img")) >= 2 * 6 + 2 * 4 + 6  # six pairs of the concept, four of the rest, six found by an attack
    assert all(attrs.get("alt") for attrs in page.all("img"))
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") for attrs in page.all("svg"))
    order = ["verdict", "rates", "attacks", "relearning", "kept", "pictures", "method", "limits"]
    assert [attrs["id"] for attrs in page.all("section")] == order
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_hostile_text_stays_text(folder: Path) -> None:
    """In prompts, in the names of attacks, gates and concepts, in what attacks asked, and in why a judge is missing."""
    samples = folder / "samples.jsonl"
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    replace_samples(samples, "".join(json.dumps({**row, "prompt": HOSTILE + row["prompt"]}) + "\n" for row in rows))
    result = besieged(folder, name=HOSTILE, asked=HOSTILE)
    calm = written(folder, load_finished_audit(folder))
    for attack in result["attacks"]:
        attack["name"] = attack["name"] if attack["name"] == HOSTILE else HOSTILE + attack["name"]
        attack["threat"], attack["fields"] = HOSTILE, {HOSTILE: HOSTILE}
    result["edits"][0]["concepts"][0]["name"] = HOSTILE
    result["edits"][0]["fields"][HOSTILE] = HOSTILE
    result["judges"]["style"][HOSTILE] = [HOSTILE]
    result["missing"] = {HOSTILE: HOSTILE}
    result["job"]["suite"] = HOSTILE
    page = written(folder, result, [Gate(name=HOSTILE, rate="UA", at_least=0.5), Gate(name=HOSTILE + "2", rate="UA_mutated", at_least=0.5)])
    harmless(page)
    assert page.said().count("<script>alert(1)</script>") > 20
    assert "{{ 7*7 }}" in page.said() and "49 url(" not in page.said()
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in calm.tags} | {"br", "b", "code", "rect"}
    assert all(HOSTILE in (attrs["alt"] or "") for attrs in page.all("img"))


@pytest.mark.parametrize("way", ["the kind of a concept", "asked for"])
def test_sensitive_pictures_are_blurred_until_asked_for(folder: Path, way: str) -> None:
    result = besieged(folder)
    if way != "asked for":
        result["edits"][0]["concepts"][0]["kind"] = "nsfw"
    page = written(folder, result, blur=way == "asked for")
    images = page.all("img")
    assert len(images) >= 26
    prompts = {row["prompt"] for row in load_sample_rows(folder)} | {"glowing"}
    for i, (tag, attrs) in enumerate(page.tags):
        if tag == "img":
            (label, at), (box, state) = page.tags[i - 2 : i]
            assert (label, at.get("class"), box, state.get("type")) == ("label", "veil", "input", "checkbox")
            assert not any(prompt in (attrs["alt"] or "") for prompt in prompts)
    assert not any("checked" in attrs for attrs in page.all("input"))
    style = "".join(data for tag, data in page.words if tag == "style")
    assert re.search(r"\.veil img \{ filter: blur\(\d+px\)", style)
    assert [attrs["id"] for attrs in page.all("input") if "id" in attrs] == ["all-shown"]


def test_other_pictures_are_not_blurred(folder: Path) -> None:
    page = written(folder, load_finished_audit(folder))
    assert not page.all("input") and "neon" in (page.all("img")[0]["alt"] or "")


def test_every_attack_has_a_row_and_the_controls_stand_beside_it(folder: Path) -> None:
    result = besieged(folder)
    page = written(folder, result)
    said = page.said()
    n = result["attacks"][0]["n"]
    rows = re.findall(r'<tr><th scope="row">.*?</tr>', page.text.partition('id="attacks"')[2].partition('id="kept"')[0], re.S)
    texts = [" ".join(re.sub("<[^>]+>", " ", row).split()) for row in rows]
    names = ["seeds", "soft", "bell", "prefix", "tuned"]
    assert [next(name for name in names if f" {name} arXiv:0" in f" {text}") for text in texts] == names
    assert f"0.0 % 0/{n}" in texts[0] and "this is a control" in texts[0] and "nothing found" in texts[0]
    assert f"100.0 % {n}/{n}" in texts[1] and f"50.0 % {n}/{2 * n}" in texts[1] and "tokens=3" in texts[1]
    assert re.search(r"\+100\.0 \(\+\d+\.\d to \+100\.0\) points over seeds: more excludes 0", texts[1])
    assert "half: &gt; 3, 95 %: &gt; 3 no success" in texts[0]
    assert f"half: 2, 95 %: 2 2.0 a success; {n} searched" in texts[1] and "without an attack" not in texts[1]
    assert "skipped : it needs a text encoder" in texts[2] and "crashed , which is no success" in texts[3]
    assert "0.0 % 0/8" in texts[4] and "75.0 % 6/8" in texts[4] and "after 100 steps" in texts[4]
    assert f"soft: ways of asking that it found 6 of {n} shown" in said and "glowing tubes 0" in said
    assert "picture 2 of the search; on fresh noise 1 of 2" in said
    assert said.count("prompts broken, %") == 2  # the title of one chart, and the name of its axis


def test_what_needed_no_attack_and_what_was_never_gone_are_told_apart(folder: Path) -> None:
    result = besieged(folder)
    search, tuning = result["attacks"][1], result["attacks"][4]
    search["curve"][0]["k"], search["searched"] = 2, search["n"] - 2
    tuning |= {"gone": False, "revived": None}
    said = written(folder, result).said()
    assert "2 without an attack" in said and f"{search['n'] - 2} searched" in said
    assert "prompts within 3 pictures each (2 of them without an attack); up to" in said
    assert (
        "nothing to revive: it was not gone before" in said
        and "(tuned) had nothing to revive: the concept was not gone before; 6 of 8 pictures show it after 100 steps" in said
    )
    search["searched"] = 0
    assert "none needed an attack" in written(folder, result).said()
    for attack in result["attacks"]:  # as an audit of an earlier version has them
        for key in ("attempts", "searched", "gone"):
            attack.pop(key, None)
    assert "not counted when this audit was made" in written(folder, result).said()


def test_what_an_attack_found_is_shown_where_it_was_needed(folder: Path) -> None:
    result, samples = besieged(folder), folder / "samples.jsonl"
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    mine = [r for r in rows if r["role"] in ("grid", "named") and r["style"] == "neon" and r["model"] == "erased"]
    for i, row in enumerate(mine):
        row["read"]["style"]["label"] = "sketch" if i == 3 else "neon"
    replace_samples(samples, "".join(json.dumps(row) + "\n" for row in rows))
    assert re.findall(r"glowing tubes \d+", written(folder, result).said()) == ["glowing tubes 3"]


def test_an_attack_that_chance_explains_is_said_to_be_no_more(folder: Path) -> None:
    result = besieged(folder)
    result["attacks"][1]["beyond"]["seeds"].update(estimate=0.05, low=-0.1, high=0.2)
    assert re.search(r"over seeds: *not shown to be more *contains 0", written(folder, result).said())


def test_lines_of_attacks_stand_where_the_shares_are(folder: Path) -> None:
    charts = attack_variables(besieged(folder)["attacks"])
    frame = drawing.PlotArea(right=320, x_max=3)
    control, search = (str(charts["search_chart"]).partition(f'class="{look}')[2] for look in ("series control", "series c1"))
    points = "L".join(f"{frame.x(x):.1f} {frame.y(share):.1f}" for x, share in ((0, 0), (1, 0), (2, 1), (3, 1)))
    assert points in search.partition("</g>")[0] and "stroke-dasharray" not in search.partition("</g>")[0]
    assert "stroke-dasharray" in control.partition("</g>")[0]
    tuning = str(charts["tuning_chart"])
    assert 'class="band"' in tuning and 'class="level base"' in tuning and tuning.count('class="ring"') == 1
    assert (frame.y(0), frame.y(1), frame.x(0)) == (drawing.BOTTOM, drawing.TOP, drawing.LEFT)


def test_a_scatter_has_every_model_and_the_thresholds(folder: Path) -> None:
    result = load_finished_audit(folder)
    page = written(folder, result, [Gate(name="gone", rate="UA", at_least=0.9)])
    one = Interval(1, 0.9, 1)
    frame = drawing.PlotArea(right=420, x_max=1)
    chart = str(drawing.scatter_chart({"base": (Interval(0, 0, 0.1), one), "erased": (one, one), "oracle-2": (one, one)}, 0.9, 0.8))
    assert "erased: erased 100.0 % (90.0 to 100.0), kept 100.0 % (90.0 to 100.0)" in chart and "never saw it 2" in chart
    assert f"M{frame.x(0.9):.1f} {drawing.TOP}V" in chart and f"M{drawing.LEFT} {frame.y(0.8):.1f}H" in chart
    assert page.text.count('class="gate"') == 1  # no line where IRA and CRA have no gate
    assert written(folder, result).text.count('class="gate"') == 2


@pytest.mark.parametrize(
    ("found", "limit", "least", "good"), [(Interval(0.95, 0.92, 1), 0.9, True, True), (Interval(0.2, 0.15, 0.3), 0.1, False, False)]
)
def test_the_shaded_side_of_a_gate_is_the_one_that_passes(found: Interval, limit: float, least: bool, good: bool) -> None:
    chart = str(drawing.gate_chart(found, limit, least))
    shaded = re.search(r'class="good" x="([\d.]+)" y="2" width="([\d.]+)"', chart)
    line = re.search(r'class="whisker" d="M([\d.]+) 11H([\d.]+)"', chart)
    assert shaded and line
    start, width, low, high = (float(x) for x in (*shaded.groups(), *line.groups()))
    assert (start <= low and high <= start + width) == good


def test_what_a_table_measures_stands_where_phones_show_it(folder: Path) -> None:
    """In its caption: narrow screens hide the header row and show the labels of cells."""
    result = load_finished_audit(folder)
    nats = {"forward": [1, 0, 2], "backward": [1, 0, 2], "mean": [1, 0, 2]}
    result["divergence"] = [{"prompts": "kept", "first": "base", "second": "erased", "n": 3, "nats": nats}]
    page = written(folder, result)
    captions = " ".join(data for tag, data in page.words if tag == "caption")
    for measured in ("100 × cosine", "Distance to the base's pictures", "Denoiser divergence, nats"):
        assert measured in captions
    assert {"from the first", "from the second", "KID"} <= {attrs.get("data-label") for attrs in page.all("td")}
    assert "the erased concept's pictures, asked for by name, whose object is still read as asked" in page.said()


def test_a_missing_judge_leaves_the_pictures_and_says_so(folder: Path) -> None:
    samples = folder / "samples.jsonl"
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    for row in rows:
        del row["read"]["style"]
    replace_samples(samples, "".join(json.dumps(row) + "\n" for row in rows))
    result = {
        **load_finished_audit(folder),
        **count_rates(rows, tiny_suite(), "style", ["neon"]),
        "missing": {"style": "no weights; put them there"},
    }
    page = written(folder, result)
    harmless(page)
    said = page.said()
    assert "Nothing was counted: a judge has no weights." in said and "no weights; put them there" in said
    assert "INCONCLUSIVE" in said and "erased UA nothing to measure at least 90 % ? INCONCLUSIVE" in said
    assert len(page.all("img")) >= 16 and "still shown" not in said


def test_an_audit_that_keeps_no_pictures_shows_none(made: tuple[StableDiffusion, Edit, Path], tmp_path: Path) -> None:
    model, edit, _ = made
    (plan,) = AuditPlan.for_edits([edit], tiny_suite(), "smoke")
    result = audit(model, [edit], plan, tmp_path / "audit", AuditOptions(keep_images="none"))
    page = written(tmp_path / "audit", besieged_without_pictures(tmp_path / "audit", result))
    harmless(page)
    assert not page.all("img") and "kept no pictures" in page.said() and "ways of asking that it found" in page.said()
    assert "--keep-images none" in page.said()


def besieged_without_pictures(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Attacks leave pictures of their own behind; the page of such an audit must not show them either."""
    rows = [r for r in load_sample_rows(folder) if r["style"] == "neon" and r["role"] == "grid" and r["model"] == "base"]
    (folder / "attacks" / "soft").mkdir(parents=True)
    lines = []
    for i, row in enumerate(rows):
        Image.new("RGB", (64, 64)).save(folder / "attacks" / "soft" / f"{i:04d}.png")
        common = {"attack": "soft", "index": i, "image": Path(row["image"]).name, "prompt": row["prompt"]}
        lines.append({**common, "tried": [{"shown": True}], "round": 0, "asked": "x", "fresh": []})
    (folder / "attacks" / "attacks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    about = {"soft": {"paper": "", "threat": "", "control": False, "fields": {}}}
    attacks = count_attack_rates(lines, about, {line["image"]: {"base": True, "erased": False} for line in lines})
    return add_attacked_rate({**result, "attacks": attacks}, attacks)


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({}, "without --oracle it is measured in tier full alone"),
        ({"strength": 0.5, "tier": "full"}, "the edits were applied at strength 0.5"),
        ({"tier": "full"}, "the edits were applied to a base that they were not made on"),
        ({"oracles": ["x"]}, "the edits were applied to a base that they were not made on"),
    ],
)
def test_a_missing_divergence_is_named(folder: Path, job: dict[str, Any], words: str) -> None:
    result = load_finished_audit(folder)
    said = [line for line in list_not_measured({**result, "job": {**result["job"], **job}}, ()) if "divergence" in line]
    assert len(said) == 1 and said[0].startswith("No denoiser divergence was measured") and words in said[0]


def test_a_divergence_that_cannot_be_measured_is_named_once(folder: Path) -> None:
    pairs = [{"prompts": part, "first": "base", "second": "erased", "n": 2, "skipped": "one-step."} for part in ("target", "kept")]
    said = [line for line in list_not_measured({**load_finished_audit(folder), "divergence": pairs}, ()) if "divergence" in line]
    assert said == ["The denoiser divergence of some models was not measured: one-step."]
    measured = [{**pairs[0], "nats": {}}]
    del measured[0]["skipped"]
    assert not [line for line in list_not_measured({**load_finished_audit(folder), "divergence": measured}, ()) if "divergence" in line]


def test_a_model_that_never_saw_it_gets_its_column(folder: Path) -> None:
    result = load_finished_audit(folder)
    result["models"]["oracle"] = json.loads(json.dumps(result["models"]["base"]))
    result["models"]["oracle"]["rates"]["UA"] = {"k": 5, "n": 6, **wilson(5, 6)._asdict()}
    page = written(folder, result)
    assert "83.3 % 5/6" in page.said() and page.said().count("never saw it") > 6


def test_a_full_page_shows_fewer_pairs_and_says_how_many(folder: Path) -> None:
    """Pictures of another size, all of them failures: they are made smaller, and the drill-down stays within its bytes."""
    rows, large = load_sample_rows(folder), folder / "large.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (MAX_SIDE + 40, MAX_SIDE + 40, 3), np.uint8)).save(large)
    for row in rows:
        shutil.copy(large, folder / row["image"])
        row["read"]["style"]["label"] = "neon" if row["model"] == "erased" or row["style"] == "neon" else row["style"]
    pairs, result = pairs_of(rows), load_finished_audit(folder)
    album = Gallery(folder, True, bytes_left=300_000)
    roles = list_failures(album, pairs, result)
    shown = [(len(part["pairs"]), part["found"], part["of"]) for role in roles for part in role["parts"]]
    assert shown[0][1:] == (6, 6) and shown[1][1] == shown[1][2] == 2
    assert album.bytes_left >= 0 and sum(n for n, _, _ in shown) < sum(found for _, found, _ in shown)
    assert all(n <= MAX_PAIRS for n, _, _ in shown)
    picture = Gallery(folder, True).embed_image(rows[0]["image"])
    assert picture and not picture["coarse"] and len(picture["src"]) < 2 * MAX_SIDE**2
    replace_samples(folder / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    page = written(folder, result)
    assert len(page.text) < 3_000_000 and "still shown 6 of 6" in page.said()


def test_pairs_are_spread_and_never_chosen() -> None:
    assert spread_evenly(list("abcdefghi"), 3) == ["a", "e", "i"]
    assert spread_evenly(list("ab"), 5) == ["a", "b"] and spread_evenly([], 3) == []


def test_neighbours_are_counted_label_by_label_and_sorted_by_loss() -> None:
    def row(label: str, read: str) -> dict[str, Any]:
        return {"role": "neighbour", "style": label, "read": {"style": {"label": read}}}

    pairs = [ImagePair(row("tube", "tube"), row("tube", "tube")), *[ImagePair(row("laser", "laser"), row("laser", "none"))] * 2]
    pairs.append(ImagePair({**row("grid", "grid"), "role": "grid"}, row("grid", "none")))
    first, second = sort_by_loss(rates_by_neighbor(pairs, "style"))
    assert (first["label"], first["erased"], first["lost"]) == ("laser", {"k": 0, "n": 2, "rate": 0.0}, 1.0)
    assert (second["label"], second["lost"]) == ("tube", 0.0)


def test_the_command_to_reproduce_survives_a_shell(made: tuple[StableDiffusion, Edit, Path], folder: Path) -> None:
    inside, result = made[2], load_finished_audit(made[2])
    common = ["--suite", "pocket", "--tier", "smoke"]
    assert shlex.split(audit_command(inside, result)) == ["erasure", "audit", str(inside.parent), *common, "--dtype", "fp32"]
    assert "'" in str(inside)
    job = {**result["job"], "strength": 0.5, "replay": "0", "suite": "mine", "oracles": ["a", "b"], "keep": "none"}
    elsewhere = shlex.split(audit_command(folder, {**result, "job": job}))
    assert elsewhere[:6] == ["erasure", "audit", "EDIT", "--suite", "SUITE.yaml", "--tier"]
    assert elsewhere[elsewhere.index("--oracle") :] == ["--oracle", "ORACLE-1", "ORACLE-2", "--keep-images", "none", "--out", str(folder)]
    strange = [{**result["edits"][0], "method": "foreign", "concepts": [{"name": "Van Gogh's; x", "kind": "style"}]}]
    given = shlex.split(audit_command(folder, {**result, "edits": strange}))
    assert given[given.index("--concept") : given.index("--dtype")] == ["--concept", "Van Gogh's; x", "--kind", "style", "--model", "tiny"]
