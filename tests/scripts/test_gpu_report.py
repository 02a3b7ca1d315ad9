"""The GPU report runs on tiny models, so that it is not untested until a GPU is at hand."""

import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sd15", "sdxl"])
@pytest.mark.parametrize("method", ["esd", "uce", "fia", "salun"])
def test_every_method_is_measured_tiny(model: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import gpu_measurements

    measured = gpu_measurements.measure_method(model, method, "tiny")
    assert measured.step > 0 and measured.peak > 0 and measured.forecast > 0


def test_measurements_run_tiny_and_become_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import gpu_measurements
    import gpu_report
    from gpu_measurements import CommandTime, MethodCost

    assert {entry[0] for entry in gpu_report.list_measurements("true")} == set(gpu_report.MEASURES)
    results = {
        ("peak",): gpu_measurements.measure_peak("tiny"),
        ("sampling", "sd15", "diffusers", "1"): gpu_measurements.measure_sampling("sd15", "diffusers", 1, "tiny"),
        ("sampling", "sd15", "ours", "1"): gpu_measurements.measure_sampling("sd15", "ours", 1, "tiny"),
        ("method", "sd15", "uce"): MethodCost(step=90.0, steps=0, recorded=0, peak=7e9, forecast=5.4e9),
        ("method", "sd15", "fia"): gpu_report.run_measurement(("method", "sd15", "fia"), "tiny", tmp_path, time.monotonic()),
        ("pocket", "esd"): CommandTime(12.3),
    }
    (_, _, uce, fia), (_, _, base, ours) = gpu_report.method_rows(results), gpu_report.sampling_rows(results)
    assert gpu_report.describe_pocket(results) == "Pocket, esd: 12 s."
    assert uce == "| sd15 | uce | 90.000 | none | 1.5 | 7.0 | 5.4 | under 2 min and 8 GB: met |"
    assert fia == "| sd15 | fia | not measured: no time was left | | | | | |"
    assert "| diffusers | " in base and "| 1.00 |" in base and "| ours | " in ours
