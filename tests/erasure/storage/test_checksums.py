"""Files with checksums: any change is detected."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from erasure.storage.files import DamagedFile, read_checksummed_json, write_checksummed_json, write_json
from erasure.storage.tensor_files import load_or_make, load_state, load_tensors, save_state
from eval.generation import load_png, read_png, save_png
from eval.records.scores import AlignmentScore
from eval.scoring.judge_scores import load_scores, score_line


def test_any_changed_byte_of_tensors_states_and_images_is_detected(tmp_path: Path) -> None:
    tensors, state, image = tmp_path / "t.safetensors", tmp_path / "s.pt", tmp_path / "p.png"
    load_or_make(tensors, lambda: {"a": torch.arange(6).half(), "b": torch.zeros(0, 2), "c": torch.tensor(True)})
    save_state(state, {"step": 3, "groups": {"x": {"a": torch.ones(3)}}, "log": "l\n"})
    assert load_state(state)["step"] == 3 and torch.equal(load_state(state)["groups"]["x"]["a"], torch.ones(3))
    save_png((torch.arange(48).view(3, 4, 4) * 5).byte(), image)
    readers: dict[Path, Callable[[Path], object]] = {tensors: load_tensors, state: load_state, image: load_png}
    for path, read in readers.items():
        data = path.read_bytes()
        read(path)
        for position in range(0, len(data), 1 if path != state else 7):
            path.write_bytes(data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :])
            with pytest.raises(DamagedFile):
                read(path)
        for short in (b"", data[:10], data[:-1], data + b"x"):
            path.write_bytes(short)
            with pytest.raises(DamagedFile, match="is damaged"):
                read(path)
        path.unlink()
        with pytest.raises(DamagedFile):
            read(path)


def test_a_file_copied_over_another_is_noticed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        load_or_make(tmp_path / f"{name}.safetensors", lambda name=name: {"x": torch.tensor([ord(name)])})  # type: ignore[misc]
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    with pytest.raises(DamagedFile, match="checksum does not match"):
        load_tensors(tmp_path / "b.safetensors")


def test_any_change_of_a_checksummed_record_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_checksummed_json(path, {"a": [1, 2.5, None], "ü": (3,)})
    assert read_checksummed_json(path) == {"a": [1, 2.5, None], "ü": [3]}
    path.write_text(path.read_text().replace("2.5", "2.6"))
    with pytest.raises(DamagedFile, match="checksum does not match"):
        read_checksummed_json(path)
    write_json(path, {"a": 1})
    assert read_checksummed_json(path, required=False) == {"a": 1}
    with pytest.raises(DamagedFile, match="no checksum"):
        read_checksummed_json(path)
    for text in ("[1]", "{", "[" * 100_000, "\xff"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(DamagedFile):
            read_checksummed_json(path)


def test_damaged_scores_are_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scores" / "x.jsonl"
    assert load_scores(path, AlignmentScore) == {}
    lines = [score_line("base", f"{i}.png", AlignmentScore(cosine=0.125 * i)) for i in range(4)]
    path.write_text(lines[0] + lines[1].replace("0.125", "0.525") + "{\n" + lines[3][:-9])
    assert load_scores(path, AlignmentScore) == {("base", "0.png"): AlignmentScore(cosine=0.0)}
    assert capsys.readouterr().err.count("\n") == 1


def test_missing_images_are_not_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_png(tmp_path / "none.png") is None
    assert capsys.readouterr().err == ""
