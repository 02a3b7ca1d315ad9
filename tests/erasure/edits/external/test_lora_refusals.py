"""LoRAs that cannot be applied exactly are refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model
from safetensors.torch import save_file

from erasure.concept import Concept
from erasure.edits.external.external_edit import load_external
from erasure.errors import IgnoredGateWarning, UserError
from erasure.families.stable_diffusion import StableDiffusion
from tests import tiny
from tests.lora_files import ATTENTION, Weights, our_changes, save_peft_folder

CAT = [Concept(name="cat", kind="object")]
LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"


def sound_lora(**more: torch.Tensor) -> Weights:
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
    save_file(sound_lora(), tmp_path / "good.safetensors")
    assert len(our_changes(model, tmp_path / "good.safetensors")) == 1
    save_file(change(sound_lora()), tmp_path / "bad.safetensors")
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
        path = tmp_path / name.split()[0]
        get_peft_model(tiny.pipeline().unet, config).save_pretrained(path)
        with pytest.raises(UserError, match=name):
            load_external(model, str(path), CAT)
    path = tmp_path / "other-rank"
    save_peft_folder(tiny.pipeline(), "unet", LoraConfig(r=2, target_modules=ATTENTION), path)
    (path / "adapter_config.json").write_text(json.dumps({**json.loads((path / "adapter_config.json").read_text()), "r": 4}))
    with pytest.raises(UserError, match="is of rank 2, and its config says 4"):
        load_external(model, str(path), CAT)
    for config, words in (("[]", "cannot be read"), ('{"r": 2}', "lora_alpha: Field required"), ('{"r": 0, "lora_alpha": 2}', "r 0")):
        (path / "adapter_config.json").write_text(config)
        with pytest.raises(UserError, match=words):
            load_external(model, str(path), CAT)
    alone = tmp_path / "adapter_model.safetensors"
    alone.write_bytes((path / "adapter_model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"is a PEFT adapter without its adapter_config\.json"):
        load_external(model, str(alone), CAT)
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors; pickled"):
        load_external(model, str(path), CAT)


def test_a_scale_given_twice_is_refused(model: StableDiffusion, tmp_path: Path) -> None:
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 8})}
    save_file(sound_lora(), tmp_path / "twice.safetensors", metadata=header)
    with pytest.raises(UserError, match="gives its scale twice"):
        load_external(model, str(tmp_path / "twice.safetensors"), CAT)
    without = {k: v for k, v in sound_lora().items() if not k.endswith("alpha")}
    save_file(without, tmp_path / "once.safetensors", metadata=header)
    (delta,) = our_changes(model, tmp_path / "once.safetensors").values()
    assert torch.allclose(delta, torch.full((16, 16), 8 / 2 * 2.0), rtol=1e-3)
    save_file(without, tmp_path / "other.safetensors", metadata={"lora_adapter_metadata": json.dumps({"transformer.r": 2})})
    with pytest.raises(UserError, match="is about transformer, which tiny lacks"):
        load_external(model, str(tmp_path / "other.safetensors"), CAT)


def test_a_dropped_gate_is_warned_about(model: StableDiffusion, tmp_path: Path) -> None:
    spm = {
        f"{LAYER}.lora_up.weight": torch.ones(16, 1),
        f"{LAYER}.lora_down.weight": torch.ones(1, 16),
        f"{LAYER}.alpha": torch.tensor(1.0),
    }
    save_file(spm, tmp_path / "spm.safetensors", metadata={"prompts": "snoopy", "rank": "1", "alpha": "1.0"})
    with pytest.warns(IgnoredGateWarning, match="looks like an SPM: rank 1, made for 'snoopy'.*no gate is applied"):
        load_external(model, str(tmp_path / "spm.safetensors"), CAT)
