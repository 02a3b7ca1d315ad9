"""What a reader copies from the pages works: suites, plans, the example method, and the quickstart notebook."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
import yaml
from nbclient import NotebookClient

import erasure
import erasure.methods
from app.command_line import parse_command_line
from app.jobs.plan import load_plan
from erasure.families.stable_diffusion import StableDiffusion
from eval.scoring.rates import rate_interval
from eval.suites.suite import load_suite
from tests.docs.pages import DOCS, GENERATED, PAGES, TEXTS, code_blocks, command_lines, links_of
from tests.factories import small_suite_record

NOTEBOOK = DOCS / "quickstart.ipynb"
SIX_LINES = ("index.md", "getting-started.md", "../README.md")


def test_the_suites_of_the_guide_load(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("prompt\na beach\na pool\n")
    suites = [block for block in code_blocks("guides/write-a-suite.md", "yaml") if "format:" in block]
    assert len(suites) == 2
    attacks = next(block for block in code_blocks("guides/write-a-suite.md", "yaml") if block.startswith("attacks:"))
    for text in suites:
        (tmp_path / "suite.yaml").write_text(text + attacks)
        suite = load_suite(str(tmp_path / "suite.yaml"))
        assert suite.gates
        assert suite.attacks.prompts == 20


def test_the_guide_says_how_few_images_can_pass() -> None:
    assert "36 without a fault are the fewest" in " ".join((DOCS / "guides/write-a-suite.md").read_text().split())
    assert rate_interval(36, 36, None).low >= 0.9 > rate_interval(35, 35, None).low


def test_the_commands_of_the_pages_parse() -> None:
    commands = {" ".join(words): words for page in [*TEXTS, *PAGES] if page not in GENERATED for words in command_lines(page.read_text())}
    assert len(commands) > 20
    for words in commands.values():
        if "early_negative" not in words:  # the method that the reader adds
            assert parse_command_line(words) is not None, words


def test_the_plan_of_the_guide_has_the_jobs_it_says(tmp_path: Path) -> None:
    (text,) = code_blocks("guides/batch-jobs.md", "yaml")
    (tmp_path / "plan.yaml").write_text(text)
    assert len(load_plan(tmp_path / "plan.yaml").jobs) == 13


def test_the_method_of_the_guide_erases(model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "methods"
    folder.mkdir()
    source = next(block for block in code_blocks("guides/add-a-method.md", "python") if "class EarlyNegative" in block)
    (folder / "early_negative.py").write_text(source)
    monkeypatch.setattr(erasure.methods, "__path__", [*erasure.methods.__path__, str(folder)])  # as if it were in erasure/methods
    assert erasure.methods.__spec__ is not None
    monkeypatch.setattr(erasure.methods.__spec__, "submodule_search_locations", erasure.methods.__path__)
    edit = erasure.erase(model, "cat", method="early_negative", until=0.6, out=tmp_path / "run")
    assert edit.info.fields == {"until": 0.6}
    base = model.decode(model.sample(["a cat"], [1], steps=4))
    with erasure.apply_edits(model, edit):
        assert not torch.equal(model.decode(model.sample(["a cat"], [1], steps=4)), base)


def test_the_six_lines_are_the_same_everywhere() -> None:
    lines = nbformat.read(NOTEBOOK, as_version=4).cells[1].source
    assert lines.splitlines()[-1].startswith("print(result.verdict)")
    for page in SIX_LINES:
        assert code_blocks(page, "python")[0].strip() == lines, page


def run_notebook(folder: Path, replacements: dict[str, str]) -> list[Any]:
    """Run the notebook in a folder, and return the outputs of its code cells."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        for old, new in replacements.items():
            cell.source = cell.source.replace(old, new)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def check_outputs(outputs: list[Any]) -> None:
    """Check the verdict, the report, two images, the revert and the LoRA."""
    verdict, report, images, reverted, lora = outputs
    assert verdict[-1]["text"].split()[-1] in ("PASS", "FAIL", "INCONCLUSIVE", "INCOMPLETE")
    assert "report.html" in report[-1]["data"]["text/plain"]
    before, after = (output["data"]["image/png"] for output in images if output["output_type"] == "display_data")
    assert before != after
    assert reverted[-1]["data"]["text/plain"] == "True"
    assert "pytorch_lora_weights.safetensors" in lora[-1]["data"]["text/plain"]


def test_the_notebook_runs_on_a_small_suite(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(small_suite_record()))
    small = {'suite="pocket"': 'suite="suite.yaml"', 'method="esd"': 'method="uce"', "num_inference_steps=25": "num_inference_steps=4"}
    check_outputs(run_notebook(tmp_path, small))


@pytest.mark.slow
def test_the_notebook_runs_as_it_is(tmp_path: Path) -> None:
    check_outputs(run_notebook(tmp_path, {}))


def test_the_notebook_holds_no_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)


def test_links_of_the_notebook_resolve() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        for target in links_of(cell.source) if cell.cell_type == "markdown" else ():
            assert (DOCS / target).exists(), target
