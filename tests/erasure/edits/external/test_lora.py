"""LoRAs of other people: what they change in a base is what diffusers and PEFT make of them, or they are refused by name."""

import math
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from erasure.concept import Concept
from erasure.edits.external.external_edit import load_external
from erasure.errors import UserError
from erasure.families.parameters import canonical_name
from erasure.families.stable_diffusion import StableDiffusion
from tests import sd_architecture, tiny
from tests.lora_files import ATTENTION, Weights, changes_between, copy_weights, our_changes, save_peft_folder

CAT = [Concept(name="cat", kind="object")]
EVERYWHERE = [*ATTENTION, "ff.net.2", "conv1", "proj_in", "time_emb_proj", "downsamplers.0.conv"]
TEXT = ["q_proj", "out_proj", "fc1"]


def diffusers_changes(path: Path, **options: str) -> Weights:
    """What diffusers makes of a LoRA: loaded, fused and unloaded."""
    pipe = tiny.pipeline()
    before = copy_weights(pipe)
    pipe.load_lora_weights(str(path), **options)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return changes_between(before, copy_weights(pipe))


def assert_same(changes: Weights, expected: Weights) -> None:
    """Equal but for the rounding of two factors to fp16."""
    assert changes.keys() == expected.keys() and changes
    for name, delta in expected.items():
        assert (changes[name] - delta).norm() < 2e-3 * delta.norm(), name


def random_adapters(
    pipe: StableDiffusionPipeline, unet: LoraConfig | None, text: LoraConfig | None = None
) -> tuple[Weights | None, Weights | None]:
    """Adapters in a pipeline with random factors, as PEFT gives their state."""
    states: list[Weights | None] = []
    torch.manual_seed(1)
    for module, config in ((pipe.unet, unet), (pipe.text_encoder, text)):
        if config is None:
            states.append(None)
            continue
        module.add_adapter(config)
        with torch.no_grad():
            for name, p in module.named_parameters():
                if "lora_" in name:
                    p.normal_(0, 0.1)
        states.append({k: v.detach().clone() for k, v in get_peft_model_state_dict(module).items()})
    return states[0], states[1]


def to_metadata(config: LoraConfig) -> dict[str, object]:
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items() if key != "runtime_config"}


CONFIGS = {
    "alpha is eight times the rank": LoraConfig(r=4, lora_alpha=32, target_modules=ATTENTION),
    "alpha is below the rank": LoraConfig(r=4, lora_alpha=1, target_modules=EVERYWHERE),
    "rank-stabilized": LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=ATTENTION),
    "patterns": LoraConfig(
        r=2,
        lora_alpha=6,
        rank_pattern={"attn2.to_q": 4, "conv1": 3},
        alpha_pattern={"attn2.to_q": 2, "attn2.to_v": 9},
        target_modules=EVERYWHERE,
    ),
    "patterns, rank-stabilized": LoraConfig(r=2, lora_alpha=6, rank_pattern={"to_q": 4}, use_rslora=True, target_modules=ATTENTION),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_scale_in_the_header_works_as_in_diffusers(name: str, model: StableDiffusion, tmp_path: Path) -> None:
    text = LoraConfig(r=2, lora_alpha=12, target_modules=TEXT)
    unet_state, text_state = random_adapters(tiny.pipeline(), CONFIGS[name], text)
    assert text_state
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=unet_state,
        text_encoder_lora_layers=convert_state_dict_to_diffusers(text_state),
        unet_lora_adapter_metadata=to_metadata(CONFIGS[name]),
        text_encoder_lora_adapter_metadata=to_metadata(text),
    )
    changes = our_changes(model, tmp_path)
    assert_same(changes, diffusers_changes(tmp_path))
    assert_same(changes, our_changes(model, tmp_path / "pytorch_lora_weights.safetensors"))
    assert len(changes) == len([key for key in (*unet_state, *text_state) if "lora_A" in key])  # type: ignore[misc]


