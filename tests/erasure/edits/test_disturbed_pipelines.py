"""What people do to a pipeline between apply and revert: LoRA, fusing, torch.compile, another dtype or device, textual inversion."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from erasure.edits import parameters_of
from erasure.edits.rounding import holds_value
from erasure.edits.stacking import stack_of
from erasure.errors import UserError
from erasure.export.lora import to_lora
from erasure.families.base import fingerprint
from erasure.families.stable_diffusion import StableDiffusion
from tests import synthetic_edits as edits
from tests import tiny
from tests.erasure.edits.test_transaction import edit_of

WEIGHTS = ("value", "low-rank", "zeroed", "one-step")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of attention, the edited layers among them, that does something."""
    unet, folder = tiny.pipeline().unet, tmp_path_factory.mktemp("lora")
    torch.manual_seed(5)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    return folder


def values(pipe: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in parameters_of(pipe).items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def drawn(pipe: Any) -> torch.Tensor:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return pipe(["a cat"], num_inference_steps=2, latents=noise, output_type="latent").images


def test_names_and_fingerprint_see_through_every_wrapper(lora: Path) -> None:
    plain = tiny.pipeline()
    names, print_ = list(parameters_of(plain)), fingerprint({"unet": plain.unet})
    wrapped = [tiny.pipeline() for _ in range(4)]
    wrapped[0].load_lora_weights(lora)
    wrapped[1].unet = torch.compile(wrapped[1].unet, backend="eager")
    wrapped[2].unet = get_peft_model(wrapped[2].unet, LoraConfig(target_modules=["to_q"]))
    wrapped[3].unet.down_blocks[0] = torch.compile(wrapped[3].unet.down_blocks[0], backend="eager")
    wrapped[3].load_lora_weights(lora)
    for pipe in wrapped:
        assert list(parameters_of(pipe)) == names
        assert fingerprint({"unet": pipe.unet}) == print_


@pytest.mark.parametrize("form", WEIGHTS)
def test_a_loaded_lora_stays_and_the_edit_goes(form: str, lora: Path) -> None:
    pipe, with_lora = tiny.pipeline(), tiny.pipeline()
    before, edit = values(pipe), edit_of(pipe, form)
    with_lora.load_lora_weights(lora)
    edit.apply(pipe)
    pipe.load_lora_weights(lora)
    edit.revert(pipe)
    assert equal(values(pipe), before)
    assert torch.equal(drawn(pipe), drawn(with_lora))  # the LoRA is still there
    edit.apply(pipe)  # and it may be there beforehand
    pipe.unload_lora_weights()
    edit.revert(pipe)
    assert equal(values(pipe), before)


@pytest.mark.parametrize("form", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_fused_lora_is_named_and_lost_by_nobody(form: str, dtype: torch.dtype, lora: Path) -> None:
    pipe = tiny.pipeline().to(dtype)
    before, edit = values(pipe), edit_of(pipe, form)
    edit.apply(pipe)
    pipe.load_lora_weights(lora)
    pipe.fuse_lora()
    fused = values(pipe)
    for act in (edit.revert, edit_of(pipe, form, seed=1).apply):
        with pytest.raises(UserError, match=r"pipe\.unfuse_lora\(\) first"):
            act(pipe)
        assert equal(values(pipe), fused)
    pipe.unfuse_lora()  # which rounds
    edit.revert(pipe)
    assert all(torch.equal(values(pipe)[name], before[name]) for name in edit.moved_parameters())
    pipe = tiny.pipeline().to(dtype)
    edit.apply(pipe)
    pipe.load_lora_weights(lora)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    with pytest.raises(UserError, match=r"fused and then unloaded.*load the pipeline again"):
        edit.revert(pipe)
    assert len(stack_of(pipe).edits) == 1


@pytest.mark.parametrize("form", WEIGHTS)
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1000), (torch.float16, 30), (torch.bfloat16, 3)])
def test_an_exported_lora_of_any_size_may_be_fused_and_unfused(form: str, dtype: torch.dtype, size: float, tmp_path: Path) -> None:
    model = StableDiffusion(tiny.pipeline(), "tiny", "fp32")
    uce = edits.low_rank_edit(model)
    for key in uce.tensors:
        uce.tensors[key].mul_(size if key.endswith("::up") else 1)
    to_lora(model, uce, tmp_path)
    pipe = tiny.pipeline().to(dtype)
    before, edit = values(pipe), edit_of(pipe, form)
    edit.tensors.update({key: value * 0.1 for key, value in edit.tensors.items() if not key.endswith("::zeroed")})  # sizes as in a model
    edit.apply(pipe, other_base=True)
    pipe.load_lora_weights(tmp_path)
    pipe.fuse_lora()
    with pytest.raises(UserError, match=r"call pipe\.unfuse_lora\(\) first"):
        edit.revert(pipe)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    edit.revert(pipe)
    assert all(torch.equal(values(pipe)[name], before[name]) for name in edit.moved_parameters())


