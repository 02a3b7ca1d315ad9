"""LoRAs of other people: what they change in a base is what diffusers and PEFT make of them, or they are refused by name."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from erasure.concept import Concept
from erasure.edits.external.external_edit import load_external
from erasure.edits.external.lora import IgnoredGateWarning
from erasure.erasing import apply_edits
from erasure.errors import UserError
from erasure.families.base import canonical_name
from erasure.families.stable_diffusion import StableDiffusion
from tests import tiny

CAT = [Concept(name="cat", kind="object")]
Weights = dict[str, torch.Tensor]
ATTENTION = ["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"]
EVERYWHERE = [*ATTENTION, "ff.net.2", "conv1", "proj_in", "time_emb_proj", "downsamplers.0.conv"]
TEXT = ["q_proj", "out_proj", "fc1"]


def weights(pipe: StableDiffusionPipeline) -> Weights:
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    return {f"{part}.{canonical_name(name)}": p.detach().clone() for part, module in parts.items() for name, p in module.named_parameters()}


def moved(before: Weights, after: Weights) -> Weights:
    return {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}


def ours(model: StableDiffusion, place: Path) -> Weights:
    before = weights(model.pipe)
    with apply_edits(model, [load_external(model, str(place), CAT)]):
        return moved(before, weights(model.pipe))


def theirs(place: Path, **how: str) -> Weights:
    """What diffusers makes of a LoRA: loaded, fused and unloaded."""
    pipe = tiny.pipeline()
    before = weights(pipe)
    pipe.load_lora_weights(str(place), **how)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return moved(before, weights(pipe))


def same(found: Weights, expected: Weights) -> None:
    """Equal but for the rounding of two factors to fp16."""
    assert found.keys() == expected.keys() and found
    for name, delta in expected.items():
        assert (found[name] - delta).norm() < 2e-3 * delta.norm(), name


def trained(
    pipe: StableDiffusionPipeline, unet: LoraConfig | None, text: LoraConfig | None = None
) -> tuple[Weights | None, Weights | None]:
    """Adapters in a pipeline with random factors, as PEFT gives their state."""
    found: list[Weights | None] = []
    torch.manual_seed(1)
    for module, config in ((pipe.unet, unet), (pipe.text_encoder, text)):
        if config is None:
            found.append(None)
            continue
        module.add_adapter(config)
        with torch.no_grad():
            for name, p in module.named_parameters():
                if "lora_" in name:
                    p.normal_(0, 0.1)
        found.append({k: v.detach().clone() for k, v in get_peft_model_state_dict(module).items()})
    return found[0], found[1]


def metadata(config: LoraConfig) -> dict[str, object]:
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items() if key != "runtime_config"}


CONFIGS = {
    "alpha is eight times the rank": LoraConfig(r=4, lora_alpha=32, target_modules=ATTENTION),
    "alpha is below the rank": LoraConfig(r=4, lora_alpha=1, target_modules=EVERYWHERE),
    "rank-stabilised": LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=ATTENTION),
    "patterns": LoraConfig(
        r=2,
        lora_alpha=6,
        rank_pattern={"attn2.to_q": 4, "conv1": 3},
        alpha_pattern={"attn2.to_q": 2, "attn2.to_v": 9},
        target_modules=EVERYWHERE,
    ),
    "patterns, rank-stabilised": LoraConfig(r=2, lora_alpha=6, rank_pattern={"to_q": 4}, use_rslora=True, target_modules=ATTENTION),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_scale_in_the_header_counts_as_in_diffusers(name: str, model: StableDiffusion, tmp_path: Path) -> None:
    text = LoraConfig(r=2, lora_alpha=12, target_modules=TEXT)
    unet_state, text_state = trained(tiny.pipeline(), CONFIGS[name], text)
    assert text_state
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=unet_state,
        text_encoder_lora_layers=convert_state_dict_to_diffusers(text_state),
        unet_lora_adapter_metadata=metadata(CONFIGS[name]),
        text_encoder_lora_adapter_metadata=metadata(text),
    )
    found = ours(model, tmp_path)
    same(found, theirs(tmp_path))
    same(found, ours(model, tmp_path / "pytorch_lora_weights.safetensors"))
    assert len(found) == len([key for key in (*unet_state, *text_state) if "lora_A" in key])  # type: ignore[misc]


def test_without_metadata_a_lora_of_mixed_ranks_is_taken_as_it_is(model: StableDiffusion, tmp_path: Path) -> None:
    unet_state, _ = trained(tiny.pipeline(), CONFIGS["patterns"])
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=unet_state)
    same(ours(model, tmp_path), theirs(tmp_path))


def old_names(state: Weights) -> Weights:
    """The layout of attention processors, from before PEFT."""
    found = {}
    for key, value in state.items():
        layer, _, factor = key.rpartition(".lora_")
        block, _, last = layer.replace("to_out.0", "to_out").rpartition(".")
        found[f"unet.{block}.processor.{last}_lora.{'down' if factor.startswith('A') else 'up'}.weight"] = value
    return found


def test_the_old_layout_of_attention_processors(model: StableDiffusion, tmp_path: Path) -> None:
    unet_state, _ = trained(tiny.pipeline(), LoraConfig(r=3, lora_alpha=3, target_modules=ATTENTION))
    assert unet_state
    save_file(old_names(unet_state), tmp_path / "pytorch_lora_weights.safetensors")
    expected = theirs(tmp_path)
    same(ours(model, tmp_path), expected)
    bare = {key.removeprefix("unet."): value for key, value in old_names(unet_state).items()}  # as UNet2DConditionModel.save_attn_procs
    save_file(bare, tmp_path / "bare.safetensors")
    same(ours(model, tmp_path / "bare.safetensors"), expected)


@pytest.mark.parametrize("alpha", [1.0, 32.0])
def test_kohyas_layout_with_alpha(alpha: float, model: StableDiffusion, tmp_path: Path) -> None:
    unet_state, text_state = trained(
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
    same(ours(model, tmp_path / "kohya.safetensors"), theirs(tmp_path, weight_name="kohya.safetensors"))
    # te and te1 are the same encoder, and both scales are alpha / rank, by hand
    renamed = {k.replace("lora_te1_", "lora_te_"): v for k, v in state.items()}
    save_file(renamed, tmp_path / "te.safetensors")
    found = ours(model, tmp_path / "te.safetensors")
    for key in (k for k in state if k.endswith(".lora_down.weight") and "conv1" not in k):
        up, down = state[key.replace("lora_down", "lora_up")], state[key]
        assert any(
            delta.shape == (len(up), down.shape[1]) and torch.allclose(delta, alpha / len(down) * up @ down, atol=2e-3 * alpha)
            for delta in found.values()
        ), key
    off = {k: torch.zeros(()) if k.endswith(".alpha") else v for k, v in state.items()}
    save_file(off, tmp_path / "off.safetensors")
    with pytest.raises(UserError, match=r"equals .* in every parameter; there is nothing to audit"):
        ours(model, tmp_path / "off.safetensors")


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
    (delta,) = ours(model, tmp_path / "locon.safetensors").values()
    assert torch.allclose(F.conv2d(image, delta, padding=1), expected, atol=5e-3 * expected.abs().max().item())


def peft_folder(pipe: StableDiffusionPipeline, part: str, config: LoraConfig, place: Path) -> None:
    torch.manual_seed(2)
    peft = get_peft_model(getattr(pipe, part), config)
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_" in name:
                p.normal_(0, 0.1)
    peft.save_pretrained(place)


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
    peft_folder(tiny.pipeline(), part, config, tmp_path)
    pipe = tiny.pipeline()
    before = weights(pipe)
    merged = PeftModel.from_pretrained(getattr(pipe, part), str(tmp_path)).merge_and_unload()
    after = {f"{part}.{canonical_name(name)}": p.detach() for name, p in merged.named_parameters()}
    expected = moved(before, {**before, **after})
    same(ours(model, tmp_path), expected)
    same(ours(model, tmp_path / "adapter_model.safetensors"), expected)


def test_a_small_scale_does_not_sink_into_fp16(model: StableDiffusion, tmp_path: Path) -> None:
    """alpha 1 at rank 64 with small factors: up * s would be below fp16's normal numbers."""
    unet_state, _ = trained(tiny.pipeline(), LoraConfig(r=64, lora_alpha=1, target_modules=["attn2.to_q"]))
    assert unet_state
    state = {k: v * (1e-3 if "lora_B" in k else 1) for k, v in unet_state.items()}
    kohya = convert_state_dict_to_kohya({f"unet.{k}": v for k, v in state.items()})
    save_file({k: torch.tensor(1.0) if k.endswith("alpha") else v for k, v in kohya.items()}, tmp_path / "small.safetensors")
    same(ours(model, tmp_path / "small.safetensors"), theirs(tmp_path, weight_name="small.safetensors"))


LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"


def lora(**more: torch.Tensor) -> Weights:
    """A sound LoRA of one layer of tiny's, in kohya's layout, and further tensors."""
    values = {"lora_up.weight": torch.ones(16, 2), "lora_down.weight": torch.ones(2, 16), "alpha": torch.tensor(2.0)}
    return {f"{LAYER}.{k}": v for k, v in values.items()} | more


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s | {f"{LAYER}.dora_scale": torch.ones(16, 1)}, r"holds DoRA \(1 tensors\)"),
        (
            lambda s: (
                {k: v for k, v in s.items() if "alpha" in k}
                | {f"{LAYER}.hada_w1_a": torch.ones(16, 2), f"{LAYER}.hada_w1_b": torch.ones(2, 16)}
            ),
            "LoHa",
        ),
        (lambda s: s | {f"{LAYER}.lokr_w1": torch.ones(2, 2)}, "LoKr"),
        (lambda s: s | {f"{LAYER}.diff": torch.ones(16, 16), f"{LAYER}.diff_b": torch.ones(16)}, r"full differences \(2"),
        (lambda s: s | {f"{LAYER}.oft_blocks": torch.ones(2, 2)}, "OFT"),
        (lambda s: s | {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(2, 2)}, "SDXL's second"),
        (lambda s: s | {"bundle_emb.cat.string_to_param.*": torch.ones(2)}, "textual inversion"),
        (lambda s: s | {"unet.x.attn1.to_q.lora_magnitude_vector.weight": torch.ones(2)}, "DoRA"),
        (
            lambda s: s | {"lora_unet_nowhere.lora_up.weight": torch.ones(2, 2)},
            "1 layers are of tiny, 1 tensors belong to none.*'lora_unet_nowhere",
        ),
        (lambda s: s | {"what.is.this": torch.ones(2)}, "1 tensors belong to none of its layers, such as 'what.is.this'"),
        (lambda s: {k: v for k, v in s.items() if "lora_up" not in k}, "has no up factor of unet.down_blocks.0"),
        (
            lambda s: (
                {k: v for k, v in s.items() if k.endswith("alpha")} | {f"{LAYER.replace('to_q', 'to_k')}.lora_up.weight": torch.ones(16, 2)}
            ),
            "has an alpha for 1 of 2 layers",
        ),
        (lambda s: s | {f"{LAYER}.lora_up.weight": torch.ones(8, 2)}, r"\(8, 2\) and \(2, 16\), the layer is \(16, 16\)"),
        (lambda s: s | {f"{LAYER}.lora_up.weight": torch.ones(16, 3)}, r"the factors of .* are \(16, 3\)"),
        (lambda s: s | {f"{LAYER}.lora_up.weight": torch.full((16, 2), torch.nan)}, "holds NaN"),
        (lambda s: s | {f"{LAYER}.lora_up.weight": torch.zeros(16, 2)}, "equals tiny"),
        (
            lambda s: s | {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.lora_A.weight": torch.ones(2, 16)},
            "more than once",
        ),
    ],
)
def test_what_cannot_be_applied_exactly_is_refused_by_name(
    change: Callable[[Weights], Weights], words: str, model: StableDiffusion, tmp_path: Path
) -> None:
    save_file(lora(), tmp_path / "good.safetensors")
    assert len(ours(model, tmp_path / "good.safetensors")) == 1
    save_file(change(lora()), tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=words):
        load_external(model, str(tmp_path / "bad.safetensors"), CAT)