def test_without_metadata_a_lora_of_mixed_ranks_is_taken_as_it_is(model: StableDiffusion, tmp_path: Path) -> None:
    unet_state, _ = random_adapters(tiny.pipeline(), CONFIGS["patterns"])
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=unet_state)
    assert_same(our_changes(model, tmp_path), diffusers_changes(tmp_path))


def to_old_names(state: Weights) -> Weights:
    """The layout of attention processors, from before PEFT."""
    renamed = {}
    for key, value in state.items():
        layer, _, factor = key.rpartition(".lora_")
        block, _, last = layer.replace("to_out.0", "to_out").rpartition(".")
        renamed[f"unet.{block}.processor.{last}_lora.{'down' if factor.startswith('A') else 'up'}.weight"] = value
    return renamed


def test_the_old_layout_of_attention_processors(model: StableDiffusion, tmp_path: Path) -> None:
    unet_state, _ = random_adapters(tiny.pipeline(), LoraConfig(r=3, lora_alpha=3, target_modules=ATTENTION))
    assert unet_state
    save_file(to_old_names(unet_state), tmp_path / "pytorch_lora_weights.safetensors")
    expected = diffusers_changes(tmp_path)
    assert_same(our_changes(model, tmp_path), expected)
    bare = {key.removeprefix("unet."): value for key, value in to_old_names(unet_state).items()}  # as UNet2DConditionModel.save_attn_procs
    save_file(bare, tmp_path / "bare.safetensors")
    assert_same(our_changes(model, tmp_path / "bare.safetensors"), expected)


@pytest.mark.parametrize("alpha", [1.0, 32.0])
def test_kohyas_layout_with_alpha(alpha: float, model: StableDiffusion, tmp_path: Path) -> None:
    unet_state, text_state = random_adapters(
        tiny.pipeline(),
        LoraConfig(r=4, lora_alpha=4, rank_pattern={"to_q": 2}, target_modules=[*ATTENTION, "ff.net.2", "conv1"]),
        LoraConfig(r=4, lora_alpha=4, target_modules=TEXT),
    )
    assert unet_state and text_state
    plain = {f"unet.{k}": v for k, v in unet_state.items()} | {
        f"text_encoder.text_model.{k.removeprefix('text_model.')}": v for k, v in text_state.items()
    }
    state = convert_state_dict_to_kohya(plain)
    state = {k: torch.tensor(alpha) if k.endswith(".alpha") else v.contiguous() for k, v in state.items()}
    save_file(state, tmp_path / "kohya.safetensors")
    assert_same(our_changes(model, tmp_path / "kohya.safetensors"), diffusers_changes(tmp_path, weight_name="kohya.safetensors"))
    # te and te1 are the same encoder, and both scales are alpha / rank, by hand
    renamed = {k.replace("lora_te1_", "lora_te_"): v for k, v in state.items()}
    save_file(renamed, tmp_path / "te.safetensors")
    changes = our_changes(model, tmp_path / "te.safetensors")
    for key in (k for k in state if k.endswith(".lora_down.weight") and "conv1" not in k):
        up, down = state[key.replace("lora_down", "lora_up")], state[key]
        assert any(
            delta.shape == (len(up), down.shape[1]) and torch.allclose(delta, alpha / len(down) * up @ down, atol=2e-3 * alpha)
            for delta in changes.values()
        ), key
    off = {k: torch.zeros(()) if k.endswith(".alpha") else v for k, v in state.items()}
    save_file(off, tmp_path / "off.safetensors")
    with pytest.raises(UserError, match=r"equals .* in every parameter; there is nothing to audit"):
        our_changes(model, tmp_path / "off.safetensors")


