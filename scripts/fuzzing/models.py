"""Base models and erasures from elsewhere: LoRAs, state dicts, pipeline folders, single files, names on the hub."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load

from fuzzing.case import BINARY, DEEP, LONG, NUMBERS, Case, damaged, encoded, mutated, packed, swapped, without
from fuzzing.ground import Ground


def audit(ground: Ground, place: str) -> tuple[str, ...]:
    """The audit of an erasure made elsewhere."""
    about = ("--concept", "neon", "--model", str(ground.model), "--suite", "{in}/grid.yaml", "--tier", "smoke", "--out", "{out}/audit")
    return ("audit", place, *about)


def loras(ground: Ground, rng: random.Random) -> Iterator[Case]:
    """LoRA files, and files of some parameters."""
    bits = ground.lora.read_bytes()
    factors = load(bits)
    name, value = next(iter(factors.items()))
    unet = load((ground.model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())
    key, weight = next((k, v) for k, v in unet.items() if "attn2.to_k" in k)

    def case(what: str, data: bytes, wrong: bool = True, file: str = "made.safetensors", argv: tuple[str, ...] = ()) -> Case:
        files = {file: data, "grid.yaml": ground.root / "grid.yaml", "edit": ground.edit}
        return Case(what, argv or audit(ground, f"{{in}}/{file}"), files, wrong)

    fixed = [
        case(f"LoRA, {what}", data) for what, data in (("empty", b""), ("binary", BINARY), ("cut", bits[:-1]), ("header cut", bits[:40]))
    ]
    changed = {
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
    fixed += [case(f"LoRA, {what}", packed(tensors)) for what, tensors in changed.items()]
    states = {
        "no difference": {key: weight},
        "another shape": {key: weight[:1].contiguous()},
        "NaN": {key: weight * float("nan")},
        "infinite": {key: weight + float("inf")},
        "a name that the base lacks": {"nothing.weight": weight},
        "CompVis names": {"model.diffusion_model.input_blocks.0.0.weight": weight},
        "Flux names": {"double_blocks.0.img_attn.qkv.weight": weight},
    }
    fixed += [case(f"parameters, {what}", packed(tensors)) for what, tensors in states.items()]
    fixed += [case(f"parameters, as {file}", BINARY, True, file) for file in ("made.pt", "made.ckpt", "made.bin", "made", "made.gguf")]
    fixed += [case("missing flags", bits, True, argv=("audit", "{in}/made.safetensors", *rest)) for rest in ((), ("--concept", "neon"))]
    oracle = (
        "audit",
        "{in}/edit",
        "--suite",
        "{in}/grid.yaml",
        "--tier",
        "smoke",
        "--out",
        "{out}/audit",
        "--oracle",
        "{in}/made.safetensors",
    )
    fixed += [case(f"oracle, {what}", packed(tensors), True, argv=oracle) for what, tensors in states.items()]
    fixed += [case("oracle without another concept", packed({key: weight * 2}, metadata={"without": "sketch"}), True, argv=oracle)]
    rng.shuffle(fixed)
    yield from fixed
    while True:
        yield case("LoRA, damaged", damaged(bits, rng), wrong=False)


def folders(ground: Ground, rng: random.Random) -> Iterator[Case]:
    """Diffusers folders whose configurations or weights are not those of a Stable Diffusion; as a base, and as an erasure."""
    configs = ["model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"]
    known = {name: json.loads((ground.model / name).read_text()) for name in configs}

    def case(what: str, files: dict[str, bytes], wrong: bool = True, less: str = "") -> Case:
        out = ("--method", "uce", "--concept", "neon", "--preview", "--preserve", "a dog", "--probes", "a dog", "--out", "{out}/run")
        argv = ("erase", "--model", "{in}/made", *out) if rng.random() < 0.6 else audit(ground, "{in}/made")
        copied: dict[str, bytes | Path] = {
            f"made/{path.relative_to(ground.model)}": path
            for path in sorted(ground.model.rglob("*"))
            if path.is_file() and not (less and str(path.relative_to(ground.model)).startswith(less))
        }
        made = {f"made/{name}": data for name, data in files.items()}
        return Case(f"{what}, {argv[0]}", argv, {**copied, **made, "grid.yaml": ground.root / "grid.yaml"}, wrong)

    def changed(name: str, key: str, value: object, wrong: bool = True) -> Case:
        return case(f"{name}, {key} {str(value)[:30]!r}", {name: encoded({**known[name], key: value})}, wrong)

    fixed = [
        case(f"{n}, {d[:12]!r}", {n: d})
        for n in ("model_index.json", "unet/config.json")
        for d in (b"", b"null", b"[]", DEEP, BINARY, b"{}")
    ]
    fixed += [case(f"{n}, {d[:12]!r}", {n: d}, False) for n in configs[2:] for d in (b"", b"null", b"[]", DEEP, BINARY)]
    fixed += [
        case(f"without {n}", {}, n in ("unet", "model_index.json"), less=n)
        for n in ("unet", "vae", "text_encoder", "tokenizer", "model_index.json")
    ]
    classes = (
        "StableDiffusionInpaintPipeline",
        "StableDiffusion3Pipeline",
        "FluxPipeline",
        "StableVideoDiffusionPipeline",
        "Nonsense",
        "os.system",
    )
    fixed += [changed("model_index.json", "_class_name", name) for name in (*classes, 3, None, [], LONG)]
    fixed += [changed("model_index.json", "unet", value) for value in (["os", "system"], ["diffusers"], None, "x", ["../x", "y"], [1, 2])]
    sizes = {"cross_attention_dim": (31, -1, "x"), "block_out_channels": ([], [8], "x", [-1, 2]), "down_block_types": (["Nonsense"], [])}
    sizes |= {"in_channels": (9, 0, "x"), "layers_per_block": (99,)}
    fixed += [changed("unet/config.json", key, value) for key, many in sizes.items() for value in many]
    fixed += [changed("unet/config.json", "sample_size", value, False) for value in (None, [16, 16], 0, "x", -1, 10**9)]
    fixed += [changed("scheduler/scheduler_config.json", "beta_end", value, False) for value in NUMBERS]
    fixed += [changed("scheduler/scheduler_config.json", "prediction_type", value, False) for value in ("sample", "nonsense", 3)]
    fixed += [changed("scheduler/scheduler_config.json", "num_train_timesteps", value, False) for value in (0, -1, "x", 10)]
    weights = (ground.model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    file = "unet/diffusion_pytorch_model.safetensors"
    fixed += [
        case(f"weights {what}", {file: data})
        for what, data in (("empty", b""), ("binary", BINARY), ("cut", weights[:-9]), ("none", packed({})))
    ]
    fixed += [case("weights as a pickle", {"unet/diffusion_pytorch_model.bin": BINARY}, less=file)]
    fixed += [
        case(f"tokenizer, {d[:9]!r}", {n: d}, False)
        for n in ("tokenizer/vocab.json", "tokenizer/tokenizer_config.json")
        for d in (b"", b"{}", DEEP)
    ]
    rng.shuffle(fixed)
    yield from fixed
    while True:
        name = rng.choice(configs)
        pick = rng.random()
        if pick < 0.4:
            yield case(f"{name}, mutated", {name: encoded(mutated(known[name], rng))}, wrong=False)
        elif pick < 0.6:
            key = rng.choice(list(known[name]))
            yield case(f"{name}, {key} swapped", {name: encoded({**known[name], key: swapped(known[name][key], rng)})}, wrong=False)
        elif pick < 0.8:
            key, less = rng.choice(list(without(known[name])))
            yield case(f"{name} without {key}", {name: encoded(less)}, wrong=False)
        else:
            yield case("weights damaged", {file: damaged(weights, rng)}, wrong=False)


def checkpoints(ground: Ground, rng: random.Random) -> Iterator[Case]:
    """`--model` that is one file, in no layout that there is."""
    unet = load((ground.model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())
    some = dict(list(unet.items())[:3])
    argv = ("erase", "--method", "uce", "--concept", "neon", "--out", "{out}/run", "--model")

    def case(what: str, data: bytes, file: str = "model.safetensors") -> Case:
        return Case(f"checkpoint, {what}", (*argv, f"{{in}}/{file}"), {file: data})

    prefixes = ("", "model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "unet.", "../", "lora_unet_", "transformer.")
    fixed = [case(f"names with {prefix!r}", packed({prefix + key: value for key, value in some.items()})) for prefix in prefixes]
    fixed += [
        case(what, data) for what, data in (("empty", b""), ("binary", BINARY), ("no tensor", packed({})), ("cut", packed(some)[:-1]))
    ]
    fixed += [
        case("a header of 2^62 bytes", (2**62).to_bytes(8, "little") + b"{}"),
        case("a header that is no JSON", (9).to_bytes(8, "little") + b"not json!"),
    ]
    fixed += [case("a deep header", (10**5).to_bytes(8, "little") + DEEP)]
    fixed += [
        case(f"as {file}", BINARY, file) for file in ("model.ckpt", "model.pt", "model.bin", "model", "model.gguf", "model.SAFETENSORS")
    ]
    names = ["model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.weight"]
    fixed += [
        case(f"one tensor of shape {shape}", packed({names[0]: torch.zeros(shape)})) for shape in ((), (0,), (320, 4, 3, 3), (320, 9, 3, 3))
    ]
    fixed += [case("two tensors of a UNet", packed(dict.fromkeys(names, torch.zeros(2)) | {names[1]: torch.zeros(3)}))]
    rng.shuffle(fixed)
    yield from fixed
    while True:
        yield case("damaged", damaged(packed(some), rng))


def addresses(ground: Ground, rng: random.Random) -> Iterator[Case]:
    """Names on the hub that are none, or that nobody can ask for offline."""
    names = [
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
    ]
    names += [
        "a" * 200 + "/" + "b" * 200,
        LONG,
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
    spots = {
        "erase --model": lambda name: ("erase", "--method", "uce", "--concept", "neon", "--model", name, "--out", "{out}/run"),
        "audit": lambda name: audit(ground, name),
        "audit --model": lambda name: ("audit", "{in}/edit", "--tier", "smoke", "--model", name, "--out", "{out}/a"),
        "audit --oracle": lambda name: ("audit", "{in}/edit", "--tier", "smoke", "--oracle", name, "--out", "{out}/a"),
        "methods --model": lambda name: ("methods", "--model", name),
        "export --push-to-hub": lambda name: ("export", "{in}/edit", "--out", "{out}/x", "--push-to-hub", name, "--dry-run"),
        "studio --safety-checker": lambda name: ("studio", "--model", "{in}/none", "--safety-checker", name),
    }
    good = {("export --push-to-hub", "org/name"), ("export --push-to-hub", ""), ("audit --model", "")}
    files = {"edit": ground.edit, "grid.yaml": ground.root / "grid.yaml"}
    fixed = [Case(f"{spot} {n[:20]!r}", make(n), files, (spot, n) not in good) for spot, make in spots.items() for n in names]
    serve = ("studio", "--model", str(ground.model), "--runs", "{out}/runs")
    own = [("--port", "99999999"), ("--port", "-1"), ("--host", "no.such.host.invalid", "--auth", "a:b"), ("--runs", "{in}/grid.yaml")]
    fixed += [Case(f"studio {' '.join(flags)}", (*serve, *flags), files, process=True) for flags in own]
    rng.shuffle(fixed)
    yield from fixed
