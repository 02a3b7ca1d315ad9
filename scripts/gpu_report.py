"""Measure a GPU with true-size models of random weights, and pocket with its own: the section "On a GPU" of docs/results/performance.md.

    python scripts/gpu_report.py                        # on a GPU: at most eight minutes
    python scripts/gpu_report.py --size tiny            # the same code on tiny models, on a CPU too; writes no page unless --docs is given

Every measurement runs in a process of its own and is kept in --work, so a second run continues. What does not fit into --minutes is named
as not measured. Random weights erase nothing; they take as much memory and time as trained ones.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from fill_docs import fill_section
from gpu_measurements import MEASURES, RECORDS, CommandTime, Measured, MethodCost, NotMeasured, ProductRate, SamplingSpeed

METHODS = {"sd15": ("esd", "uce", "fia", "salun", "advunlearn", "sfd"), "sdxl": ("esd", "uce", "fia", "salun")}
GOALS = {"esd": 8, "uce": 8, "fia": 8, "salun": 24}  # GB of an SD 1.5 erasure that takes less than two minutes
BATCHES = (1, 8, 32)
WAYS = ("diffusers", "ours", "ours, compiled", "ours, xformers")
Entry = tuple[str, ...]  # the name of a measurement, and its arguments
Results = Mapping[Entry, Measured | NotMeasured]


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def list_measurements(size: str) -> list[tuple[str, ...]]:
    """Return every measurement, the most important first."""
    sampling = [("sampling", "sd15", way, str(batch)) for batch in BATCHES for way in WAYS]
    return [
        ("peak",),
        *(("method", "sd15", method) for method in METHODS["sd15"]),
        *(sampling if size == "true" else [entry for entry in sampling if entry[3] == "1" and entry[2] != "ours, compiled"]),
        *(("pocket", what) for what in ("esd", "audit") if size == "true" or what == "esd"),
        *(("method", "sdxl", method) for method in METHODS["sdxl"]),
        *(("sampling", "sdxl", way, "1") for way in WAYS[:2]),
    ]


def run_measurement(entry: tuple[str, ...], size: str, work: Path, deadline: float) -> Measured | NotMeasured:
    """Run one measurement in its own process, or read it from an earlier run; what fails or has no time says why."""
    file = work / device_name().replace(" ", "-") / f"{'-'.join(entry).replace(', ', '-')}-{size}.json"
    if file.is_file():
        return RECORDS[entry[0]](**json.loads(file.read_text()))
    left = deadline - time.monotonic()
    if left < 5:
        return NotMeasured("no time was left")
    argv = [sys.executable, __file__, "--size", size, "--one", json.dumps(entry)]
    try:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        output, errors = process.communicate(timeout=left)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the commands that it has started
        return NotMeasured("no time was left")
    if process.returncode:
        return NotMeasured((errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1][:160])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(output.strip().splitlines()[-1])
    return RECORDS[entry[0]](**json.loads(file.read_text()))


def method_rows(results: Results) -> list[str]:
    rows = [
        "| model | method | a step, s | steps | recording and steps, min | peak, GB | forecast, GB | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry, result in results.items():
        match result:
            case NotMeasured(why) if entry[0] == "method":
                rows.append(f"| {entry[1]} | {entry[2]} | not measured: {why} | | | | | |")
            case MethodCost():
                minutes = minutes_of(result, sampling_speed(results, entry[1]))
                cells = [f"{result.step:.3f}", str(result.steps or "none"), "" if minutes is None else f"{minutes:.1f}"]
                cells += [f"{result.peak / 1e9:.1f}", f"{result.forecast / 1e9:.1f}", describe_goal(entry, result, minutes)]
                rows.append(f"| {entry[1]} | {entry[2]} | {' | '.join(cells)} |")
    return rows


def sampling_speed(results: Results, model: str) -> float:
    """Return the largest number of forwards a second that was measured with our sampler; 0 where none was."""
    ours = [result for entry, result in results.items() if entry[:3] == ("sampling", model, "ours")]
    return max((result.forwards for result in ours if isinstance(result, SamplingSpeed)), default=0)


def minutes_of(cost: MethodCost, forwards_per_second: float) -> float | None:
    """Return the minutes of the teacher cache, at the speed of sampling, and of all steps; None where that speed is not known."""
    if cost.recorded and not forwards_per_second:
        return None
    return (cost.step * max(1, cost.steps) + (cost.recorded / forwards_per_second if cost.recorded else 0)) / 60


def describe_goal(entry: Entry, cost: MethodCost, minutes: float | None) -> str:
    goal = GOALS.get(entry[2], 0) if entry[1] == "sd15" else 0
    if minutes is None:
        return "not known: sampling was not measured" if goal else ""
    return f"under 2 min and {goal} GB: {'met' if minutes < 2 and cost.peak / 1e9 < goal else 'missed'}" if goal else ""


def sampling_rows(results: Results) -> list[str]:
    rows = [
        "| model | images at once | sampler | images a second | times diffusers' | share of the peak of products |",
        "|---|---|---|---|---|---|",
    ]
    peak = results.get(("peak",))
    for entry, result in results.items():
        if entry[0] != "sampling":
            continue
        _, model, way, batch = entry
        match result, results.get(("sampling", model, "diffusers", batch)):
            case NotMeasured(why), _:
                rows.append(f"| {model} | {batch} | {way} | not measured: {why} | | |")
            case SamplingSpeed(rate, _, flops), base:
                ratio = f"{rate / base.rate:.2f}" if isinstance(base, SamplingSpeed) else ""
                share = f"{100 * flops / peak.flops:.0f}%" if isinstance(peak, ProductRate) and flops else ""
                rows.append(f"| {model} | {batch} | {way} | {rate:.2f} | {ratio} | {share} |")
    return rows


def describe_pocket(results: Results) -> str:
    texts = []
    for entry, result in results.items():
        match result:
            case CommandTime(seconds):
                texts.append(f"{entry[1]}: {seconds:.0f} s")
            case NotMeasured(why) if entry[0] == "pocket":
                texts.append(f"{entry[1]}: not measured: {why}")
    return f"Pocket, {', '.join(texts)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("true", "tiny"), default="true")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--work", type=Path, default=Path("runs/gpu-report"))
    parser.add_argument("--docs", type=Path, help="default: docs for the true size, none for tiny")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, *words = json.loads(args.one)
        print(json.dumps(asdict(MEASURES[name](*(int(w) if w.isdecimal() else w for w in words), size=args.size))))
        return
    if args.size == "true" and not torch.cuda.is_available():
        raise SystemExit("no GPU is here; --size tiny runs the same measurements on tiny models.")
    args.work.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * args.minutes
    results: dict[Entry, Measured | NotMeasured] = {}
    for entry in list_measurements(args.size):
        results[entry] = run_measurement(entry, args.size, args.work, deadline)
        print(" ".join(entry), results[entry], flush=True)
    lines = [f"{device_name()}, {args.size} size.", "", *method_rows(results), "", *sampling_rows(results), "", describe_pocket(results)]
    print("\n".join(lines))
    if docs := args.docs or (Path("docs") if args.size == "true" else None):
        fill_section(docs / "results" / "performance.md", "gpu", lines)


if __name__ == "__main__":
    main()
