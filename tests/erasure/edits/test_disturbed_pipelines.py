"""What people do to a pipeline between apply and revert: LoRA, fusing, torch.compile, another dtype or device, textual inversion."""

import copy
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextModel

from erasure.edits import parameters_of
from erasure.edits.stacking import stack_of
from erasure.errors import UserError
from erasure.export.lora import to_lora
from erasure.families.parameters import fingerprint
from erasure.families.stable_diffusion import StableDiffusion
from tests import synthetic_edits, tiny
from tests.pipeline_state import copy_parameters, equal_parameters, generate_latents
from tests.synthetic_edits import edit_of_kind

WEIGHT_KINDS = ("value", "low-rank", "zeroed", "one-step")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of attention, the edited layers among them, that does something."""
    unet, folder = tiny.pipeline().unet, tmp_path_factory.mktemp("lora")
    torch.manual_seed(5)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    return folder


def test_a_text_encoder_of_a_class_of_ones_own_can_be_edited() -> None:
    class OwnEncoder(CLIPTextModel):
        pass

    pipe = tiny.pipeline()
    names = list(parameters_of(pipe))
    own = OwnEncoder(pipe.text_encoder.config)
    own.load_state_dict(pipe.text_encoder.state_dict())
    pipe.text_encoder = own
    assert list(parameters_of(pipe)) == names


def test_names_and_fingerprint_see_through_every_wrapper(lora: Path) -> None:
    plain = tiny.pipeline()
    names, expected = list(parameters_of(plain)), fingerprint({"unet": plain.unet})
    wrapped = [tiny.pipeline() for _ in range(4)]
    wrapped[0].load_lora_weights(lora)
    wrapped[1].unet = torch.compile(wrapped[1].unet, backend="eager")
    wrapped[2].unet = get_peft_model(wrapped[2].unet, LoraConfig(target_modules=["to_q"]))
    wrapped[3].unet.down_blocks[0] = torch.compile(wrapped[3].unet.down_blocks[0], backend="eager")
    wrapped[3].load_lora_weights(lora)
    for pipe in wrapped:
        assert list(parameters_of(pipe)) == names
        assert fingerprint({"unet": pipe.unet}) == expected


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
def test_a_loaded_lora_stays_and_the_edit_goes(kind: str, lora: Path) -> None:
    pipe, with_lora = tiny.pipeline(), tiny.pipeline()
    before, edit = copy_parameters(pipe), edit_of_kind(pipe, kind)
    with_lora.load_lora_weights(lora)
    edit.apply(pipe)
    pipe.load_lora_weights(lora)
    edit.revert(pipe)
    assert equal_parameters(copy_parameters(pipe), before)
    assert torch.equal(generate_latents(pipe), generate_latents(with_lora))  # the LoRA is still there
    edit.apply(pipe)  # and it may be there beforehand
    pipe.unload_lora_weights()
    edit.revert(pipe)
    assert equal_parameters(copy_parameters(pipe), before)


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_fused_lora_is_named_and_not_lost(kind: str, dtype: torch.dtype, lora: Path) -> None:
    pipe = tiny.pipeline().to(dtype)
    before, edit = copy_parameters(pipe), edit_of_kind(pipe, kind)
    edit.apply(pipe)
    pipe.load_lora_weights(lora)
    pipe.fuse_lora()
    fused = copy_parameters(pipe)
    for act in (edit.revert, edit_of_kind(pipe, kind, seed=1).apply):
        with pytest.raises(UserError, match=r"pipe\.unfuse_lora\(\) first"):
            act(pipe)
        assert equal_parameters(copy_parameters(pipe), fused)
    pipe.unfuse_lora()  # which rounds
    edit.revert(pipe)
    assert all(torch.equal(copy_parameters(pipe)[name], before[name]) for name in edit.moved_parameters())
    pipe = tiny.pipeline().to(dtype)
    edit.apply(pipe)
    pipe.load_lora_weights(lora)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    with pytest.raises(UserError, match=r"fused and then unloaded.*load the pipeline again"):
        edit.revert(pipe)
    assert len(stack_of(pipe).edits) == 1


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1000), (torch.float16, 30), (torch.bfloat16, 3)])
def test_an_exported_lora_of_any_size_may_be_fused_and_unfused(kind: str, dtype: torch.dtype, size: float, tmp_path: Path) -> None:
    model = StableDiffusion(tiny.pipeline(), "tiny", "fp32")
    uce = synthetic_edits.low_rank_edit(model)
    for key in uce.tensors:
        uce.tensors[key].mul_(size if key.endswith("::up") else 1)
    to_lora(model, uce, tmp_path)
    pipe = tiny.pipeline().to(dtype)
    before, edit = copy_parameters(pipe), edit_of_kind(pipe, kind)
    edit.tensors.update({key: value * 0.1 for key, value in edit.tensors.items() if not key.endswith("::zeroed")})  # sizes as in a model
    edit.apply(pipe, other_base=True)
    pipe.load_lora_weights(tmp_path)
    pipe.fuse_lora()
    with pytest.raises(UserError, match=r"call pipe\.unfuse_lora\(\) first"):
        edit.revert(pipe)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    edit.revert(pipe)
    assert all(torch.equal(copy_parameters(pipe)[name], before[name]) for name in edit.moved_parameters())


def test_rounding_too_large_to_recognize_is_named_with_the_remedy() -> None:
    pipe = tiny.pipeline().to(torch.bfloat16)
    edit = edit_of_kind(pipe, "value").apply(pipe, other_base=True)
    torch.manual_seed(0)
    for name in edit.moved_parameters():
        p = parameters_of(pipe)[name]
        delta = 3e4 * torch.randn(p.shape).bfloat16()
        p.data.add_(delta).sub_(delta)
    with pytest.raises(UserError, match=r"LoRAs that were fused and unfused.*Load the pipeline again"):
        edit.revert(pipe)


def test_another_base_by_an_unfused_lora_is_named_when_applying(lora: Path) -> None:
    pipe = tiny.pipeline().to(torch.float16)
    edit = edit_of_kind(pipe, "value")
    pipe.load_lora_weights(lora)
    pipe.fuse_lora()
    pipe.unfuse_lora()
    with pytest.raises(UserError, match=r"another base.*a LoRA fused and unfused, makes another base too: load it again"):
        edit.apply(pipe)


def test_another_base_by_a_fused_lora_is_named_when_applying(lora: Path) -> None:
    pipe = tiny.pipeline()
    edit = edit_of_kind(pipe, "value")
    pipe.load_lora_weights(lora)
    pipe.fuse_lora()
    fused = copy_parameters(pipe)
    with pytest.raises(UserError, match=r"another base.*pipe\.unfuse_lora\(\) first"):
        edit.apply(pipe)
    edit.apply(pipe, other_base=True)  # whoever wants it has it, and gets back what was there
    edit.revert(pipe)
    assert equal_parameters(copy_parameters(pipe), fused)


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
def test_compiled_networks(kind: str) -> None:
    pipe = tiny.pipeline()
    before, edit, base = copy_parameters(pipe), edit_of_kind(pipe, kind), generate_latents(pipe)
    edit.apply(pipe)
    erased = generate_latents(pipe)
    pipe.unet, pipe.text_encoder = (torch.compile(network, backend="eager") for network in (pipe.unet, pipe.text_encoder))
    edit.revert(pipe)
    assert equal_parameters(copy_parameters(pipe), before) and torch.equal(generate_latents(pipe), base)
    edit.apply(pipe)
    assert torch.equal(generate_latents(pipe), erased)
    edit.revert(pipe)
    assert equal_parameters(copy_parameters(pipe), before)


def test_guidance_of_a_compiled_network_is_hooked_once() -> None:
    pipe = tiny.pipeline()
    edit, base = edit_of_kind(pipe, "guidance"), generate_latents(pipe)
    edit.apply(pipe)
    guided = generate_latents(pipe)
    edit.revert(pipe)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    edit.apply(pipe)
    assert torch.allclose(generate_latents(pipe), guided, atol=1e-5)
    other = edit_of_kind(pipe, "guidance", seed=1).apply(pipe)
    assert len(pipe.unet._forward_hooks) == 1
    other.revert(pipe)
    edit.revert(pipe)
    assert not pipe.unet._forward_hooks and torch.equal(generate_latents(pipe), base)
    pipe = tiny.pipeline()
    edit.apply(pipe)
    pipe.unet = torch.compile(pipe.unet, backend="eager")  # afterwards: the hook is on the network inside
    other.apply(pipe)
    assert len(pipe.unet._forward_hooks) + len(pipe.unet._orig_mod._forward_hooks) == 1
    other.revert(pipe)
    edit.revert(pipe)
    assert not pipe.unet._orig_mod._forward_hooks


def test_weights_that_no_edit_moves_may_change() -> None:
    pipe = tiny.pipeline()
    base, edit = copy_parameters(pipe), edit_of_kind(pipe, "value")
    edit.apply(pipe)
    with torch.no_grad():
        pipe.unet.conv_out.bias.add_(1)
    edit.revert(pipe)
    assert {name for name, value in copy_parameters(pipe).items() if not torch.equal(value, base[name])} == {"unet.conv_out.bias"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two devices")
@pytest.mark.parametrize("kind", WEIGHT_KINDS)
def test_another_device(kind: str) -> None:
    pipe = tiny.pipeline()
    before, edit = copy_parameters(pipe), edit_of_kind(pipe, kind)
    edit.apply(pipe, strength=0.5)
    pipe.to("cuda")
    edit.revert(pipe)
    assert equal_parameters({name: p.cpu() for name, p in copy_parameters(pipe).items()}, before)
    edit.apply(pipe, strength=0.5)
    pipe.to("cpu")
    edit.revert(pipe)
    assert equal_parameters(copy_parameters(pipe), before)


def test_offloaded_weights_are_named_with_the_remedy() -> None:
    pipe = tiny.pipeline()
    before, edit = copy_parameters(pipe), edit_of_kind(pipe, "value")
    edit.apply(pipe)
    cpu_offload(pipe.unet, torch.device("cpu"))  # what enable_sequential_cpu_offload does for a GPU
    for act in (edit.revert, edit_of_kind(tiny.pipeline(), "value", seed=1).apply):
        with pytest.raises(UserError, match=r"not in memory.*pipe\.remove_all_hooks\(\) first"):
            act(pipe)
    pipe.remove_all_hooks()
    edit.revert(pipe)
    assert equal_parameters(copy_parameters(pipe), before)


def test_a_textual_inversion_is_named_only_where_it_disturbs(tmp_path: Path) -> None:
    pipe = tiny.pipeline()
    before, edit = copy_parameters(pipe), edit_of_kind(pipe, "value")
    save_file({"<blub>": torch.randn(2, 32)}, tmp_path / "ti.safetensors")
    edit.apply(pipe)
    pipe.load_textual_inversion(str(tmp_path / "ti.safetensors"), token="<blub>")
    edit.revert(pipe)  # it moved no embedding
    assert all(torch.equal(copy_parameters(pipe)[name], before[name]) for name in edit.moved_parameters())
    with pytest.raises(UserError, match=r"added 2 tokens.*pipe\.unload_textual_inversion\(\) first"):
        edit.apply(pipe)
    pipe.unload_textual_inversion()
    edit.apply(pipe)
    edit.revert(pipe)
    assert equal_parameters(copy_parameters(pipe), before)
    embeddings = "text_encoder.embeddings.token_embedding.weight"
    moved = copy.copy(edit.tensors)
    moved[embeddings] = torch.zeros(before[embeddings].shape).half()
    whole = type(edit)(moved, edit.info)
    whole.apply(pipe)
    pipe.load_textual_inversion(str(tmp_path / "ti.safetensors"), token="<blub>")
    with pytest.raises(UserError, match=r"added 2 tokens.*pipe\.unload_textual_inversion\(\) first"):
        whole.revert(pipe)
    pipe.unload_textual_inversion()
    whole.revert(pipe)
    assert equal_parameters(copy_parameters(pipe), before)


def test_other_networks_and_none() -> None:
    pipe = tiny.pipeline()
    edit = edit_of_kind(pipe, "value")
    edit.apply(pipe)
    own, pipe.unet = pipe.unet, tiny.pipeline(seed=1).unet
    with pytest.raises(UserError, match=r"pipe\.unet is not the network that the edit went into: put that one back"):
        edit.revert(pipe)
    pipe.unet = None
    with pytest.raises(UserError, match=r"pipe\.unet is not the network"):
        edit.revert(pipe)
    pipe.unet = copy.deepcopy(own)  # another object that holds the same
    edit.revert(pipe)
    assert equal_parameters(copy_parameters(pipe), copy_parameters(tiny.pipeline()))
    pipe.text_encoder = None
    for pipeline in (pipe, object(), None):
        with pytest.raises(UserError, match=r"has no .*text_encoder"):
            edit.apply(pipeline)


def test_training_in_between_is_refused() -> None:
    pipe = tiny.pipeline()
    edit = edit_of_kind(pipe, "value")
    edit.apply(pipe)
    name = sorted(edit.moved_parameters())[0]
    with torch.no_grad():
        parameters_of(pipe)[name][0, 0] += 0.01
    with pytest.raises(UserError, match=f"1 of .* weights.*{name}.*Something else changed them"):
        edit.revert(pipe)
