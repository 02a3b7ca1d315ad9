"""One training on two processes (gloo, on the CPU): the same losses and the same edit as one process, and only one writer."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from erasure.edits import Edit
from tests import launched_erasures, tiny
from tests.factories import TRAINED_METHODS

LAUNCH = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--nproc-per-node",
    "2",
    "--rdzv-backend",
    "c10d",
    "--rdzv-endpoint",
    "localhost:0",
)


def launch(folder: Path, *words: str, code: int = 0) -> str:
    """Run a module in two processes, and return what they print."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ERASURE_CACHE": str(folder / "cache")}
    done = subprocess.run([*LAUNCH, "-m", *words], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (code == 0), done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of edits by every trained method: made by one process, and by two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASURE_CACHE", str(one / "cache"))
        launched_erasures.main(one)
    launch(two, "tests.launched_erasures", str(two))
    return one, two


def test_gradients_are_those_of_one_process(runs: tuple[Path, Path]) -> None:
    one, two = (load_file(folder / "gradients.safetensors") for folder in runs)
    assert one.keys() == two.keys() and {"x_t", "sequence"} < one.keys()
    largest = max(float(gradient.abs().max()) for gradient in one.values())
    for name, gradient in one.items():
        assert torch.allclose(two[name], gradient, rtol=1e-4, atol=1e-6 * largest), name


@pytest.mark.parametrize("name", TRAINED_METHODS)
def test_two_processes_train_as_one(name: str, runs: tuple[Path, Path]) -> None:
    one, two = (Edit.load(folder / name) for folder in runs)
    base = tiny.pipeline()
    start = {**dict(base.unet.named_parameters()), **{f"text_encoder.{k}": v for k, v in base.text_encoder.named_parameters()}}
    moved = apart = 0.0
    for key, value in one.tensors.items():
        before = start.get(key, torch.zeros(())).detach()
        moved += float((value.float() - before).square().sum())
        apart += float((value.float() - two.tensors[key].float()).square().sum())
    assert moved and (apart / moved) ** 0.5 < 3e-4  # measured: 0 to 1e-4; Adam turns rounding of tiny gradients into whole steps
    losses = [[json.loads(line) for line in (folder / name / "train.jsonl").read_text().splitlines()] for folder in runs]
    assert len(losses[0]) == len(losses[1])
    for expected, seen in zip(*losses, strict=True):
        assert seen == pytest.approx(expected, rel=2e-3)
    assert one.info.cost == two.info.cost and not list((runs[1] / name).glob(".*"))


def test_two_processes_do_not_share_other_commands(tmp_path: Path) -> None:
    output = launch(tmp_path, "app.cli", "audit", "nothing", code=1)
    assert len(re.findall("several processes can share one `erase`", output)) == 1  # said once
