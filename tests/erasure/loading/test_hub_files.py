"""Models and erasures from the hub: subfolders, variants, and only the files that are needed."""

import json
import os
import subprocess
import sys
import threading
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel

from erasure.families.stable_diffusion import StableDiffusion
from tests import tiny

COMMIT = "0123456789" * 4


class Hub(BaseHTTPRequestHandler):
    """A local hub: the folders below `root` as repositories, with the few responses that downloads need."""

    protocol_version = "HTTP/1.1"

    def __init__(self, root: Path, requests: list[str], *args: object) -> None:
        self.root, self.requests = root, requests
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, *args: object) -> None:
        pass

    def respond(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            repo = "/".join(path.split("/")[3:5])
            files = sorted(str(p.relative_to(self.root / repo)) for p in (self.root / repo).rglob("*") if p.is_file())
            sizes = {name: (self.root / repo / name).stat().st_size for name in files}
            tree = [{"type": "file", "path": name, "size": size, "oid": COMMIT} for name, size in sizes.items()]
            info = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            self.send(json.dumps(tree if "/tree/" in path else info).encode(), body, "x", (self.root / repo).is_dir())
            return
        repo, _, rest = path.removeprefix("/").partition("/resolve/")
        name = rest.partition("/")[2]
        file = self.root / repo / name
        if body:
            self.requests.append(f"{repo}/{name}")
        data = file.read_bytes() if file.is_file() else b""
        self.send(data, body, sha256(data).hexdigest(), file.is_file())

    def send(self, data: bytes, body: bool, etag: str, there: bool) -> None:
        self.send_response(200 if there else 404)
        headers = {"Content-Length": str(len(data)), "ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Content-Type": "application/json"}
        for key, value in (headers if there else {"Content-Length": "0", "X-Error-Code": "RepoNotFound"}).items():
            self.send_header(key, value)
        self.end_headers()
        if body and there:
            self.wfile.write(data)

    def do_GET(self) -> None:
        self.respond(True)

    def do_HEAD(self) -> None:
        self.respond(False)


ON_THE_HUB = """
import json, sys
from tests import tiny
from erasure.concept import Concept
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.edits.external.external_edit import load_external
from erasure.loading.loader import load_model
model = StableDiffusion(tiny.pipeline(), "tiny", "fp32")
for name in sys.argv[1:]:
    kind, source = name.split(":")
    try:
        if kind == "model":
            result = load_model(source, dtype="fp32").fingerprint()
        else:
            result = sorted(load_external(model, source, [Concept(name="cat", kind="object")]).moved_parameters())[0]
    except UserError as error:
        result = f"error: {error}"
    print(json.dumps([name, result]), flush=True)
"""


LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"


def fill_hub(root: Path) -> None:
    """Models in several layouts, single networks and a LoRA."""
    tiny.save_pipeline(root / "org" / "plain")
    (root / "org" / "plain" / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"large and never requested")
    tiny.save_pipeline(root / "org" / "many" / "inner" / "model", seed=5)
    tiny.pipeline().to(torch.float16).save_pretrained(root / "org" / "half", variant="fp16")
    tiny.save_pipeline(root / "org" / "inpaint")
    index = root / "org" / "inpaint" / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', '"StableDiffusionInpaintPipeline"'))
    tiny.pipeline(seed=6).unet.save_pretrained(root / "org" / "unets" / "cat")
    CLIPTextModel.save_pretrained(tiny.pipeline(seed=7).text_encoder, root / "org" / "text")
    (root / "org" / "lora").mkdir()
    save_file(
        {f"{LAYER}.lora_A.weight": torch.ones(2, 16), f"{LAYER}.lora_B.weight": torch.ones(16, 2)}, root / "org" / "lora" / "my.safetensors"
    )


def test_only_the_needed_files_come_from_the_hub(model: StableDiffusion, tmp_path: Path) -> None:
    """In a child process, against a hub on this machine: `huggingface_hub` takes its address from the environment at start."""
    root = tmp_path / "hub"
    fill_hub(root)
    requests: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, root, requests))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sources = ["model:org/plain", "model:org/many/inner/model", "model:org/half", "model:org/inpaint", "model:org/none", "model:org/many"]
    sources += ["external:org/many/inner/model", "external:org/inpaint", "external:org/unets/cat", "external:org/text", "external:org/lora"]
    sources += ["external:org/none", "model:org/many/../plain"]
    address = f"http://127.0.0.1:{server.server_port}"
    env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", ON_THE_HUB]
    done = subprocess.run([*command, *sources], capture_output=True, text=True, env=env, timeout=500)
    results = dict(json.loads(line) for line in done.stdout.splitlines())
    assert results.keys() == set(sources), done.stderr[-2000:]
    assert results["model:org/plain"] == results["model:org/half"] == model.fingerprint()
    assert results["model:org/many/inner/model"] == StableDiffusion(tiny.pipeline(seed=5), "t", "fp32").fingerprint()
    assert "is a StableDiffusionInpaintPipeline, an inpainting model" in results["model:org/inpaint"]
    assert [name for name in requests if name.startswith("org/inpaint")] == ["org/inpaint/model_index.json"]
    assert results["external:org/many/inner/model"].startswith("text_encoder.") and results["external:org/text"].startswith("text_encoder.")
    assert results["external:org/unets/cat"].startswith("unet.") and results["external:org/lora"] == f"{LAYER}.weight"
    assert "an inpainting model" in results["external:org/inpaint"]
    assert (
        "org/none is not a folder here. As a hub id it is not in the local cache, and the hub cannot be reached, does not have it"
        in results["model:org/none"]
        and results["external:org/none"] == results["model:org/none"]
    )
    assert "no model_index.json" in results["model:org/many"] and "not a hub id" in results["model:org/many/../plain"]
    assert not any("non_ema" in name for name in requests)
    server.shutdown()
    server.server_close()
    # without the hub what was fetched is still there
    done = subprocess.run(
        [*command, sources[1], "external:org/lora", "external:org/other"], capture_output=True, text=True, env=env, timeout=500
    )
    offline = dict(json.loads(line) for line in done.stdout.splitlines())
    cached = (sources[1], "external:org/lora")
    assert [offline[name] for name in cached] == [results[name] for name in cached]
    assert "the hub cannot be reached" in offline["external:org/other"]
