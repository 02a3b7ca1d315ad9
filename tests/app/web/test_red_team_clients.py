"""Red-team tools as their users run them, from PyPI and npm, against `erasure serve`. Slow: they are installed into folders of their own.

ERASURE_CLIENTS names a folder that keeps these installations between runs.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image

from app.child_command import child_argv

pytestmark = pytest.mark.slow
KEY, PROMPT = "a-key", "a watercolor picture of a house"
# a program for an environment with PyRIT: python -c PYRIT_CLIENT URL KEY MODEL PROMPT
PYRIT_CLIENT = """
import asyncio
import json
import sys

from pyrit.models import Message, MessagePiece
from pyrit.prompt_target import OpenAIImageTarget
from pyrit.setup import IN_MEMORY, initialize_pyrit_async


async def main(url: str, key: str, model: str, prompt: str) -> None:
    await initialize_pyrit_async(memory_db_type=IN_MEMORY)
    target = OpenAIImageTarget(endpoint=url, api_key=key, model_name=model, image_size="auto", quality="low", output_format="png")
    message = Message(message_pieces=[MessagePiece(role="user", original_value=prompt)])
    (answer,) = await target.send_prompt_async(message=message)
    piece = answer.message_pieces[0]
    print(json.dumps({"error": piece.response_error, "type": piece.converted_value_data_type, "value": piece.converted_value}))


asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("ERASURE_CLIENTS") or tmp_path_factory.mktemp("clients"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of pocket with watercolor erased by UCE."""
    folder = tmp_path_factory.mktemp("served")
    environment = {**os.environ, "ERASURE_CACHE": str(folder / "cache")}
    erase = child_argv("app.cli", "erase", "--concept", "watercolor", "--method", "uce", "--out", str(folder / "edit"))
    subprocess.run(erase, env=environment, check=True, capture_output=True)
    argv = child_argv("app.cli", "serve", "pocket", str(folder / "edit"), "--port", "0", "--key", KEY)
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    yield next(match[0] for line in process.stdout if (match := re.search(r"http://\S+/v1", line)))
    process.terminate()
    process.wait()


def test_pyrit_gets_images_of_the_erased_model_and_its_refusals(installed: Path, api: str, tmp_path: Path) -> None:
    python = installed / "pyrit" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(installed / "pyrit")], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "pyrit"], check=True)

    def ask(*words: str) -> "subprocess.CompletedProcess[str]":
        argv = [str(python), "-c", PYRIT_CLIENT, *words]
        return subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path)}, timeout=600)

    answer = ask(api, KEY, "erased", PROMPT)
    record = json.loads(answer.stdout.splitlines()[-1])
    assert (record["error"], record["type"]) == ("none", "image_path")
    assert Image.open(record["value"]).size == (64, 64)
    wrong = ask(api, "another key", "erased", PROMPT)
    assert wrong.returncode and "the API key is missing or wrong" in wrong.stdout + wrong.stderr
    unknown = ask(api, KEY, "erasd", PROMPT)
    assert unknown.returncode and "unknown model 'erasd'; available: erased, base" in unknown.stdout + unknown.stderr


def test_promptfoo_evaluates_the_erased_model_beside_the_base(installed: Path, api: str, tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    folder = installed / "promptfoo"
    if not (folder / "node_modules" / "promptfoo").exists():
        folder.mkdir(exist_ok=True)
        subprocess.run([npm, "install", "--no-audit", "--no-fund", "--silent", "promptfoo"], cwd=folder, check=True)
    settings = {"apiBaseUrl": api, "apiKey": KEY, "response_format": "b64_json"}
    config = {
        "prompts": ["{{prompt}}"],
        "providers": [{"id": f"openai:image:{name}", "config": settings} for name in ("erased", "base")],
        "tests": [{"vars": {"prompt": PROMPT}}, {"vars": {"prompt": "a neon picture of a boat"}}],
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    quiet = {"PROMPTFOO_DISABLE_TELEMETRY": "1", "PROMPTFOO_DISABLE_UPDATE": "1", "PROMPTFOO_CONFIG_DIR": str(tmp_path / "home")}
    argv = [str(folder / "node_modules" / ".bin" / "promptfoo"), "eval", "-c", str(tmp_path / "config.yaml"), "--no-cache", "--no-share"]
    done = subprocess.run(
        [*argv, "-o", str(tmp_path / "out.json")], capture_output=True, text=True, env={**os.environ, **quiet}, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert results["stats"]["successes"] == 4 and results["stats"]["errors"] == 0
    assert all(result["response"]["images"][0]["mimeType"] == "image/png" for result in results["results"])
