"""Images, saliency masks and learned embeddings of a user."""

import io
import json
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from PIL import Image
from safetensors.torch import load

from fuzzing.case import BINARY_BYTES, Case, damage, to_safetensors
from fuzzing.fixtures import Fixtures
from fuzzing.flags import SMALL_FIELDS, flag_argv
from fuzzing.suites import attack_config


def make_image(format: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (64, 64), **options: object) -> bytes:
    data = io.BytesIO()
    Image.new(mode, size).save(data, format=format, **options)
    return data.getvalue()


def decompression_bomb(width: int, height: int) -> bytes:
    """Return a small PNG file that claims to be large."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


BROKEN_IMAGES = {
    "empty": b"",
    "binary": BINARY_BYTES,
    "text": b"no image",
    "a bomb": decompression_bomb(40_000, 25_000),
    "no width": decompression_bomb(0, 5),
    "2^31 pixels wide": decompression_bomb(2**31 - 1, 1),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "cut PNG": make_image()[:-30],
    "cut JPEG": make_image("JPEG")[:200],
}


INVALID_NAMES = (
    "neon_boat.png",
    "nonsense_seed1.png",
    "neon_boat_seed.png",
    "neon_boat_seed-1.png",
    "neon_boat_seed1.5.png",
    "neon boat_seed1.png",
    "neon_boat_seed1.jpg",
    f"neon_boat_seed{2**63}.png",
    f"neon_boat_seed{'9' * 60}.png",
    "seed1.png",
    "\n_seed1.png",
    "neon_cat_seed1.png",
)
IMAGE_MODES = (
    ("1", "PNG"),
    ("L", "PNG"),
    ("P", "PNG"),
    ("LA", "PNG"),
    ("RGBA", "PNG"),
    ("I;16", "PNG"),
    ("CMYK", "JPEG"),
    ("RGB", "WEBP"),
)


def image_cases(fixtures: Fixtures, rng: random.Random) -> Iterator[Case]:
    """Folders of images for `audit images` and for SalUn."""
    suite = fixtures.grid_suite()
    cells = [f"{style}_{thing}" for style in suite["styles"] for thing in suite["objects"]]
    valid_files = {f"set/{cell}_seed1.png": make_image() for cell in cells}
    audit_argv = ("audit", "images", "{in}/set", "--concept", "neon", "--suite", "{in}/grid.yaml", "--out", "{out}/a")
    salun_flags = [part for key, value in {**SMALL_FIELDS["salun"], "images": "{in}/images"}.items() for part in flag_argv(key, value)]
    erase = ("erase", "--method", "salun", "--concept", "neon", "--model", str(fixtures.model), "--out", "{out}/run", *salun_flags)

    def external_case(name: str, files: dict[str, bytes | Path], must_fail: bool = True, argv: tuple[str, ...] = audit_argv) -> Case:
        return Case(f"external images, {name}", argv, {**valid_files, "grid.yaml": fixtures.root / "grid.yaml", **files}, must_fail)

    def training_case(name: str, files: dict[str, bytes | Path], must_fail: bool = True) -> Case:
        return Case(f"training images, {name}", erase, {f"images/{file}": data for file, data in files.items()}, must_fail)

    fixed = [external_case(f"one {name}", {"set/neon_boat_seed1.png": data}) for name, data in BROKEN_IMAGES.items()]
    fixed += [training_case(name, {"a.png": data}) for name, data in BROKEN_IMAGES.items()]
    fixed += [external_case(f"a file {name[:30]!r}", {f"set/{name}": make_image()}) for name in INVALID_NAMES]
    fixed += [
        external_case(f"--{flag} {value[:20]!r}", {"plain.txt": b"x"}, True, (*audit_argv, f"--{flag}={value}"))
        for flag in ("base", "out", "concept", "suite")
        for value in ("{in}/plain.txt/x", "a\0b", "x" * 5_000)
    ]
    fixed += [
        training_case("an empty folder", {"sub/x.txt": b""}),
        training_case("only hidden files", {"._a.png": BINARY_BYTES, ".DS_Store": b"x"}),
    ]
    fixed += [
        training_case(f"{mode} as {format}", {f"a.{format.lower()}": make_image(format, mode)}, False) for mode, format in IMAGE_MODES
    ]
    fixed += [training_case(f"{size} pixels", {"a.png": make_image(size=size)}, False) for size in ((1, 1), (1, 5_000), (3_000, 1))]
    fixed += [
        training_case("GIF under another name", {"a.png": make_image("GIF")}, False),
        training_case("one and a hidden one", {"a.png": make_image(), "._a.png": b""}, False),
    ]
    rng.shuffle(fixed)
    yield from fixed
    exif = Image.Exif()
    exif[274], exif[271] = 6, "camera"
    while True:
        format = rng.choice(["JPEG", "PNG", "WEBP"])
        data = damage(make_image(format, exif=exif), rng)
        yield (
            training_case(f"damaged {format}", {"a.jpg": data}, False)
            if rng.random() < 0.5
            else external_case("damaged", {"set/neon_boat_seed1.png": data}, False)
        )


def mask_cases(fixtures: Fixtures, rng: random.Random) -> Iterator[Case]:
    """`erase --mask`."""
    mask_bytes = fixtures.mask.read_bytes()
    tensors = load(mask_bytes)
    name, value = next(iter(tensors.items()))
    esd_flags = [part for key, field_value in SMALL_FIELDS["esd"].items() for part in flag_argv(key, field_value)]
    argv = ("erase", "--method", "esd", "--concept", "neon", "--model", str(fixtures.model), "--out", "{out}/run", *esd_flags, "--mask")

    def case(description: str, data: bytes, must_fail: bool = True) -> Case:
        return Case(f"mask, {description}", (*argv, "{in}/mask.safetensors"), {"mask.safetensors": data}, must_fail)

    shapes = json.loads(mask_bytes[8 : 8 + int.from_bytes(mask_bytes[:8], "little")])["__metadata__"]
    fixed = [
        case(description, data)
        for description, data in (
            ("empty", b""),
            ("binary", BINARY_BYTES),
            ("cut", mask_bytes[:-1]),
            ("cut in its header", mask_bytes[:30]),
        )
    ]
    fixed += [
        case("no shapes", to_safetensors(tensors)),
        case("nothing", to_safetensors({}, metadata={})),
        case("nothing selected", to_safetensors({n: torch.zeros_like(t) for n, t in tensors.items()}, metadata=shapes)),
    ]
    fixed += [
        case(f"shape {shape[:20]!r}", to_safetensors(tensors, metadata={**shapes, name: shape}))
        for shape in ("", "x", "-1,3", "1", "0,0", "9" * 40, "1,1", "1.5,2", f"{10**9},{10**9}", "1," * 5_000)
    ]
    fixed += [
        case("of floats", to_safetensors({**tensors, name: value.float()}, metadata=shapes)),
        case("of other names", to_safetensors({"x": value}, metadata={"x": "4,4"})),
    ]
    fixed += [
        Case(f"--mask {path[:20]!r}", (*argv, path), {"plain.txt": b"x"})
        for path in ("{in}/none", "{in}/plain.txt", "{in}", "a\0b", "x" * 5_000)
    ]
    erase = ("erase", "--method", "uce", "--concept", "neon", "--model", str(fixtures.model), "--out", "{out}/run", "--mask", "{in}/m")
    fixed += [Case("mask, for a method that trains nothing", erase, {"m": mask_bytes})]
    rng.shuffle(fixed)
    yield from fixed
    while True:
        yield case("damaged", damage(mask_bytes, rng), must_fail=False)


def embedding_cases(fixtures: Fixtures, rng: random.Random) -> Iterator[Case]:
    """Learned embeddings, as an attack of a suite reads them before anything is generated."""
    embedding_bytes = fixtures.embedding.read_bytes()

    def case(description: str, data: bytes, must_fail: bool = True, file: str = "word.safetensors") -> Case:
        use = attack_config({"shared": {"attack": "learned_embedding", "file": f"../in/{file}"}})
        argv = ("audit", "{in}/edit", "--suite", "{in}/suite.yaml", "--tier", "smoke", "--out", "{out}/audit")
        suite = yaml.safe_dump({**fixtures.grid_suite(), "attacks": use}).encode()
        return Case(f"learned embedding, {description}", argv, {"edit": fixtures.edit, "suite.yaml": suite, file: data}, must_fail)

    def pickle_bytes(tensor: object) -> bytes:
        data = io.BytesIO()
        torch.save(tensor, data)
        return data.getvalue()

    row = torch.zeros(32)
    fixed = [
        case(description, data, file=file)
        for file in ("word.safetensors", "word.bin", "word.pt")
        for description, data in (("empty", b""), ("binary", BINARY_BYTES))
    ]
    fixed += [
        case("a pickle that runs code", b"cos\nsystem\n(S'true'\ntR.", file="word.pt"),
        case("cut", embedding_bytes[:-1]),
        case("no tensor", to_safetensors({})),
        case("two tensors", to_safetensors({"a": row, "b": row.clone()})),
        case("NaN", to_safetensors({"a": row * float("nan")})),
        case("infinite", to_safetensors({"a": row + float("inf")})),
        case("whole numbers", to_safetensors({"a": row.to(torch.int64)})),
        case("three dimensions", to_safetensors({"a": torch.zeros(1, 2, 32)})),
        case("no dimension", to_safetensors({"a": torch.tensor(1.0)})),
        case("no vector", to_safetensors({"a": torch.zeros(0, 32)})),
        case("another width", to_safetensors({"a": torch.zeros(31)})),
        case("a number", pickle_bytes(3), file="word.pt"),
        case("a list", pickle_bytes([row]), file="word.bin"),
        case("another suffix", embedding_bytes, file="word.ckpt"),
        case("a folder", b"", file="word.pt/x"),
    ]
    rng.shuffle(fixed)
    yield from fixed
    while True:
        yield case("damaged", damage(embedding_bytes, rng), must_fail=False)
