"""`erasure audit --workers`: each worker gets a GPU of its own where there are several."""

import pytest
import torch

from app.commands.audit import worker_devices


@pytest.mark.parametrize(
    ("gpus", "device", "expected"),
    [
        (0, "auto", ["auto"] * 3),
        (0, "cpu", ["cpu"] * 3),
        (1, "auto", ["cuda:0"] * 3),
        (2, "auto", ["cuda:0", "cuda:1", "cuda:0"]),
        (4, "cuda", ["cuda:0", "cuda:1", "cuda:2"]),
        (4, "cuda:3", ["cuda:3"] * 3),
        (4, "cpu", ["cpu"] * 3),
    ],
)
def test_workers_take_gpus_in_turn(gpus: int, device: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert worker_devices(device, 3) == expected
