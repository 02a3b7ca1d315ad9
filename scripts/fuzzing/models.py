"""Base models: pipeline folders, single files, names on the hub."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from fuzzing.case import (
    BINARY_BYTES,
    DEEP_JSON,
    HOSTILE_NUMBERS,
    LONG_TEXT,
    Case,
    damage,
    drop_each_key,
    mutate,
    swap_type,
    to_json_bytes,
    to_safetensors,
)
from fuzzing.external_edits import audit_argv
from fuzzing.fixtures import Fixtures

HUB_NAMES = [
    "org/name",
    "org/name/sub",
    "hub:org/name",
    "-/-",
    "a/b/../..",
    "../..",
    "https://example.org/x",
    "file:///etc",
    "a//b",
    "a/",
    "/a",
    ".",
    "a" * 200 + "/" + "b" * 200,
    LONG_TEXT,
    "org/na me",
    "org/näme",
    "org/name@main",
    "org/name:x",
    "pockett",
    "POCKET",
    "",
    " ",
    "a\0/b",
    "a\nb/c",
]
MakeCase = Callable[..., Case]  # the nested function `case` of a group


def folder_cases(fixtures: Fixtures, rng: random.Random) -> Iterator[Case]:
    """Diffusers folders whose configurations or weights are not those of a Stable Diffusion; as a base, and as an erasure."""
    configs = ["model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"]
    records = {name: json.loads((fixtures.model / name).read_text()) for name in configs}

    def case(description: str, files: dict[str, bytes], must_fail: bool = True, without: str = "") -> Case:
        prompts = ("--retain-prompts", "a dog", "--probe-prompts", "a dog")
        flags = ("--method", "uce", "--concept", "neon", "--preview", *prompts, "--out", "{out}/run")
        argv = ("erase", "--model", "{in}/made", *flags) if rng.random() < 0.6 else audit_argv(fixtures, "{in}/made")
        copied: dict[str, bytes | Path] = {
            f"made/{path.relative_to(fixtures.model)}": path
            for path in sorted(fixtures.model.rglob("*"))
            if path.is_file() and not (without and str(path.relative_to(fixtures.model)).startswith(without))
        }
        made = {f"made/{name}": data for name, data in files.items()}
        return Case(f"{description}, {argv[0]}", argv, {**copied, **made, "grid.yaml": fixtures.root / "grid.yaml"}, must_fail)

    def changed(name: str, key: str, value: object, must_fail: bool = True) -> Case:
        return case(f"{name}, {key} {str(value)[:30]!r}", {name: to_json_bytes({**records[name], key: value})}, must_fail)

    fixed = [
        case(f"{n}, {d[:12]!r}", {n: d})
        for n in ("model_index.json", "unet/config.json")
        for d in (b"", b"null", b"[]", DEEP_JSON, BINARY_BYTES, b"{}")
    ]
    fixed += [case(f"{n}, {d[:12]!r}", {n: d}, False) for n in configs[2:] for d in (b"", b"null", b"[]", DEEP_JSON, BINARY_BYTES)]
    fixed += [
        case(f"without {n}", {}, n in ("unet", "model_index.json"), without=n)
        for n in ("unet", "vae", "text_encoder", "tokenizer", "model_index.json")
    ]
    fixed += setting_cases(changed)
    weights = (fixtures.model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    file = "unet/diffusion_pytorch_model.safetensors"
    fixed += [
        case(f"weights {description}", {file: data})
        for description, data in (("empty", b""), ("binary", BINARY_BYTES), ("cut", weights[:-9]), ("none", to_safetensors({})))
    ]
    fixed += [case("weights as a pickle", {"unet/diffusion_pytorch_model.bin": BINARY_BYTES}, without=file)]
    fixed += [
        case(f"tokenizer, {d[:9]!r}", {n: d}, False)
        for n in ("tokenizer/vocab.json", "tokenizer/tokenizer_config.json")
        for d in (b"", b"{}", DEEP_JSON)
    ]
    rng.shuffle(fixed)
    yield from fixed
    while True:
        yield random_folder_case(case, records, file, weights, rng)


def setting_cases(changed: MakeCase) -> list[Case]:
    """Configurations with one value that no Stable Diffusion has."""
    classes = (
        "StableDiffusionInpaintPipeline",
        "StableDiffusion3Pipeline",
        "FluxPipeline",
        "StableVideoDiffusionPipeline",
        "Nonsense",
        "os.system",
    )
    cases = [changed("model_index.json", "_class_name", name) for name in (*classes, 3, None, [], LONG_TEXT)]
    cases += [changed("model_index.json", "unet", value) for value in (["os", "system"], ["diffusers"], None, "x", ["../x", "y"], [1, 2])]
    sizes = {"cross_attention_dim": (31, -1, "x"), "block_out_channels": ([], [8], "x", [-1, 2]), "down_block_types": (["Nonsense"], [])}
    sizes |= {"in_channels": (9, 0, "x"), "layers_per_block": (99,)}
    cases += [changed("unet/config.json", key, value) for key, values in sizes.items() for value in values]
    cases += [changed("unet/config.json", "sample_size", value, False) for value in (None, [16, 16], 0, "x", -1, 10**9)]
    cases += [changed("scheduler/scheduler_config.json", "beta_end", value, False) for value in HOSTILE_NUMBERS]
    cases += [changed("scheduler/scheduler_config.json", "prediction_type", value, False) for value in ("sample", "nonsense", 3)]
    cases += [changed("scheduler/scheduler_config.json", "num_train_timesteps", value, False) for value in (0, -1, "x", 10)]
    return cases


def random_folder_case(case: MakeCase, records: dict[str, Any], weights_file: str, weights: bytes, rng: random.Random) -> Case:
    """A configuration or weights with a random change."""
    name = rng.choice(list(records))
    kind = rng.random()
    if kind < 0.4:
        return case(f"{name}, mutated", {name: to_json_bytes(mutate(records[name], rng))}, must_fail=False)
    if kind < 0.6:
        key = rng.choice(list(records[name]))
        return case(
            f"{name}, {key} swapped", {name: to_json_bytes({**records[name], key: swap_type(records[name][key], rng)})}, must_fail=False
        )
    if kind < 0.8:
        key, rest = rng.choice(list(drop_each_key(records[name])))
        return case(f"{name} without {key}", {name: to_json_bytes(rest)}, must_fail=False)
    return case("weights damaged", {weights_file: damage(weights, rng)}, must_fail=False)


def checkpoint_cases(fixtures: Fixtures, rng: random.Random) -> Iterator[Case]:
    """Single files for `--model` in no known layout."""
    unet = load((fixtures.model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())
    three_tensors = dict(list(unet.items())[:3])
    argv = ("erase", "--method", "uce", "--concept", "neon", "--out", "{out}/run", "--model")

    def case(description: str, data: bytes, file: str = "model.safetensors") -> Case:
        return Case(f"checkpoint, {description}", (*argv, f"{{in}}/{file}"), {file: data})

    prefixes = ("", "model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "unet.", "../", "lora_unet_", "transformer.")
    prefixes += ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
    fixed = [
        case(f"names with {prefix!r}", to_safetensors({prefix + key: value for key, value in three_tensors.items()})) for prefix in prefixes
    ]
    fixed += [
        case(description, data)
        for description, data in (
            ("empty", b""),
            ("binary", BINARY_BYTES),
            ("no tensor", to_safetensors({})),
            ("cut", to_safetensors(three_tensors)[:-1]),
        )
    ]
    fixed += [
        case("a header of 2^62 bytes", (2**62).to_bytes(8, "little") + b"{}"),
        case("a header that is not JSON", (9).to_bytes(8, "little") + b"not json!"),
    ]
    fixed += [case("a deep header", (10**5).to_bytes(8, "little") + DEEP_JSON)]
    fixed += [
        case(f"as {file}", BINARY_BYTES, file)
        for file in ("model.ckpt", "model.pt", "model.bin", "model", "model.gguf", "model.SAFETENSORS")
    ]
    names = ["model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.weight"]
    fixed += [
        case(f"one tensor of shape {shape}", to_safetensors({names[0]: torch.zeros(shape)}))
        for shape in ((), (0,), (320, 4, 3, 3), (320, 9, 3, 3))
    ]
    sdxl = {
        "model.diffusion_model.out.2.bias": torch.zeros(4),
        "first_stage_model.quant_conv.bias": torch.zeros(8),
        "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": torch.zeros(1280),
    }
    fixed += [
        case(f"SDXL in part with {marker!r}", to_safetensors(sdxl | {marker: torch.zeros(0)}))
        for marker in ("v_pred", "ztsnr", "edm_vpred.sigma_max", "edm_mean", names[0])
    ]
    fixed += [case("two tensors of a UNet", to_safetensors(dict.fromkeys(names, torch.zeros(2)) | {names[1]: torch.zeros(3)}))]
    rng.shuffle(fixed)
    yield from fixed
    while True:
        yield case("damaged", damage(to_safetensors(three_tensors), rng))


def address_cases(fixtures: Fixtures, rng: random.Random) -> Iterator[Case]:
    """Hub names that are invalid, or not available offline."""
    argv_by_flag = {
        "erase --model": lambda name: ("erase", "--method", "uce", "--concept", "neon", "--model", name, "--out", "{out}/run"),
        "audit": lambda name: audit_argv(fixtures, name),
        "audit --model": lambda name: ("audit", "{in}/edit", "--tier", "smoke", "--model", name, "--out", "{out}/a"),
        "audit --retrained": lambda name: ("audit", "{in}/edit", "--tier", "smoke", "--retrained", name, "--out", "{out}/a"),
        "methods --model": lambda name: ("methods", "--model", name),
        "export --push-to-hub": lambda name: ("export", "{in}/edit", "--out", "{out}/x", "--push-to-hub", name, "--dry-run"),
        "studio --safety-checker": lambda name: ("studio", "--model", "{in}/none", "--safety-checker", name),
    }
    accepted = {("export --push-to-hub", "org/name"), ("export --push-to-hub", ""), ("audit --model", "")}
    files = {"edit": fixtures.edit, "grid.yaml": fixtures.root / "grid.yaml"}
    fixed = [
        Case(f"{spot} {n[:20]!r}", make(n), files, (spot, n) not in accepted) for spot, make in argv_by_flag.items() for n in HUB_NAMES
    ]
    serve = ("studio", "--model", str(fixtures.model), "--runs", "{out}/runs")
    bad_flags = [
        ("--port", "99999999"),
        ("--port", "-1"),
        ("--host", "no.such.host.invalid", "--auth", "a:b"),
        ("--runs", "{in}/grid.yaml"),
    ]
    fixed += [Case(f"studio {' '.join(flags)}", (*serve, *flags), files, own_process=True) for flags in bad_flags]
    rng.shuffle(fixed)
    yield from fixed