def test_rounding_too_large_to_tell_is_named_with_a_way_out() -> None:
    pipe = tiny.pipeline().to(torch.bfloat16)
    edit = edit_of(pipe, "value").apply(pipe, other_base=True)
    torch.manual_seed(0)
    for name in edit.moved_parameters():
        p = parameters_of(pipe)[name]
        delta = 3e4 * torch.randn(p.shape).bfloat16()
        p.data.add_(delta).sub_(delta)
    with pytest.raises(UserError, match=r"LoRAs that were fused and unfused.*Load the pipeline again"):
        edit.revert(pipe)


def test_another_base_by_an_unfused_lora_is_named_when_applying(lora: Path) -> None:
    pipe = tiny.pipeline().to(torch.float16)
    edit = edit_of(pipe, "value")
    pipe.load_lora_weights(lora)
    pipe.fuse_lora()
    pipe.unfuse_lora()
    with pytest.raises(UserError, match=r"another base.*a LoRA fused and unfused, makes another base too: load it again"):
        edit.apply(pipe)


def test_another_base_by_a_fused_lora_is_named_when_applying(lora: Path) -> None:
    pipe = tiny.pipeline()
    edit = edit_of(pipe, "value")
    pipe.load_lora_weights(lora)
    pipe.fuse_lora()
    fused = values(pipe)
    with pytest.raises(UserError, match=r"another base.*pipe\.unfuse_lora\(\) first"):
        edit.apply(pipe)
    edit.apply(pipe, other_base=True)  # whoever wants it has it, and gets back what was there
    edit.revert(pipe)
    assert equal(values(pipe), fused)


@pytest.mark.parametrize("form", WEIGHTS)
def test_compiled_networks(form: str) -> None:
    pipe = tiny.pipeline()
    before, edit, base = values(pipe), edit_of(pipe, form), drawn(pipe)
    edit.apply(pipe)
    erased = drawn(pipe)
    pipe.unet, pipe.text_encoder = (torch.compile(network, backend="eager") for network in (pipe.unet, pipe.text_encoder))
    edit.revert(pipe)
    assert equal(values(pipe), before) and torch.equal(drawn(pipe), base)
    edit.apply(pipe)
    assert torch.equal(drawn(pipe), erased)
    edit.revert(pipe)
    assert equal(values(pipe), before)


def test_guidance_of_a_compiled_network_is_hooked_once() -> None:
    pipe = tiny.pipeline()
    edit, base = edit_of(pipe, "guidance"), drawn(pipe)
    edit.apply(pipe)
    guided = drawn(pipe)
    edit.revert(pipe)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    edit.apply(pipe)
    assert torch.allclose(drawn(pipe), guided, atol=1e-5)
    other = edit_of(pipe, "guidance", seed=1).apply(pipe)
    assert len(pipe.unet._forward_hooks) == 1
    other.revert(pipe)
    edit.revert(pipe)
    assert not pipe.unet._forward_hooks and torch.equal(drawn(pipe), base)
    pipe = tiny.pipeline()
    edit.apply(pipe)
    pipe.unet = torch.compile(pipe.unet, backend="eager")  # afterwards: the hook is on the network inside
    other.apply(pipe)
    assert len(pipe.unet._forward_hooks) + len(pipe.unet._orig_mod._forward_hooks) == 1
    other.revert(pipe)
    edit.revert(pipe)
    assert not pipe.unet._orig_mod._forward_hooks