def test_loconss_middle_is_applied(model: StableDiffusion, tmp_path: Path) -> None:
    """LyCORIS' Tucker form: W' = W + s up x mid x down over a 3x3 kernel."""
    name = "unet.down_blocks.0.resnets.0.conv1.weight"
    rows, columns = model.parameters()[name].shape[:2]
    up, mid, down = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.1
        for shape in ((rows, 2, 1, 1), (2, 2, 3, 3), (2, columns, 1, 1))
    )
    key = "lora_unet_down_blocks_0_resnets_0_conv1"
    values = {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down, "alpha": torch.tensor(4.0)}
    save_file({f"{key}.{k}": v for k, v in values.items()}, tmp_path / "locon.safetensors")
    # what the three convolutions do to an image, one after another
    image = torch.randn(1, columns, 8, 8)
    F = torch.nn.functional
    expected = 2.0 * F.conv2d(F.conv2d(F.conv2d(image, down), mid, padding=1), up)
    (delta,) = our_changes(model, tmp_path / "locon.safetensors").values()
    assert torch.allclose(F.conv2d(image, delta, padding=1), expected, atol=5e-3 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("part", "config"),
    [
        ("unet", LoraConfig(r=4, lora_alpha=32, target_modules=EVERYWHERE)),
        (
            "unet",
            LoraConfig(r=4, lora_alpha=8, use_rslora=True, rank_pattern={"to_q": 2}, alpha_pattern={"to_k": 3}, target_modules=ATTENTION),
        ),
        ("text_encoder", LoraConfig(r=2, lora_alpha=8, alpha_pattern={"fc1": 3}, target_modules=TEXT)),
    ],
)
def test_a_peft_folder_and_its_file(part: str, config: LoraConfig, model: StableDiffusion, tmp_path: Path) -> None:
    save_peft_folder(tiny.pipeline(), part, config, tmp_path)
    pipe = tiny.pipeline()
    before = copy_weights(pipe)
    merged = PeftModel.from_pretrained(getattr(pipe, part), str(tmp_path)).merge_and_unload()
    after = {f"{part}.{canonical_name(name)}": p.detach() for name, p in merged.named_parameters()}
    expected = changes_between(before, {**before, **after})
    assert_same(our_changes(model, tmp_path), expected)
    assert_same(our_changes(model, tmp_path / "adapter_model.safetensors"), expected)


def test_a_small_scale_does_not_sink_into_fp16(model: StableDiffusion, tmp_path: Path) -> None:
    """alpha 1 at rank 64 with small factors: up * s would be below fp16's normal numbers."""
    unet_state, _ = random_adapters(tiny.pipeline(), LoraConfig(r=64, lora_alpha=1, target_modules=["attn2.to_q"]))
    assert unet_state
    state = {k: v * (1e-3 if "lora_B" in k else 1) for k, v in unet_state.items()}
    kohya = convert_state_dict_to_kohya({f"unet.{k}": v for k, v in state.items()})
    save_file({k: torch.tensor(1.0) if k.endswith("alpha") else v for k, v in kohya.items()}, tmp_path / "small.safetensors")
    assert_same(our_changes(model, tmp_path / "small.safetensors"), diffusers_changes(tmp_path, weight_name="small.safetensors"))


def test_kohya_files_of_a_real_unets_depth_apply_in_every_layer(tmp_path: Path) -> None:
    model = StableDiffusion(sd_architecture.pipeline("sd1", small=True), "sd", "fp32")
    pipe = sd_architecture.pipeline("sd1", small=True)
    unet_state, text_state = random_adapters(
        pipe,
        LoraConfig(
            r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
        ),
        LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]),
    )
    assert unet_state and text_state
    plain = {f"unet.{k}": v for k, v in unet_state.items()} | {
        f"text_encoder.text_model.{k.removeprefix('text_model.')}": v for k, v in text_state.items()
    }
    save_file({k: v.contiguous() for k, v in convert_state_dict_to_kohya(plain).items()}, tmp_path / "k.safetensors")
    edit = load_external(model, str(tmp_path / "k.safetensors"), CAT)
    assert len(edit.moved_parameters()) == 192 + 72 == len(load_file(tmp_path / "k.safetensors")) // 3
    assert math.isclose(edit.tensors[next(iter(edit.tensors))].abs().max().item(), 0.3, abs_tol=0.25)
