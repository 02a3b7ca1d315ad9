"""Images, saliency masks and learned embeddings that a user brings."""

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

from fuzzing.asking import attacks
from fuzzing.case import BINARY, Case, damaged, packed
from fuzzing.flags import SMALL, flag
from fuzzing.ground import Ground


def picture(format: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (64, 64), **options: object) -> bytes:
    data = io.BytesIO()
    Image.new(mode, size).save(data, format=format, **options)
    return data.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims to be large in a few bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


BROKEN = {
    "empty": b"",
    "binary": BINARY,
    "text": b"no picture",
    "a bomb": bomb(40_000, 25_000),
    "no width": bomb(0, 5),
    "2^31 pixels wide": bomb(2**31 - 1, 1),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "cut PNG": picture()[:-30],
    "cut JPEG": picture("JPEG")[:200],
}


def images(ground: Ground, rng: random.Random) -> Iterator[Case]:
    """`audit answers` and the folders of images of SalUn."""
    suite = ground.grid()
    cells = [f"{style}_{thing}" for style in suite["styles"] for thing in suite["objects"]]
    sound = {f"set/{cell}_seed1.png": picture() for cell in cells}
    line = ("audit", "answers", "{in}/set", "--concept", "neon", "--suite", "{in}/grid.yaml", "--out", "{out}/a")
    small = [part for key, value in {**SMALL["salun"], "images": "{in}/photos"}.items() for part in flag(key, value)]
    erase = ("erase", "--method", "salun", "--concept", "neon", "--model", str(ground.model), "--out", "{out}/run", *small)

    def answers(name: str, files: dict[str, bytes | Path], wrong: bool = True, argv: tuple[str, ...] = line) -> Case:
        return Case(f"answers, {name}", argv, {**sound, "grid.yaml": ground.root / "grid.yaml", **files}, wrong)

    def photos(name: str, files: dict[str, bytes | Path], wrong: bool = True) -> Case:
        return Case(f"photos, {name}", erase, {f"photos/{file}": data for file, data in files.items()}, wrong)

    fixed = [answers(f"one {name}", {"set/neon_boat_seed1.png": data}) for name, data in BROKEN.items()]
    fixed += [photos(name, {"a.png": data}) for name, data in BROKEN.items()]
    names = (
        "neon_boat.png",
        "nonsense_seed1.png",
        "neon_boat_seed.png",
        "neon_boat_seed-1.png",
        "neon_boat_seed1.5.png",
        "neon boat_seed1.png",
    )
    names += (
        "neon_boat_seed1.jpg",
        f"neon_boat_seed{2**63}.png",
        f"neon_boat_seed{'9' * 60}.png",
        "seed1.png",
        "\n_seed1.png",
        "neon_cat_seed1.png",
    )
    fixed += [answers(f"a file {name[:30]!r}", {f"set/{name}": picture()}) for name in names]
    fixed += [
        answers(f"--{flag_} {value[:20]!r}", {"plain.txt": b"x"}, True, (*line, f"--{flag_}={value}"))
        for flag_ in ("base", "out", "concept", "suite")
        for value in ("{in}/plain.txt/x", "a\0b", "x" * 5_000)
    ]
    fixed += [photos("an empty folder", {"sub/x.txt": b""}), photos("only hidden files", {"._a.png": BINARY, ".DS_Store": b"x"})]
    odd = (("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG"), ("CMYK", "JPEG"), ("RGB", "WEBP"))
    fixed += [photos(f"{mode} as {form}", {f"a.{form.lower()}": picture(form, mode)}, False) for mode, form in odd]
    fixed += [photos(f"{size} pixels", {"a.png": picture(size=size)}, False) for size in ((1, 1), (1, 5_000), (3_000, 1))]
    fixed += [
        photos("GIF under another name", {"a.png": picture("GIF")}, False),
        photos("one and a hidden one", {"a.png": picture(), "._a.png": b""}, False),
    ]
    rng.shuffle(fixed)
    yield from fixed
    exif = Image.Exif()
    exif[274], exif[271] = 6, "camera"
    while True:
        form = rng.choice(["JPEG", "PNG", "WEBP"])
        data = damaged(picture(form, exif=exif), rng)
        yield (
            photos(f"damaged {form}", {"a.jpg": data}, False)
            if rng.random() < 0.5
            else answers("damaged", {"set/neon_boat_seed1.png": data}, False)
        )


