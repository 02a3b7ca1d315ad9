"""Pushing to the Hub: what would be sent, and what is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi

from app.cli import main
from erasure.concept import Concept
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.export import hub
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.esd import ESD
from tests import tiny


@pytest.fixture
def edit(tmp_path: Path) -> Path:
    model = StableDiffusion(tiny.pipeline(), str(tiny.save_pipeline(tmp_path / "model")), "fp32")
    erase(model, [Concept(name="cat")], ESD(steps=2, batch=2, trajectories=4, trajectory_steps=2, lr=1e-2), out=tmp_path / "run")
    return tmp_path / "run"


def test_a_dry_run_shows_exactly_what_would_be_sent(
    edit: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, Any] = {}
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo, **options: sent.update(repo=repo, **options))
    monkeypatch.setattr(
        HfApi,
        "upload_folder",
        lambda self, **options: sent.update(options) or SimpleNamespace(commit_url="https://huggingface.co/a/b/commit/1"),
    )
    for export_format, file in (("lora", "pytorch_lora_weights.safetensors"), ("edit", "edit.safetensors")):
        argv = [
            "export",
            str(edit),
            "--format",
            export_format,
            "--out",
            str(edit.parent / export_format),
            "--push-to-hub",
            "a/b",
            "--dry-run",
        ]
        assert main([*argv, *(["--accept-error"] if export_format == "lora" else [])]) == 0
        output = capsys.readouterr().out
        assert "would send to https://huggingface.co/a/b:" in output and file in output
        assert "README.md" in output and "before-after-0.png" in output
        assert not sent
    assert main(["export", str(edit), "--format", "edit", "--out", str(edit.parent / "sent"), "--push-to-hub", "a/b", "--private"]) == 0
    assert sent["repo"] == sent["repo_id"] == "a/b" and sent["private"]
    listed_files = [line.split()[1] for line in output.splitlines() if line.startswith(" ")]
    assert sent["allow_patterns"] == listed_files
    assert "commit/1" in capsys.readouterr().out


def test_names_and_the_network_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes org/name"):
        hub.push_to_hub(tmp_path, "no-slash")
    with pytest.raises(UserError, match="holds nothing to send"):
        hub.list_uploads(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "log.pkl").write_text("never")
    assert hub.list_uploads(tmp_path) == [("a.json", 2)]
    with pytest.raises(UserError, match=r"a/b could not be written|needs a login"):
        hub.push_to_hub(tmp_path, "a/b", endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize("repo", ["../..", "a/..", "./b", "a", "a/b/c", "", "-/-", "a--b/c", "a/b.git", "a/" + "b" * 97])
def test_names_that_are_not_repositories_are_refused(repo: str) -> None:
    with pytest.raises(UserError, match="takes org/name"):
        hub.check_repo_name(repo)
