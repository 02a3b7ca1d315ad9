"""Where models and erasures come from: variants, single networks, the original layout, subfolders of the hub, textual inversions."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from erasure.edits import Edit
from erasure.edits.external.external_edit import load_external
from erasure.erasing import apply_edits, erase
from erasure.errors import UserError
from erasure.families.base import canonical_name
from erasure.families.stable_diffusion import StableDiffusion
from erasure.loading.loader import load_model
from tests import sd_architecture as sd_sized
from tests import tiny
from tests.erasure.edits.external.test_lora import CAT
from tests.erasure.methods.test_every_method import small


def rename(folder: Path, old: str, new: str) -> None:
    for path in folder.rglob(f"*{old}"):
        path.rename(path.with_name(path.name.replace(old, new)))


def test_a_folder_that_holds_only_a_variant(model: StableDiffusion, tmp_path: Path) -> None:
    pipe = tiny.pipeline().to(torch.float16)
    pipe.save_pretrained(tmp_path / "m", variant="fp16")
    loaded = load_model(str(tmp_path / "m"), precision="fp32")
    assert loaded.fingerprint() == model.fingerprint()
    rename(tmp_path / "m" / "text_encoder", ".fp16.safetensors", ".safetensors")  # a mix of plain files and one variant
    rename(tmp_path / "m" / "vae", ".fp16.safetensors", ".safetensors")
    assert load_model(str(tmp_path / "m"), precision="fp32").fingerprint() == model.fingerprint()
    with pytest.raises(UserError, match="equals tiny"):
        load_external(model, str(tmp_path / "m"), CAT)
    unet = tmp_path / "m" / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    for name in ("ema", "non_ema"):
        (unet.parent / f"diffusion_pytorch_model.{name}.safetensors").write_bytes(b"not read")
    assert load_model(str(tmp_path / "m"), precision="fp32").fingerprint() == model.fingerprint()
    unet.unlink()
    with pytest.raises(UserError, match="unet, holds the variants ema, non_ema; keep one"):
        load_model(str(tmp_path / "m"))
    rename(tmp_path / "m" / "unet", ".ema.safetensors", ".bin")
    rename(tmp_path / "m" / "unet", ".non_ema.safetensors", ".non_ema.bin")
    for read in (lambda: load_model(str(tmp_path / "m")), lambda: load_external(model, str(tmp_path / "m"), CAT)):
        with pytest.raises(
            UserError, match=r"only pickled weights \(diffusion_pytorch_model\.bin\), which are never loaded.*safe_serialization"
        ):
            read()


@pytest.fixture
def erased(model: StableDiffusion, tmp_path: Path) -> Iterator[tuple[Edit, StableDiffusionPipeline]]:
    """An edit of UNet and text encoder, and a pipeline with it in place."""
    edit = erase(model, CAT, small("esd"), out=tmp_path / "esd")
    text = {f"text_encoder.{canonical_name(name)}": p for name, p in model.pipe.text_encoder.named_parameters()}
    name = next(name for name in text if name.endswith("fc1.weight"))
    both = Edit({**edit.tensors, name: (text[name].detach() + 0.25).half()}, edit.info)
    pipe = tiny.pipeline()
    both.apply(pipe)
    yield both, pipe


def test_single_networks_in_folders_and_files(model: StableDiffusion, erased: tuple[Edit, StableDiffusionPipeline], tmp_path: Path) -> None:
    edit, pipe = erased
    pipe.unet.save_pretrained(tmp_path / "unet")
    pipe.unet.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    pipe.unet.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    pipe.text_encoder.save_pretrained(tmp_path / "text")
    text = {name: p.detach().clone() for name, p in pipe.text_encoder.named_parameters()}
    save_file(text, tmp_path / "text.safetensors")
    save_file({f"text_model.{canonical_name(name)}": p for name, p in text.items()}, tmp_path / "old.safetensors")
    save_file(
        {f"text_encoder.{k}": v for k, v in text.items()} | {f"unet.{k}": v for k, v in pipe.unet.state_dict().items()},
        tmp_path / "both.safetensors",
    )
    assert len(list((tmp_path / "shards").glob("*-of-*.safetensors"))) > 1
    parts = {part: {name for name in edit.moved_parameters() if name.startswith(part)} for part in ("unet", "text_encoder")}
    assert all(parts.values())
    for place, expected in (
        ("unet", parts["unet"]),
        ("shards", parts["unet"]),
        ("half", parts["unet"]),
        ("text", parts["text_encoder"]),
        ("text.safetensors", parts["text_encoder"]),
        ("old.safetensors", parts["text_encoder"]),
        ("both.safetensors", edit.moved_parameters()),
    ):
        found = load_external(model, str(tmp_path / place), CAT)
        assert found.moved_parameters() == expected, place
        assert all(torch.equal(found.tensors[name], edit.tensors[name]) for name in expected), place


def test_a_network_that_is_not_whole_or_of_another_kind(model: StableDiffusion, tmp_path: Path) -> None:
    tiny.pipeline().unet.save_pretrained(tmp_path / "unet")
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "conv_out" not in k}, file)
    total = sum(name.startswith("unet.") for name in model.parameters())
    with pytest.raises(UserError, match=f"has {total - 2} of the {total} parameters of the unet; 'unet.conv_out"):
        load_external(model, str(tmp_path / "unet"), CAT)
    for config, words in (
        ({"_class_name": "ControlNetModel"}, "holds a ControlNetModel"),
        ({"model_type": "t5"}, "holds a t5"),
        ({}, "without a type"),
    ):
        (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=words):
            load_external(model, str(tmp_path / "unet"), CAT)
    StableDiffusionPipeline(**tiny.pipeline("v_prediction", seed=3).components, requires_safety_checker=False).save_pretrained(
        tmp_path / "v"
    )
    with pytest.raises(UserError, match="has prediction_type 'v_prediction' in its scheduler and tiny has 'epsilon'"):
        load_external(model, str(tmp_path / "v"), CAT)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"it has 0 \.safetensors files and no config"):
        load_external(model, str(tmp_path / "empty"), CAT)


UNET_NAMES = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0"}
UNET_NAMES |= {
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.resnets.1": "middle_block.2",
}
UNET_NAMES |= {"mid_block.attentions.0": "middle_block.1"}
for i in range(4):
    for j in range(3):
        UNET_NAMES |= {
            f"down_blocks.{i}.{kind}.{j}": f"input_blocks.{3 * i + j + 1}.{k}" for k, kind in enumerate(("resnets", "attentions"))
        }
        UNET_NAMES |= {f"up_blocks.{i}.{kind}.{j}": f"output_blocks.{3 * i + j}.{k}" for k, kind in enumerate(("resnets", "attentions"))}
    UNET_NAMES[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{3 * i + 3}.0.op"
    UNET_NAMES[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}.conv"
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"}
RESNET |= {"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OPEN_CLIP |= {"embeddings.token_embedding.weight": "token_embedding.weight", "embeddings.position_embedding.weight": "positional_embedding"}
OPEN_CLIP |= {"final_layer_norm": "ln_final", "encoder.layers": "transformer.resblocks"}


def original(pipe: StableDiffusionPipeline, open_clip: bool) -> dict[str, torch.Tensor]:
    """UNet and text encoder under the names of the original Stable Diffusion code."""
    found = {}
    for name, value in pipe.unet.state_dict().items():
        new = next(n + name.removeprefix(old) for old, n in UNET_NAMES.items() if name.startswith(f"{old}."))
        for old, n in RESNET.items() if ".resnets." in name else ():
            new = new.replace(old, n)
        found[f"model.diffusion_model.{new}"] = value
    for name, value in pipe.text_encoder.named_parameters():
        name = canonical_name(name)
        if not open_clip:
            found[f"cond_stage_model.transformer.text_model.{name}"] = value.detach()
            continue
        if ".q_proj." in name:  # three matrices in one
            rows = torch.cat([pipe.text_encoder.get_parameter(name.replace("q_proj", f"{p}_proj")) for p in "qkv"]).detach()
            name, value = name.replace("self_attn.q_proj.", "attn.in_proj_"), rows
        elif ".k_proj." in name or ".v_proj." in name:
            continue
        for old, new in OPEN_CLIP.items():
            name = name.replace(old, new)
        found[f"cond_stage_model.model.{name}"] = value.detach()
    return {name: value.contiguous().clone() for name, value in found.items()}


@pytest.mark.parametrize("generation", ["sd1", "sd2"])
def test_a_checkpoint_in_the_original_layout(generation: sd_sized.Generation, tmp_path: Path) -> None:
    model = StableDiffusion(sd_sized.pipeline(generation, small=True), generation, "fp32")
    pipe = sd_sized.pipeline(generation, small=True)
    torch.manual_seed(4)
    with torch.no_grad():
        for network in (pipe.unet, pipe.text_encoder):
            for p in network.parameters():
                p.add_(0.1 * torch.randn_like(p))
    state = original(pipe, generation == "sd2")
    # what else such files hold: the VAE, the noise schedule, and SD 2's last text layer, which diffusers does not keep
    state |= {"first_stage_model.encoder.conv_in.weight": torch.zeros(2), "betas": torch.zeros(2), "model_ema.decay": torch.zeros(1)}
    state |= {"cond_stage_model.model.logit_scale": torch.zeros(1)} if generation == "sd2" else {}
    save_file(state, tmp_path / "sd.safetensors")
    found = load_external(model, str(tmp_path / "sd.safetensors"), CAT)
    expected = {
        f"{part}.{canonical_name(name)}": p
        for part, network in (("unet", pipe.unet), ("text_encoder", pipe.text_encoder))
        for name, p in network.named_parameters()
    }
    assert found.moved_parameters() == expected.keys()
    assert all(torch.equal(found.tensors[name], p.detach().half()) for name, p in expected.items())
    save_file(state | {"model.diffusion_model.more.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(
        UserError, match=rf"holds {len(pipe.unet.state_dict()) + 1} tensors of a UNet and {len(pipe.unet.state_dict())} have"
    ):
        load_external(model, str(tmp_path / "more.safetensors"), CAT)


COMMIT = "0123456789" * 4


class Hub(BaseHTTPRequestHandler):
    """A hub of one's own: the folders below `root` as repositories, in the few answers that downloads need."""

    protocol_version = "HTTP/1.1"

    def __init__(self, root: Path, asked: list[str], *args: object) -> None:
        self.root, self.asked = root, asked
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, body: bool) -> None:
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
            self.asked.append(f"{repo}/{name}")
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
        self.answer(True)

    def do_HEAD(self) -> None:
        self.answer(False)