def masks(ground: Ground, rng: random.Random) -> Iterator[Case]:
    """`erase --mask`."""
    bits = ground.mask.read_bytes()
    tensors = load(bits)
    name, value = next(iter(tensors.items()))
    small = [part for key, given in SMALL["esd"].items() for part in flag(key, given)]
    argv = ("erase", "--method", "esd", "--concept", "neon", "--model", str(ground.model), "--out", "{out}/run", *small, "--mask")

    def case(what: str, data: bytes, wrong: bool = True) -> Case:
        return Case(f"mask, {what}", (*argv, "{in}/mask.safetensors"), {"mask.safetensors": data}, wrong)

    shapes = json.loads(bits[8 : 8 + int.from_bytes(bits[:8], "little")])["__metadata__"]
    fixed = [case(what, data) for what, data in (("empty", b""), ("binary", BINARY), ("cut", bits[:-1]), ("cut in its header", bits[:30]))]
    fixed += [
        case("no shapes", packed(tensors)),
        case("nothing", packed({}, metadata={})),
        case("nothing selected", packed({n: torch.zeros_like(t) for n, t in tensors.items()}, metadata=shapes)),
    ]
    fixed += [
        case(f"shape {shape[:20]!r}", packed(tensors, metadata={**shapes, name: shape}))
        for shape in ("", "x", "-1,3", "1", "0,0", "9" * 40, "1,1", "1.5,2", f"{10**9},{10**9}", "1," * 5_000)
    ]
    fixed += [
        case("of floats", packed({**tensors, name: value.float()}, metadata=shapes)),
        case("of other names", packed({"x": value}, metadata={"x": "4,4"})),
    ]
    fixed += [
        Case(f"--mask {place[:20]!r}", (*argv, place), {"plain.txt": b"x"})
        for place in ("{in}/none", "{in}/plain.txt", "{in}", "a\0b", "x" * 5_000)
    ]
    guided = ("erase", "--method", "uce", "--concept", "neon", "--model", str(ground.model), "--out", "{out}/run", "--mask", "{in}/m")
    fixed += [Case("mask, for a method that trains nothing", guided, {"m": bits})]
    rng.shuffle(fixed)
    yield from fixed
    while True:
        yield case("damaged", damaged(bits, rng), wrong=False)


def words(ground: Ground, rng: random.Random) -> Iterator[Case]:
    """Learned embeddings, as an attack of a suite reads them before anything is drawn."""
    bits = ground.word.read_bytes()

    def case(what: str, data: bytes, wrong: bool = True, file: str = "word.safetensors") -> Case:
        use = attacks({"shared": {"attack": "learned_embedding", "file": f"../in/{file}"}})
        argv = ("audit", "{in}/edit", "--suite", "{in}/suite.yaml", "--tier", "smoke", "--out", "{out}/audit")
        suite = yaml.safe_dump({**ground.grid(), "attacks": use}).encode()
        return Case(f"learned embedding, {what}", argv, {"edit": ground.edit, "suite.yaml": suite, file: data}, wrong)

    def saved(tensor: object) -> bytes:
        data = io.BytesIO()
        torch.save(tensor, data)
        return data.getvalue()

    row = torch.zeros(32)
    fixed = [
        case(what, data, file=file)
        for file in ("word.safetensors", "word.bin", "word.pt")
        for what, data in (("empty", b""), ("binary", BINARY))
    ]
    fixed += [
        case("a pickle that runs code", b"cos\nsystem\n(S'true'\ntR.", file="word.pt"),
        case("cut", bits[:-1]),
        case("no tensor", packed({})),
        case("two tensors", packed({"a": row, "b": row.clone()})),
        case("NaN", packed({"a": row * float("nan")})),
        case("infinite", packed({"a": row + float("inf")})),
        case("whole numbers", packed({"a": row.to(torch.int64)})),
        case("three dimensions", packed({"a": torch.zeros(1, 2, 32)})),
        case("no dimension", packed({"a": torch.tensor(1.0)})),
        case("no vector", packed({"a": torch.zeros(0, 32)})),
        case("another width", packed({"a": torch.zeros(31)})),
        case("a number", saved(3), file="word.pt"),
        case("a list", saved([row]), file="word.bin"),
        case("another suffix", bits, file="word.ckpt"),
        case("a folder", b"", file="word.pt/x"),
    ]
    rng.shuffle(fixed)
    yield from fixed
    while True:
        yield case("damaged", damaged(bits, rng), wrong=False)
