"""The peak memory of an erasure: tensors on a GPU, or the whole process on a CPU."""

import sys
from typing import Any

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement; on a CPU the peak always counts from the start of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def measure_peak_memory(device: torch.device) -> dict[str, Any]:
    """Return the peak in MiB and what it covers: a CPU gives no figure narrower than the whole process."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        return {"peak_memory_mib": int(peak / 2**20), "peak_memory_of": "tensors on the GPU, during this erasure"}
    if sys.platform == "win32":  # where Python has no resource module
        import psutil

        peak = psutil.Process().memory_info().peak_wset
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # bytes on macOS, else KiB
    return {
        "peak_memory_mib": int(peak / 2**20),
        "peak_memory_of": "resident memory of the process, from its start to the end of this erasure",
    }