def test_configs_of_more_than_a_lora_are_refused(model: StableDiffusion, tmp_path: Path) -> None:
    for name, config in {
        "use_dora": LoraConfig(r=2, use_dora=True, target_modules=ATTENTION),
        "bias 'all'": LoraConfig(r=2, bias="all", target_modules=ATTENTION),
        "init_lora_weights 'pissa'": LoraConfig(r=2, init_lora_weights="pissa", target_modules=ATTENTION),
        "LOHA": LoHaConfig(r=2, target_modules=["attn2.to_q"]),
        "modules_to_save": LoraConfig(r=2, modules_to_save=["conv_out"], target_modules=ATTENTION),
    }.items():
        place = tmp_path / name.split()[0]
        get_peft_model(tiny.pipeline().unet, config).save_pretrained(place)
        with pytest.raises(UserError, match=name):
            load_external(model, str(place), CAT)
    place = tmp_path / "other-rank"
    peft_folder(tiny.pipeline(), "unet", LoraConfig(r=2, target_modules=ATTENTION), place)
    (place / "adapter_config.json").write_text(json.dumps({**json.loads((place / "adapter_config.json").read_text()), "r": 4}))
    with pytest.raises(UserError, match="is of rank 2, and its config says 4"):
        load_external(model, str(place), CAT)
    for config, words in (("[]", "cannot be read"), ('{"r": 2}', "lora_alpha: Field required"), ('{"r": 0, "lora_alpha": 2}', "r 0")):
        (place / "adapter_config.json").write_text(config)
        with pytest.raises(UserError, match=words):
            load_external(model, str(place), CAT)
    alone = tmp_path / "adapter_model.safetensors"
    alone.write_bytes((place / "adapter_model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"is a PEFT adapter without its adapter_config\.json"):
        load_external(model, str(alone), CAT)
    (place / "adapter_model.safetensors").rename(place / "adapter_model.bin")
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors; pickled"):
        load_external(model, str(place), CAT)


def test_a_scale_given_twice_is_refused(model: StableDiffusion, tmp_path: Path) -> None:
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 8})}
    save_file(lora(), tmp_path / "twice.safetensors", metadata=header)
    with pytest.raises(UserError, match="gives its scale twice"):
        load_external(model, str(tmp_path / "twice.safetensors"), CAT)
    without = {k: v for k, v in lora().items() if not k.endswith("alpha")}
    save_file(without, tmp_path / "once.safetensors", metadata=header)
    (delta,) = ours(model, tmp_path / "once.safetensors").values()
    assert torch.allclose(delta, torch.full((16, 16), 8 / 2 * 2.0), rtol=1e-3)
    save_file(without, tmp_path / "other.safetensors", metadata={"lora_adapter_metadata": json.dumps({"transformer.r": 2})})
    with pytest.raises(UserError, match="is about transformer, which tiny lacks"):
        load_external(model, str(tmp_path / "other.safetensors"), CAT)


