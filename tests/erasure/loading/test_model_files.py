"""Where models and erasures come from: variants, single networks, the original layout, subfolders of the hub, textual inversions."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from erasure.concept import Concept
from erasure.edits import Edit, apply_edits
from erasure.edits.external.external_edit import load_external
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.families.parameters import canonical_name
from erasure.families.stable_diffusion import StableDiffusion
from erasure.loading.loader import load_model
from tests import sd_architecture, tiny
from tests.factories import small_method

CAT = [Concept(name="cat", kind="object")]


def rename_suffix(folder: Path, old: str, new: str) -> None:
    paths = list(folder.rglob(f"*{old}"))
    assert paths
    for path in paths:
        path.rename(path.with_name(path.name.replace(old, new)))


def test_a_folder_that_holds_only_a_variant(model: StableDiffusion, tmp_path: Path) -> None:
    pipe = tiny.pipeline().to(torch.float16)
    pipe.save_pretrained(tmp_path / "m", variant="fp16")
    loaded = load_model(str(tmp_path / "m"), dtype="fp32")
    assert loaded.fingerprint() == model.fingerprint()
    rename_suffix(tmp_path / "m" / "text_encoder", ".fp16.safetensors", ".safetensors")  # a mix of plain files and one variant
    rename_suffix(tmp_path / "m" / "vae", ".fp16.safetensors", ".safetensors")
    assert load_model(str(tmp_path / "m"), dtype="fp32").fingerprint() == model.fingerprint()
    with pytest.raises(UserError, match="equals tiny"):
        load_external(model, str(tmp_path / "m"), CAT)
    unet = tmp_path / "m" / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    for name in ("ema", "non_ema"):
        (unet.parent / f"diffusion_pytorch_model.{name}.safetensors").write_bytes(b"not read")
    assert load_model(str(tmp_path / "m"), dtype="fp32").fingerprint() == model.fingerprint()
    unet.unlink()
    with pytest.raises(UserError, match="unet, holds the variants ema, non_ema; keep one"):
        load_model(str(tmp_path / "m"))
    rename_suffix(tmp_path / "m" / "unet", ".ema.safetensors", ".bin")
    rename_suffix(tmp_path / "m" / "unet", ".non_ema.safetensors", ".non_ema.bin")
    for read in (lambda: load_model(str(tmp_path / "m")), lambda: load_external(model, str(tmp_path / "m"), CAT)):
        with pytest.raises(
            UserError, match=r"only pickled weights \(diffusion_pytorch_model\.bin\), which are never loaded.*safe_serialization"
        ):
            read()


@pytest.fixture
def erased(model: StableDiffusion, tmp_path: Path) -> Iterator[tuple[Edit, StableDiffusionPipeline]]:
    """An edit of UNet and text encoder, and a pipeline with it in place."""
    edit = erase(model, CAT, small_method("esd"), out=tmp_path / "esd")
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
    for name_in_folder, expected in (
        ("unet", parts["unet"]),
        ("shards", parts["unet"]),
        ("half", parts["unet"]),
        ("text", parts["text_encoder"]),
        ("text.safetensors", parts["text_encoder"]),
        ("old.safetensors", parts["text_encoder"]),
        ("both.safetensors", edit.moved_parameters()),
    ):
        loaded = load_external(model, str(tmp_path / name_in_folder), CAT)
        assert loaded.moved_parameters() == expected, name_in_folder
        assert all(torch.equal(loaded.tensors[name], edit.tensors[name]) for name in expected), name_in_folder


def test_a_network_that_is_incomplete_or_of_another_kind(model: StableDiffusion, tmp_path: Path) -> None:
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


def to_original_names(pipe: StableDiffusionPipeline, open_clip: bool) -> dict[str, torch.Tensor]:
    """UNet and text encoder under the names of the original Stable Diffusion code."""
    state = {}
    for name, value in pipe.unet.state_dict().items():
        new = next(n + name.removeprefix(old) for old, n in UNET_NAMES.items() if name.startswith(f"{old}."))
        for old, n in RESNET.items() if ".resnets." in name else ():
            new = new.replace(old, n)
        state[f"model.diffusion_model.{new}"] = value
    for name, value in pipe.text_encoder.named_parameters():
        name = canonical_name(name)
        if not open_clip:
            state[f"cond_stage_model.transformer.text_model.{name}"] = value.detach()
            continue
        if ".q_proj." in name:  # three matrices in one
            rows = torch.cat([pipe.text_encoder.get_parameter(name.replace("q_proj", f"{p}_proj")) for p in "qkv"]).detach()
            name, value = name.replace("self_attn.q_proj.", "attn.in_proj_"), rows
        elif ".k_proj." in name or ".v_proj." in name:
            continue
        for old, new in OPEN_CLIP.items():
            name = name.replace(old, new)
        state[f"cond_stage_model.model.{name}"] = value.detach()
    return {name: value.contiguous().clone() for name, value in state.items()}


@pytest.mark.parametrize("generation", ["sd1", "sd2"])
def test_a_checkpoint_in_the_original_layout(generation: sd_architecture.Generation, tmp_path: Path) -> None:
    model = StableDiffusion(sd_architecture.pipeline(generation, small=True), generation, "fp32")
    pipe = sd_architecture.pipeline(generation, small=True)
    torch.manual_seed(4)
    with torch.no_grad():
        for network in (pipe.unet, pipe.text_encoder):
            for p in network.parameters():
                p.add_(0.1 * torch.randn_like(p))
    state = to_original_names(pipe, generation == "sd2")
    # what else such files hold: the VAE, the noise schedule, and SD 2's last text layer, which diffusers does not keep
    state |= {"first_stage_model.encoder.conv_in.weight": torch.zeros(2), "betas": torch.zeros(2), "model_ema.decay": torch.zeros(1)}
    state |= {"cond_stage_model.model.logit_scale": torch.zeros(1)} if generation == "sd2" else {}
    save_file(state, tmp_path / "sd.safetensors")
    loaded = load_external(model, str(tmp_path / "sd.safetensors"), CAT)
    expected = {
        f"{part}.{canonical_name(name)}": p
        for part, network in (("unet", pipe.unet), ("text_encoder", pipe.text_encoder))
        for name, p in network.named_parameters()
    }
    assert loaded.moved_parameters() == expected.keys()
    assert all(torch.equal(loaded.tensors[name], p.detach().half()) for name, p in expected.items())
    save_file(state | {"model.diffusion_model.more.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(
        UserError, match=rf"holds {len(pipe.unet.state_dict()) + 1} tensors of a UNet and {len(pipe.unet.state_dict())} have"
    ):
        load_external(model, str(tmp_path / "more.safetensors"), CAT)


def pipeline_with_inversion() -> StableDiffusionPipeline:
    """A pipeline with a textual inversion of three vectors, as diffusers loads and saves it."""
    pipe = tiny.pipeline()
    torch.manual_seed(8)
    pipe.load_textual_inversion({"<cat>": torch.randn(3, 32)}, token="<cat>")
    return pipe


def test_every_vector_of_a_textual_inversion_counts(tmp_path: Path) -> None:
    pipeline_with_inversion().save_pretrained(tmp_path / "base")
    model = load_model(str(tmp_path / "base"), dtype="fp32")
    pipe = pipeline_with_inversion()
    theirs, _ = pipe.encode_prompt("a <cat> b", "cpu", 1, False)
    assert torch.allclose(model.encode(["a <cat> b"]).sequence, theirs, atol=1e-5)
    first = model.pipe.tokenizer.convert_tokens_to_ids("<cat>")
    assert model.tokenize("a <cat>")[-3:] == [first, first + 1, first + 2]
    assert model.last_token_indices("a <cat>")[0] == model.last_token_indices("a")[0] + 3
    erase(model, CAT, small_method("uce"), out=tmp_path / "edit")


def test_sizes_that_are_pairs_or_missing(tmp_path: Path) -> None:
    for sample_size, expected in (([4, 8], (4, 8)), (None, (8, 8)), (8, (8, 8))):
        folder = tiny.save_pipeline(tmp_path / str(sample_size))
        config = folder / "unet" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": sample_size}))
        model = load_model(str(folder), dtype="fp32")
        assert model.latent_shape == (4, *expected)
        images = model.decode(model.sample(["a cat"], [1], steps=2))
        assert images.shape == (1, 3, 2 * expected[0], 2 * expected[1])
        if sample_size:
            height, width = (2 * side for side in expected)
            theirs = model.pipe(["a cat"], num_inference_steps=2, output_type="pt", latents=model.sample_noise([1])).images
            assert theirs.shape[2:] == (height, width)
    edit = erase(model, CAT, small_method("salun"), out=tmp_path / "edit")
    with apply_edits(model, [edit]):
        assert model.sample(["a"], [0], steps=2).isfinite().all()
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": "large"}))
    with pytest.raises(UserError, match="sample_size 'large'"):
        load_model(str(folder))


def test_a_tokenizer_without_a_length_takes_the_text_encoders(tmp_path: Path) -> None:
    folder = tiny.save_pipeline(tmp_path / "m")
    config = folder / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "model_max_length"}))
    model, usual = load_model(str(folder), dtype="fp32"), StableDiffusion(tiny.pipeline(), "t", "fp32")
    assert model.pipe.tokenizer.model_max_length > 1e9  # type: ignore[attr-defined]
    for prompt in ("a cat", "x " * 200):
        assert torch.equal(model.encode([prompt]).sequence, usual.encode([prompt]).sequence)
        assert model.last_token_indices(prompt) == usual.last_token_indices(prompt) <= (14,)
