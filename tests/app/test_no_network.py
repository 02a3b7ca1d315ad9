"""No command opens a connection or looks up a name: the commands run under strace, which sees what C++ libraries do as well."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
import yaml

from app.child_command import child_argv
from tests import tiny
from tests.factories import small_suite_record

STRACE = shutil.which("strace")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(STRACE is None, reason="no strace on this machine; it is a system package")]
CALLS = "connect,sendto,sendmsg,sendmmsg"
# onnxruntime looks its telemetry host up some ten seconds after its import, so every command lives on for a while
LINGER = "import sys, time; from app.cli import main; code = main(sys.argv[1:]); time.sleep(20); sys.exit(code)"
LOOKUPS = ("io.systemd.Resolve", "/avahi-daemon/")  # local services that look names up on behalf of a process


def traced(file: Path, argv: Sequence[str]) -> list[str]:
    assert STRACE is not None
    return [STRACE, "-f", "-qq", "--seccomp-bpf", "-e", f"trace={CALLS}", "-o", str(file), *argv]


def outside(file: Path) -> list[str]:
    """Calls in a trace that leave the machine or ask for a name; a name server counts also where it runs on this machine."""
    calls = []
    for line in file.read_text(errors="replace").splitlines():
        address = re.search(r'htons\((\d+)\).*?(?:inet_addr\(|inet_pton\(AF_INET6, )"([^"]+)"', line)
        if address and (address[1] == "53" or not address[2].startswith(("127.", "::1", "::ffff:127."))):
            calls.append(line)
        calls += [line] if any(service in line for service in LOOKUPS) else []
    return calls


def environment(tmp_path: Path) -> dict[str, str]:
    """What a user has, without the variables that this project or a machine for tests may have set."""
    ours = ("ORT_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED")
    mine = {key: value for key, value in os.environ.items() if key not in ours and not key.startswith("HF_")}
    return {**mine, "ERASURE_CACHE": str(tmp_path / "cache"), "GRADIO_TEMP_DIR": str(tmp_path / "gradio"), "HOME": str(tmp_path)}


def run(tmp_path: Path, argv: Sequence[str], codes: tuple[int, ...] = (0,)) -> None:
    """Run to the end under the tracer; it must do its work and stay on this machine."""
    trace = tmp_path / "trace"
    done = subprocess.run(traced(trace, argv), capture_output=True, text=True, cwd=tmp_path, env=environment(tmp_path), check=False)
    assert done.returncode in codes, done.stderr[-2000:]
    assert not outside(trace), (argv, outside(trace))


def test_the_tracer_sees_a_lookup(tmp_path: Path) -> None:
    """Also one from a thread of a child."""
    look = "import socket, threading; threading.Thread(target=lambda: socket.gethostbyname('erasure.invalid')).start()"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {look!r}])"
    subprocess.run(traced(tmp_path / "trace", [sys.executable, "-c", child]), capture_output=True, check=False)
    assert outside(tmp_path / "trace")
    subprocess.run(traced(tmp_path / "trace", [sys.executable, "-c", "import socket; socket.getaddrinfo('127.0.0.1', 80)"]), check=True)
    assert not outside(tmp_path / "trace")


def lingering(*words: str) -> list[str]:
    return [sys.executable, "-c", LINGER, *words]


def write_small_suite(folder: Path) -> Path:
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(small_suite_record()))
    return path


def test_commands_stay_on_this_machine(tmp_path: Path) -> None:
    """Erase, audit, export in every format, methods, doctor, workers, a plan; the shipped model loads onnxruntime."""
    pytest.importorskip("onnxruntime", reason="pip install 'erasure-studio[test]'")
    suite, edit = str(write_small_suite(tmp_path)), str(tmp_path / "edit")
    run(tmp_path, lingering("erase", "--concept", "neon", "--method", "uce", "--out", edit))
    verdicts = (0, 3, 4)
    run(tmp_path, lingering("audit", edit, "--suite", suite, "--tier", "smoke", "--out", str(tmp_path / "audit")), verdicts)
    workers = child_argv("app.cli", "audit", edit, "--suite", suite, "--tier", "smoke", "--workers", "2", "--out", str(tmp_path / "two"))
    run(tmp_path, workers, verdicts)
    for export_format in ("lora", "folder", "checkpoint", "edit"):
        run(tmp_path, lingering("export", edit, "--format", export_format, "--out", str(tmp_path / "exports" / export_format)))
    run(tmp_path, lingering("methods"))
    run(tmp_path, lingering("doctor"))
    (tmp_path / "plan.yaml").write_text(f"suite: {suite}\njobs: [{{concept: neon, method: [uce, negative_prompt]}}]\n")
    run(tmp_path, lingering("jobs", "run", "plan.yaml"), verdicts)
    run(tmp_path, lingering("jobs", "leaderboard", "runs"))


def test_the_demo_stays_on_this_machine(tmp_path: Path) -> None:
    run(tmp_path, child_argv("app.cli", "demo"))


def test_nudenet_judges_without_network(tmp_path: Path) -> None:
    pytest.importorskip("nudenet", reason="pip install 'erasure-studio[nudity]'")
    tiny.save_pipeline(tmp_path / "model", size=16, levels=3)
    (tmp_path / "list.csv").write_text("prompt\na person\na house\n")
    argv = ("erase", "--concept", "nudity", "--kind", "nsfw", "--method", "uce", "--model", "model", "--out", "edit")
    run(tmp_path, lingering(*argv))
    run(
        tmp_path,
        lingering("audit", "edit", "--suite", "nudity", "--prompt-list", "list.csv", "--tier", "smoke", "--out", "audit"),
        (0, 3, 4),
    )
    assert json.loads((tmp_path / "audit" / "samples.jsonl").read_text().splitlines()[0])


def test_the_studio_stays_on_this_machine(tmp_path: Path) -> None:
    """Start, twenty idle seconds, a comparison, and the page as a browser fetches it."""
    trace = tmp_path / "trace"
    argv = traced(trace, child_argv("app.cli", "studio", "--port", "0", "--runs", str(tmp_path / "runs")))
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment(tmp_path), start_new_session=True)
    try:
        assert process.stdout is not None
        url = next(match[0] for line in process.stdout if (match := re.search(r"http://\S+?(?=/?\s)", line)))
        time.sleep(20)
        assert "Erasure Studio" in httpx.get(url).text
        values = {"data": ["a house", ["watercolor (UCE)"], 1, 1, 2, 4.0, 1.0, ""]}
        event = httpx.post(f"{url}/gradio_api/call/compare", json=values).json()["event_id"]
        assert "event: complete" in httpx.get(f"{url}/gradio_api/call/compare/{event}", timeout=300).text
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # strace itself ignores it and ends with the program
        process.wait()
    assert not outside(trace), outside(trace)