def test_a_dropped_gate_is_said(model: StableDiffusion, tmp_path: Path) -> None:
    spm = {
        f"{LAYER}.lora_up.weight": torch.ones(16, 1),
        f"{LAYER}.lora_down.weight": torch.ones(1, 16),
        f"{LAYER}.alpha": torch.tensor(1.0),
    }
    save_file(spm, tmp_path / "spm.safetensors", metadata={"prompts": "snoopy", "rank": "1", "alpha": "1.0"})
    with pytest.warns(IgnoredGateWarning, match="looks like an SPM: rank 1, made for 'snoopy'.*no gate is applied"):
        load_external(model, str(tmp_path / "spm.safetensors"), CAT)


def test_kohya_files_of_a_real_unets_depth_apply_in_every_layer(tmp_path: Path) -> None:
    from tests import sd_architecture as sd_sized

    model = StableDiffusion(sd_sized.pipeline("sd1", small=True), "sd", "fp32")
    pipe = sd_sized.pipeline("sd1", small=True)
    unet_state, text_state = trained(
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
    found = load_external(model, str(tmp_path / "k.safetensors"), CAT)
    assert len(found.moved_parameters()) == 192 + 72 == len(load_file(tmp_path / "k.safetensors")) // 3
    assert math.isclose(found.tensors[next(iter(found.tensors))].abs().max().item(), 0.3, abs_tol=0.25)