ON_THE_HUB = """
import json, sys
from tests import tiny
from tests.erasure.edits.external.test_lora import CAT
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.edits.external.external_edit import foreign
from erasure.loading.loader import load_model
model = StableDiffusion(tiny.pipeline(), "tiny", "fp32")
for name in sys.argv[1:]:
    what, source = name.split(":")
    try:
        if what == "model":
            said = load_model(source, precision="fp32").fingerprint()
        else:
            said = sorted(foreign(model, source, CAT).moved())[0]
    except UserError as error:
        said = f"error: {error}"
    print(json.dumps([name, said]), flush=True)
"""


def test_the_hub_with_subfolders_and_only_what_is_needed(model: StableDiffusion, tmp_path: Path) -> None:
    """In a child process, against a hub on this machine: `huggingface_hub` takes its address from the environment at start."""
    root = tmp_path / "hub"
    tiny.save_pipeline(root / "org" / "plain")
    (root / "org" / "plain" / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"large and never asked for")
    tiny.save_pipeline(root / "org" / "many" / "inner" / "model", seed=5)
    tiny.pipeline().to(torch.float16).save_pretrained(root / "org" / "half", variant="fp16")
    tiny.save_pipeline(root / "org" / "inpaint")
    index = root / "org" / "inpaint" / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', '"StableDiffusionInpaintPipeline"'))
    tiny.pipeline(seed=6).unet.save_pretrained(root / "org" / "unets" / "cat")
    CLIPTextModel.save_pretrained(tiny.pipeline(seed=7).text_encoder, root / "org" / "text")
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
    (root / "org" / "lora").mkdir()
    save_file(
        {f"{layer}.lora_A.weight": torch.ones(2, 16), f"{layer}.lora_B.weight": torch.ones(16, 2)}, root / "org" / "lora" / "my.safetensors"
    )
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, root, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sources = ["model:org/plain", "model:org/many/inner/model", "model:org/half", "model:org/inpaint", "model:org/none", "model:org/many"]
    sources += ["external:org/many/inner/model", "external:org/inpaint", "external:org/unets/cat", "external:org/text", "external:org/lora"]
    sources += ["external:org/none", "model:org/many/../plain"]
    address = f"http://127.0.0.1:{server.server_port}"
    env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", ON_THE_HUB]
    done = subprocess.run([*command, *sources], capture_output=True, text=True, env=env, timeout=500)
    said = dict(json.loads(line) for line in done.stdout.splitlines())
    assert said.keys() == set(sources), done.stderr[-2000:]
    assert said["model:org/plain"] == said["model:org/half"] == model.fingerprint()
    assert said["model:org/many/inner/model"] == StableDiffusion(tiny.pipeline(seed=5), "t", "fp32").fingerprint()
    assert "is a StableDiffusionInpaintPipeline, an inpainting model" in said["model:org/inpaint"]
    assert [name for name in asked if name.startswith("org/inpaint")] == ["org/inpaint/model_index.json"]
    assert said["external:org/many/inner/model"].startswith("text_encoder.") and said["external:org/text"].startswith("text_encoder.")
    assert said["external:org/unets/cat"].startswith("unet.") and said["external:org/lora"] == f"{layer}.weight"
    assert "an inpainting model" in said["external:org/inpaint"]
    assert (
        "not in the local cache, and the hub cannot be reached, does not have it" in said["model:org/none"]
        and said["external:org/none"] == said["model:org/none"]
    )
    assert "no model_index.json" in said["model:org/many"] and "not a hub id" in said["model:org/many/../plain"]
    assert not any("non_ema" in name for name in asked)
    server.shutdown()
    server.server_close()
    # without the hub what was fetched is still there
    done = subprocess.run(
        [*command, sources[1], "external:org/lora", "external:org/other"], capture_output=True, text=True, env=env, timeout=500
    )
    again = dict(json.loads(line) for line in done.stdout.splitlines())
    kept = (sources[1], "external:org/lora")
    assert [again[name] for name in kept] == [said[name] for name in kept]
    assert "the hub cannot be reached" in again["external:org/other"]


