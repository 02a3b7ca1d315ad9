"""External erasures: LoRA files, and files with some parameters."""

import random
from collections.abc import Iterator

import torch
from safetensors.torch import load
from torch import Tensor

from fuzzing.case import BINARY_BYTES, Case, damage, to_safetensors
from fuzzing.fixtures import Fixtures


def audit_argv(fixtures: Fixtures, path: str) -> tuple[str, ...]:
    """Return the command that audits an external erasure."""
    flags = ("--concept", "neon", "--model", str(fixtures.model), "--suite", "{in}/grid.yaml", "--tier", "smoke", "--out", "{out}/audit")
    return ("audit", path, *flags)


def lora_cases(fixtures: Fixtures, rng: random.Random) -> Iterator[Case]:
    """LoRA files, and files with some parameters."""
    lora_bytes = fixtures.lora.read_bytes()
    factors = load(lora_bytes)
    name, value = next(iter(factors.items()))
    unet = load((fixtures.model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())
    key, weight = next((k, v) for k, v in unet.items() if "attn2.to_k" in k)

    def case(description: str, data: bytes, must_fail: bool = True, file: str = "made.safetensors", argv: tuple[str, ...] = ()) -> Case:
        files = {file: data, "grid.yaml": fixtures.root / "grid.yaml", "edit": fixtures.edit}
        return Case(description, argv or audit_argv(fixtures, f"{{in}}/{file}"), files, must_fail)

    fixed = [
        case(f"LoRA, {description}", data)
        for description, data in (("empty", b""), ("binary", BINARY_BYTES), ("cut", lora_bytes[:-1]), ("header cut", lora_bytes[:40]))
    ]
    fixed += [case(f"LoRA, {description}", to_safetensors(tensors)) for description, tensors in broken_loras(factors, name, value).items()]
    states = broken_parameters(key, weight)
    fixed += [case(f"parameters, {description}", to_safetensors(tensors)) for description, tensors in states.items()]
    fixed += [
        case(f"parameters, as {file}", BINARY_BYTES, True, file) for file in ("made.pt", "made.ckpt", "made.bin", "made", "made.gguf")
    ]
    fixed += [
        case("missing flags", lora_bytes, True, argv=("audit", "{in}/made.safetensors", *rest)) for rest in ((), ("--concept", "neon"))
    ]
    flags = ("--suite", "{in}/grid.yaml", "--tier", "smoke", "--out", "{out}/audit")
    retrained_argv = ("audit", "{in}/edit", *flags, "--retrained", "{in}/made.safetensors")
    fixed += [
        case(f"retrained, {description}", to_safetensors(tensors), True, argv=retrained_argv) for description, tensors in states.items()
    ]
    fixed += [
        case(
            "retrained without another concept",
            to_safetensors({key: weight * 2}, metadata={"without": "sketch"}),
            True,
            argv=retrained_argv,
        )
    ]
    rng.shuffle(fixed)
    yield from fixed
    while True:
        yield case("LoRA, damaged", damage(lora_bytes, rng), must_fail=False)


def broken_loras(factors: dict[str, Tensor], name: str, value: Tensor) -> dict[str, dict[str, Tensor]]:
    """Tensors of LoRA files that must be refused; `name` is one of the factors and `value` its tensor."""
    return {
        "no tensor": {},
        "one factor of two": {k: v for k, v in factors.items() if k != name},
        "another rank": {**factors, name: value[:1].contiguous()},
        "another width": {**factors, name: torch.zeros(2, 3)},
        "no dimension": {**factors, name: torch.tensor(1.0)},
        "NaN": {**factors, name: value * float("nan")},
        "infinite": {**factors, name: value + float("inf")},
        "whole numbers": {k: v.to(torch.int64) for k, v in factors.items()},
        "a layer that the base lacks": {**factors, name.replace("attn2", "attn9"): value},
        "a name of no network": {"../../x.lora_A.weight": value},
        "no name": {".lora_A.weight": value},
        "LoHa": {f"lora_unet_x.hada_{part}": torch.zeros(2, 2) for part in ("w1_a", "w1_b", "w2_a", "w2_b")},
        "LoKr": {f"lora_unet_x.lokr_{part}": torch.zeros(2, 2) for part in ("w1", "w2")},
        "an alpha that is NaN": {**factors, name.rpartition(".lora")[0] + ".alpha": torch.tensor(float("nan"))},
        "SDXL": {"lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": torch.zeros(2, 2)},
    }


def broken_parameters(key: str, weight: Tensor) -> dict[str, dict[str, Tensor]]:
    """Parameters of a UNet that must be refused; `key` is the name of one and `weight` its value."""
    return {
        "no difference": {key: weight},
        "another shape": {key: weight[:1].contiguous()},
        "NaN": {key: weight * float("nan")},
        "infinite": {key: weight + float("inf")},
        "a name that the base lacks": {"nothing.weight": weight},
        "CompVis names": {"model.diffusion_model.input_blocks.0.0.weight": weight},
        "Flux names": {"double_blocks.0.img_attn.qkv.weight": weight},
    }
