"""Open pocket and exports of this project under other versions of diffusers and transformers, and compare with the installed ones.

    python scripts/check_versions.py --work runs/versions

makes one environment per row with uv (gigabytes of downloads where torch is not in its cache), opens each model there with
scripts/open_in_diffusers.py, and writes docs/results/versions.md. A row passes if no weight is missing and token ids, embeddings and images
agree.
"""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fill_docs import fill_section

from erasure import export
from erasure.concept import Concept
from erasure.erasing import erase
from erasure.loading.loader import POCKET_FOLDER, load_model
from erasure.methods.advunlearn import AdvUnlearn
from erasure.methods.uce import UCE

# (transformers, diffusers); the last row of the table has the minimum versions of pyproject.toml
VERSIONS = [("4.57.6", "0.35.2"), ("5.0.0", "0.37.1"), ("5.3.0", "0.38.0"), ("5.5.4", "0.40.0"), ("5.6.2", "0.41.0")]
MINIMUM_VERSIONS = {
    "torch": "2.10.0",
    "torchvision": "0.25.0",
    "transformers": "5.0.0",
    "diffusers": "0.40.0",
    "accelerate": "1.10.0",
    "peft": "0.18.0",
    "safetensors": "0.8.0",
    "open_clip_torch": "3.3.0",
    "torchmetrics": "1.9.0",
    "gradio": "6.25.0",
    "tyro": "1.0.0",
    "pydantic": "2.12.0",
}
TORCH = {"torch": "2.15.0", "torchvision": "0.29.2"}
TOLERANCE = 1e-3  # of embeddings and images in [0, 1]: versions of torch sum in different orders
TABLE_HEAD = ["| transformers | diffusers | torch | model | missing | text | images | |", "|---|---|---|---|---|---|---|---|"]


@dataclass(frozen=True)
class Outputs:
    """The outputs of scripts/open_in_diffusers.py in one environment."""

    ids: np.ndarray  # [B, L]
    text: np.ndarray  # [B, L, D]
    images: np.ndarray  # [B, H, W, 3] in [0, 1]
    info: dict[str, str | list[str]]


def make_exports(work: Path) -> dict[str, list[str]]:
    """Make the models to open where they are missing. Return the arguments of open_in_diffusers.py by name."""
    model, concept = load_model("pocket", dtype="fp32"), [Concept(name="neon", kind="style", prompts=("a house in {} style",))]
    folder, encoder = work / "folder", work / "text-encoder"
    if not folder.exists():
        export.export_edit(model, erase(model, concept, UCE(), out=work / "uce"), "folder", folder)
    if not encoder.exists():
        method = AdvUnlearn(
            steps=2,
            warmup=1,
            trajectories=4,
            trajectory_steps=4,
            batch=2,
            retain_prompts=("a house", "a boat"),
            retain_batch=2,
            retain_trajectories=4,
        )
        export.export_edit(model, erase(model, concept, method, out=work / "advunlearn"), "text-encoder", encoder)
    return {"pocket": [str(POCKET_FOLDER)], "folder": [str(folder)], "text encoder": [str(encoder), "--base", str(POCKET_FOLDER)]}


def make_environment(folder: Path, packages: dict[str, str]) -> Path:
    """Return the interpreter of an environment with these versions, made with uv where it is missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        requirements = [f"{name}=={number}" for name, number in packages.items()]
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *requirements, "accelerate"], check=True)
    return python


def open_in(python: Path | str, arguments: list[str], out: Path) -> Outputs | str:
    """Return the outputs of one model in an environment, or the last line of the error message."""
    script = Path(__file__).with_name("open_in_diffusers.py")
    process = subprocess.run([str(python), str(script), arguments[0], str(out), *arguments[1:]], capture_output=True, text=True)
    if process.returncode:
        return process.stderr.strip().splitlines()[-1][:120]
    with np.load(out) as arrays:
        return Outputs(arrays["ids"], arrays["text"], arrays["images"], json.loads(process.stdout.splitlines()[-1]))


def format_row(name: str, packages: dict[str, str], outputs: Outputs | str, expected: Outputs) -> tuple[str, bool]:
    """Return a line of the table, and whether it passes."""
    prefix = f"| {packages['transformers']} | {packages['diffusers']} | {packages['torch']} | {name} | "
    if isinstance(outputs, str):
        return f"{prefix} | | | {outputs} |", False
    text, images = (float(np.abs(a - b).max()) for a, b in ((outputs.text, expected.text), (outputs.images, expected.images)))
    missing = len(outputs.info["missing"])
    passed = not missing and np.array_equal(outputs.ids, expected.ids) and max(text, images) < TOLERANCE
    return f"{prefix}{missing} | {text:.1e} | {images:.1e} | {'ok' if passed else 'NOT OK'} |", passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/versions"), help="environments and exports")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    exports = make_exports(args.work)
    expected = {name: open_in(sys.executable, arguments, args.work / "here.npz") for name, arguments in exports.items()}
    if failures := [outputs for outputs in expected.values() if isinstance(outputs, str)]:
        raise SystemExit(f"the installed versions fail: {failures[0]}")
    lines, all_passed = [], True
    for packages in (*({**TORCH, "transformers": t, "diffusers": d} for t, d in VERSIONS), MINIMUM_VERSIONS):
        python = make_environment(args.work / f"venv-{packages['transformers']}-{packages['diffusers']}-{packages['torch']}", packages)
        for name, arguments in exports.items():
            line, passed = format_row(name, packages, open_in(python, arguments, args.work / "there.npz"), expected[name])
            print(line, flush=True)
            lines.append(line)
            all_passed &= passed
    installed = ", ".join(f"{name} {expected['pocket'].info[name]}" for name in ("transformers", "diffusers", "torch"))
    fill_section(args.docs / "results" / "versions.md", "versions", [f"Compared with {installed}.", "", *TABLE_HEAD, *lines])
    return 0 if all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