def inverted() -> StableDiffusionPipeline:
    """A pipeline with a textual inversion of three vectors, as diffusers loads and saves it."""
    pipe = tiny.pipeline()
    torch.manual_seed(8)
    pipe.load_textual_inversion({"<cat>": torch.randn(3, 32)}, token="<cat>")
    return pipe


def test_every_vector_of_a_textual_inversion_counts(tmp_path: Path) -> None:
    inverted().save_pretrained(tmp_path / "base")
    model = load_model(str(tmp_path / "base"), precision="fp32")
    pipe = inverted()
    theirs, _ = pipe.encode_prompt("a <cat> b", "cpu", 1, False)
    assert torch.allclose(model.encode(["a <cat> b"]), theirs, atol=1e-5)
    first = model.pipe.tokenizer.convert_tokens_to_ids("<cat>")
    assert model.tokenize("a <cat>")[-3:] == [first, first + 1, first + 2]
    assert model.last_token_index("a <cat>") == model.last_token_index("a") + 3
    erase(model, CAT, small("uce"), out=tmp_path / "edit")


def test_sizes_that_are_pairs_or_missing(tmp_path: Path) -> None:
    for given, expected in (([4, 8], (4, 8)), (None, (8, 8)), (8, (8, 8))):
        folder = tiny.save_pipeline(tmp_path / str(given))
        config = folder / "unet" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": given}))
        model = load_model(str(folder), precision="fp32")
        assert model.latent_shape == (4, *expected)
        pictures = model.decode(model.sample(["a cat"], [1], steps=2))
        assert pictures.shape == (1, 3, 2 * expected[0], 2 * expected[1])
        if given:
            height, width = (2 * side for side in expected)
            theirs = model.pipe(["a cat"], num_inference_steps=2, output_type="pt", latents=model.sample_noise([1])).images
            assert theirs.shape[2:] == (height, width)
    edit = erase(model, CAT, small("salun"), out=tmp_path / "edit")
    with apply_edits(model, [edit]):
        assert model.sample(["a"], [0], steps=2).isfinite().all()
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": "large"}))
    with pytest.raises(UserError, match="sample_size 'large'"):
        load_model(str(folder))


def test_a_tokenizer_without_a_length_takes_the_text_encoders(tmp_path: Path) -> None:
    folder = tiny.save_pipeline(tmp_path / "m")
    config = folder / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "model_max_length"}))
    model, usual = load_model(str(folder), precision="fp32"), StableDiffusion(tiny.pipeline(), "t", "fp32")
    assert model.pipe.tokenizer.model_max_length > 1e9  # type: ignore[attr-defined]
    for prompt in ("a cat", "x " * 200):
        assert torch.equal(model.encode([prompt]), usual.encode([prompt]))
        assert model.last_token_index(prompt) == usual.last_token_index(prompt) <= 14