@pytest.mark.parametrize("form", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_pipeline_comes_back_as_the_cast_base(form: str, dtype: torch.dtype) -> None:
    pipe, base = tiny.pipeline(), tiny.pipeline().to(dtype)
    edit, below = edit_of(pipe, form), edit_of(pipe, "value", seed=4, layers=2)
    below.apply(pipe)
    edit.apply(pipe)
    pipe.to(dtype)
    edit.revert(pipe)
    below.revert(pipe)
    assert equal(values(pipe), values(base))


def test_a_cast_and_back_is_named_with_the_way_out() -> None:
    pipe = tiny.pipeline()
    edit = edit_of(pipe, "low-rank")
    edit.apply(pipe, strength=0.37)
    pipe.to(torch.float16).to(torch.float32)
    with pytest.raises(UserError, match=r"cast to torch\.float16 and back.*Cast it to torch\.float16 again"):
        edit.revert(pipe)
    pipe.to(torch.float16)
    edit.revert(pipe)
    assert equal(values(pipe), values(tiny.pipeline().to(torch.float16)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_and_back_is_refused_where_other_weights_lost_digits(dtype: torch.dtype) -> None:
    pipe = tiny.pipeline()
    base, edit = values(pipe), edit_of(pipe, "value")  # its values are whole numbers: they survive
    edit.tensors.update({name: value.round() for name, value in edit.tensors.items()})
    edit.apply(pipe)
    bias = type(edit)({"unet.conv_out.bias": torch.ones(4).half()}, edit.info).apply(pipe)  # what no edit moves is less now
    pipe.to(dtype).to(torch.float32)
    cast = values(pipe)
    assert all(torch.equal(cast[name], value.float()) for name, value in edit.tensors.items()) and not equal(cast, base)
    for act in (edit.revert, edit_of(pipe, "low-rank").apply):
        with pytest.raises(UserError, match=rf"cast to {dtype} and back.*Cast it to {dtype} again first"):
            act(pipe, other_base=True) if act != edit.revert else act(pipe)
        assert equal(values(pipe), cast)
    pipe.to(dtype)
    edit.revert(pipe)
    bias.revert(pipe)
    assert equal(values(pipe), values(tiny.pipeline().to(dtype)))
    assert not stack_of(pipe).unmoved


def test_a_base_without_digits_to_lose_comes_back_after_a_cast_and_back() -> None:
    pipe = tiny.pipeline().to(torch.float16).to(torch.float32)  # as a release in fp16 is
    base, edit = values(pipe), edit_of(pipe, "value")
    edit.apply(pipe)
    pipe.to(torch.float16).to(torch.float32)
    edit.revert(pipe)
    assert equal(values(pipe), base)


def test_an_edit_of_everything_comes_back_after_a_cast_and_back() -> None:
    pipe = tiny.pipeline()
    base, below = values(pipe), edit_of(pipe, "value")
    whole = type(below)({name: torch.randn(value.shape).half() for name, value in base.items()}, below.info)
    below.apply(pipe)  # what is seen of the others now is moved by the next one
    whole.apply(pipe)
    below.revert(pipe)
    pipe.to(torch.float16).to(torch.float32)
    whole.revert(pipe)
    assert equal(values(pipe), base)


def test_weights_that_no_edit_moves_may_change() -> None:
    pipe = tiny.pipeline()
    base, edit = values(pipe), edit_of(pipe, "value")
    edit.apply(pipe)
    with torch.no_grad():
        pipe.unet.conv_out.bias.add_(1)
    edit.revert(pipe)
    assert {name for name, value in values(pipe).items() if not torch.equal(value, base[name])} == {"unet.conv_out.bias"}


def test_a_base_in_bf16_is_named_when_applying() -> None:
    edit = edit_of(tiny.pipeline(), "value")
    with pytest.raises(UserError, match=r"another base.*Weights are bfloat16 here.*load the pipeline in float32 or float16"):
        edit.apply(tiny.pipeline().to(torch.bfloat16))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two devices")
@pytest.mark.parametrize("form", WEIGHTS)
def test_another_device(form: str) -> None:
    pipe = tiny.pipeline()
    before, edit = values(pipe), edit_of(pipe, form)
    edit.apply(pipe, strength=0.5)
    pipe.to("cuda")
    edit.revert(pipe)
    assert equal({name: p.cpu() for name, p in values(pipe).items()}, before)
    edit.apply(pipe, strength=0.5)
    pipe.to("cpu")
    edit.revert(pipe)
    assert equal(values(pipe), before)


def test_offloaded_weights_are_named_with_the_way_back() -> None:
    pipe = tiny.pipeline()
    before, edit = values(pipe), edit_of(pipe, "value")
    edit.apply(pipe)
    cpu_offload(pipe.unet, torch.device("cpu"))  # what enable_sequential_cpu_offload does for a GPU
    for act in (edit.revert, edit_of(tiny.pipeline(), "value", seed=1).apply):
        with pytest.raises(UserError, match=r"not in memory.*pipe\.remove_all_hooks\(\) first"):
            act(pipe)
    pipe.remove_all_hooks()
    edit.revert(pipe)
    assert equal(values(pipe), before)


def test_a_textual_inversion_is_named_only_where_it_disturbs(tmp_path: Path) -> None:
    pipe = tiny.pipeline()
    before, edit = values(pipe), edit_of(pipe, "value")
    save_file({"<blub>": torch.randn(2, 32)}, tmp_path / "ti.safetensors")
    edit.apply(pipe)
    pipe.load_textual_inversion(str(tmp_path / "ti.safetensors"), token="<blub>")
    edit.revert(pipe)  # it moved no embedding
    assert all(torch.equal(values(pipe)[name], before[name]) for name in edit.moved_parameters())
    with pytest.raises(UserError, match=r"added 2 tokens.*pipe\.unload_textual_inversion\(\) first"):
        edit.apply(pipe)
    pipe.unload_textual_inversion()
    edit.apply(pipe)
    edit.revert(pipe)
    assert equal(values(pipe), before)
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
    assert equal(values(pipe), before)


def test_other_networks_and_none() -> None:
    pipe = tiny.pipeline()
    edit = edit_of(pipe, "value")
    edit.apply(pipe)
    own, pipe.unet = pipe.unet, tiny.pipeline(seed=1).unet
    with pytest.raises(UserError, match=r"pipe\.unet is not the network that the edit went into: put that one back"):
        edit.revert(pipe)
    pipe.unet = None
    with pytest.raises(UserError, match=r"pipe\.unet is not the network"):
        edit.revert(pipe)
    pipe.unet = copy.deepcopy(own)  # another object that holds the same
    edit.revert(pipe)
    assert equal(values(pipe), values(tiny.pipeline()))
    pipe.text_encoder = None
    for thing in (pipe, object(), None):
        with pytest.raises(UserError, match=r"has no .*text_encoder"):
            edit.apply(thing)


def test_training_in_between_is_refused() -> None:
    pipe = tiny.pipeline()
    edit = edit_of(pipe, "value")
    edit.apply(pipe)
    name = sorted(edit.moved_parameters())[0]
    with torch.no_grad():
        parameters_of(pipe)[name][0, 0] += 0.01
    with pytest.raises(UserError, match=f"1 of .* weights.*{name}.*Something else changed them"):
        edit.revert(pipe)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_is_let_through_and_a_weak_lora_is_not(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    w, delta = torch.randn(64, 64).to(dtype), torch.randn(64, 64).to(dtype)
    for size in (0.01, 0.1, 1.0, 5.0, 25.0):
        assert holds_value((w + size * delta) - size * delta, w, is_fused=False), size
    assert not holds_value(w + 0.02 * delta, w, is_fused=False)
    assert not holds_value((w + delta) - delta, w, is_fused=True)
    assert holds_value(w.clone(), w, is_fused=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("content", [torch.float32, torch.float16])  # an edit's values are fp16, also in fp32 weights
def test_changes_that_leave_zero_digits_are_no_rounding(dtype: torch.dtype, content: torch.dtype) -> None:
    torch.manual_seed(0)
    w = torch.randn(64, 64).to(content).to(dtype)
    small = w.abs() <= w.abs().float().quantile(0.1)
    others = {
        "zero": torch.zeros_like(w),
        "one": torch.ones_like(w),
        "signs": w.sign(),
        "pruned": w.where(~small, 0),
        "clamped": w.clamp(-1, 1),
        "8 bits": w.to(torch.float8_e4m3fn).to(dtype),
        "trained, in fp16": (w.float() + 0.02 * torch.randn(64, 64)).half().to(dtype),
        "halves": (2 * w).round() / 2,
    }
    for name, other in others.items():
        assert not holds_value(other, w, is_fused=False), name
    if dtype != torch.bfloat16:  # whose own digits are as coarse as that
        one = w.clone()
        one[3, 4] = (8 * w[3, 4]).round() / 8 + 0.125
        assert not holds_value(one, w, is_fused=False)


def test_a_lora_that_dwarfs_the_weights_cannot_be_told() -> None:
    torch.manual_seed(0)
    w, delta = torch.randn(64, 64).bfloat16(), 100 * torch.randn(64, 64).bfloat16()
    assert not holds_value((w + delta) - delta, w, is_fused=False)
