"""Judges against hand formulas and the libraries' own calls; missing and unsafe weights; strict calibration files."""

import json
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import ResNet50_Weights, resnet50
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

from app.commands import doctor
from erasure.config.registry import list_modules, load_class
from erasure.errors import UserError
from erasure.pocket.canvas import OBJECTS, STYLES, ImageSpec
from erasure.pocket.classifier import LABELS as POCKET_LABELS
from erasure.pocket.styles import render
from erasure.storage.run import hash_record
from eval.generation import load_png, save_png
from eval.judges import _pocket, nudenet, unlearncanvas
from eval.judges._open_clip import POCKET_OPEN_CLIP, load_open_clip
from eval.judges.base import Judge, MissingWeights
from eval.judges.imagenet import WEIGHTS_FILE, ImageNet
from eval.judges.nudenet import DEFAULT_COUNTED, NudeNet, best_scores, nudity_score, to_opencv
from eval.judges.open_clip import OpenClip
from eval.judges.pocket_object import PocketObject
from eval.judges.pocket_style import PocketStyle
from eval.judges.unlearncanvas import LABELS, UnlearnCanvas
from eval.judges.zero_shot import ZeroShot
from eval.records.scores import LabelScore
from eval.scoring.calibration import CALIBRATION_FOLDER, Calibration, LabelCounts
from tests import tiny

CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 1, "hf_tokenizer_name": "tiny"},
}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.25], "size": 16}


def write_images(count: int, height: int, width: int, folder: Path) -> list[Path]:
    """Write smooth, colorful PNG files, in which a wrong resize or a swapped channel shows."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    paths = [folder / f"{height}x{width}-{i}.png" for i in range(count)]
    for image, path in zip((smooth * 255).to(torch.uint8), paths, strict=True):
        save_png(image, path)
    return paths


def load_images(paths: list[Path]) -> Tensor:
    return torch.stack([load_png(path) for path in paths])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny open_clip model with random weights, saved as a local-dir."""
    folder, tokens = tmp_path_factory.mktemp("clip"), tiny.tokenizer()
    tokens.save_pretrained(folder)
    config = json.loads(json.dumps(CLIP))
    config["text_cfg"]["vocab_size"] = len(tokens)
    torch.manual_seed(3)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
    return f"local-dir:{folder}"


def test_zero_shot_is_the_softmax_of_cosines_to_averaged_phrases(clip: str, tmp_path: Path) -> None:
    labels = {"cat": ("cat", "kitten"), "dog": ("dog",), "sea": ("sea", "waves", "tide")}
    templates = ("a {}", "{}, ink")
    judge, paths = ZeroShot(model=clip, labels=labels, templates=templates), write_images(5, 16, 16, tmp_path)
    network = open_clip.create_model_from_pretrained(clip, return_transform=False).eval()
    tokenizer = open_clip.get_tokenizer(clip)
    mean, std = (torch.tensor(PREPROCESS[key])[:, None, None] for key in ("mean", "std"))
    for path, score in zip(paths, judge.score(load_images(paths), []), strict=True):
        with torch.no_grad():
            image = network.encode_image(((load_png(path) - mean) / std)[None])[0]
            scale, powers = network.logit_scale.exp().item(), {}
            for label, phrases in labels.items():
                texts = [network.encode_text(tokenizer([template.format(phrase)]))[0] for phrase in phrases for template in templates]
                mean_text = sum(text / text.norm() for text in texts)
                powers[label] = math.exp(scale * (image @ mean_text / image.norm() / mean_text.norm()).item())
        shares = {label: power / sum(powers.values()) for label, power in powers.items()}
        assert score.scores == pytest.approx(shares, abs=2e-6)
        assert score.label == max(shares, key=lambda label: shares[label])
        assert score.p == max(score.scores.values())
    assert len({str(score) for score in judge.score(load_images(paths), [])}) == 5


def test_open_clip_judges_preprocess_an_image_as_its_file(clip: str, tmp_path: Path) -> None:
    (path,) = write_images(1, 20, 40, tmp_path)
    resized = Compose([Resize(16, interpolation=Image.Resampling.BICUBIC), ToTensor(), Normalize(PREPROCESS["mean"], PREPROCESS["std"])])
    with Image.open(path) as image, torch.no_grad():
        cropped = resized(image)[:, :, 8:24]  # the shorter side fits, the middle of the longer one stays
        network = open_clip.create_model_from_pretrained(clip, return_transform=False).eval()
        image_features = network.encode_image(cropped[None])[0]
        text_features = network.encode_text(open_clip.get_tokenizer(clip)(["a cat"]))[0]
    cosine = (image_features @ text_features / image_features.norm() / text_features.norm()).item()
    assert OpenClip(model=clip).score(load_images([path]), ["a cat"])[0].cosine == pytest.approx(100 * cosine, abs=2e-3)
    unrounded = load_images([path]) - 0.4 / 255  # the same file once it is saved
    assert OpenClip(model=clip).score(unrounded, ["a cat"]) == OpenClip(model=clip).score(load_images([path]), ["a cat"])


def test_pockets_clip_keeps_the_end_token_of_a_caption_that_is_too_long() -> None:
    """The network pools a text at its largest id, which is the end token; without it some word would stand for the whole text."""
    clip = load_open_clip(POCKET_OPEN_CLIP, "")
    (row,) = clip.tokenizer(["a boat " + "in the style of neon " * 60])
    end = clip.tokenizer.tokenizer.eos_token_id
    assert clip.network.text_pool_type == "argmax" and row.max() == end
    assert row[-1] == end and (row[:-1] != end).all()


def test_a_margin_gives_none(clip: str, tmp_path: Path) -> None:
    images = load_images(write_images(5, 16, 16, tmp_path))
    fields: dict[str, Any] = {"labels": {"cat": ("cat",), "dog": ("dog",), "sea": ("sea",)}, "templates": ("{}",), "model": clip}
    leads = []
    for score in ZeroShot(**fields).score(images, []):
        first, second, _ = sorted(score.scores.values(), reverse=True)
        leads.append(first - second)
    middle = sorted(leads)[2]
    scores = ZeroShot(**fields, margin=middle).score(images, [])
    assert [score.label == "none" for score in scores] == [lead < middle for lead in leads]
    assert [score.scores for score in scores] == [score.scores for score in ZeroShot(**fields).score(images, [])]
    identities = [
        ZeroShot(**fields).identity(),
        ZeroShot(**fields, margin=middle).identity(),
        ZeroShot(**{**fields, "templates": ("a {}",)}).identity(),
    ]
    assert all(first != second for i, first in enumerate(identities) for second in identities[:i])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": {"cat": ("cat",)}}, "at least two"),
        ({"labels": {"cat": "cat", "dog": ("dog",)}}, "'cat' of a zero-shot judge needs a list"),
        ({"labels": {"cat": (), "dog": ("dog",)}}, "needs a list"),
        ({"templates": "a {}"}, "'templates' .* needs a list"),
        ({"templates": ("a cat",)}, "exactly one"),
        ({"templates": ("{} {}",)}, "exactly one"),
        ({"margin": 1.0}, r"\[0, 1\)"),
    ],
)
def test_zero_shot_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ZeroShot(**fields)


def test_zero_shot_by_default_distinguishes_pockets_styles() -> None:
    specs = [ImageSpec(object_label, style, 20_000_000) for object_label in OBJECTS for style in STYLES]
    scores = ZeroShot().score(render(specs), [])
    assert sum(score.label == spec.style for score, spec in zip(scores, specs, strict=True)) >= 85  # of 90


def test_imagenet_gives_torchvisions_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / WEIGHTS_FILE
    path.parent.mkdir(parents=True)
    torch.manual_seed(5)
    network, images, published = resnet50(), load_images(write_images(3, 96, 128, tmp_path)), ResNet50_Weights.IMAGENET1K_V2
    with torch.no_grad():
        network.fc.weight.mul_(30)
        network(published.transforms()(images))  # running statistics of real images; with the initial ones all classes but one get 0
        torch.save(network.state_dict(), path)
        best5 = network.eval()(published.transforms()(images)).softmax(-1).topk(5)
    rows = [
        [(published.meta["categories"][i], round(p, 4)) for i, p in zip(index.tolist(), share.tolist(), strict=True)]
        for index, share in zip(best5.indices, best5.values, strict=True)
    ]
    save_file(network.state_dict(), tmp_path / "same.safetensors")
    for judge in (ImageNet(), ImageNet(weights=str(tmp_path / "same.safetensors"))):
        scores = judge.score(images, [])
        assert [[tuple(pair) for pair in score.top5] for score in scores] == rows
        assert [(score.label, score.p) for score in scores] == [row[0] for row in rows]
    assert len({str(row) for row in rows}) == 3
    assert ImageNet().identity() == ImageNet(weights=str(path)).identity()
    assert ImageNet().identity()["weights"] != judge.identity()["weights"]


@pytest.fixture
def tiny_vit(monkeypatch: pytest.MonkeyPatch) -> str:
    """The architecture of the UnlearnCanvas judge, replaced by one of 5 million parameters instead of 300 million."""
    monkeypatch.setattr(unlearncanvas, "ARCHITECTURE", "vit_tiny_patch16_224")
    return unlearncanvas.ARCHITECTURE


@pytest.mark.parametrize(("axis", "count"), [("style", 51), ("object", 20)])
def test_unlearncanvas_gives_timms_labels(axis: Any, count: int, tiny_vit: str, tmp_path: Path) -> None:
    torch.manual_seed(11)
    network = timm.create_model(tiny_vit)
    network.head = torch.nn.Linear(network.embed_dim, count)  # as the benchmark builds it
    torch.nn.init.normal_(network.head.weight)
    torch.save({"model_state_dict": network.state_dict(), "epoch": 3, "loss": 0.5}, tmp_path / "c.pth")
    save_file(network.state_dict(), tmp_path / "c.safetensors")
    paths = write_images(3, 224, 112, tmp_path)
    stretched = Compose([Resize((224, 224)), ToTensor(), Normalize([0.5], [0.5])])
    with torch.no_grad():
        expected = network.eval()(torch.stack([stretched(Image.open(path)) for path in paths])).softmax(-1)
    assert len(LABELS[axis]) == count and list(LABELS[axis]) == sorted(LABELS[axis])
    for name in ("c.pth", "c.safetensors"):
        judge = UnlearnCanvas(axis=axis, weights=str(tmp_path / name))
        scores = judge.score(load_images(paths), [])
        assert [score.label for score in scores] == [LABELS[axis][i] for i in expected.argmax(-1).tolist()]
        # torchvision's tensors and PIL round a resize differently, by less than one gray level
        assert [score.p for score in scores] == pytest.approx(expected.amax(-1).tolist(), abs=0.02)
        assert judge.identity()["labels"] == list(LABELS[axis])
    assert len({score.label for score in scores}) > 1


def test_a_head_of_the_other_axis_is_refused(tiny_vit: str, tmp_path: Path) -> None:
    torch.save({"model_state_dict": timm.create_model(tiny_vit, num_classes=20).state_dict()}, tmp_path / "object.pth")
    with pytest.raises(UserError, match=r"another network.*head.weight.*20.*51"):
        UnlearnCanvas(axis="style", weights=str(tmp_path / "object.pth")).score(torch.zeros(1, 3, 8, 8), [])
    with pytest.raises(UserError, match=r"'color'.*object, style"):
        UnlearnCanvas(axis="color")  # type: ignore[arg-type]
    torch.save(timm.create_model(tiny_vit, num_classes=20).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(UserError, match="lacks 'model_state_dict'"):
        UnlearnCanvas(axis="object", weights=str(tmp_path / "bare.pth")).identity()


class Trap:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_a_pickle_with_code_is_refused_and_not_run(clip: str, tiny_vit: str, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    torch.save({"model_state_dict": Trap(witness)}, tmp_path / "trap.pth")
    torch.load(tmp_path / "trap.pth", weights_only=False)
    assert witness.exists()  # the trap works
    witness.unlink()
    folder = tmp_path / "clip"
    folder.mkdir()
    for name in ("open_clip_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((Path(clip.removeprefix("local-dir:")) / name).read_bytes())
    (folder / "open_clip_pytorch_model.bin").write_bytes((tmp_path / "trap.pth").read_bytes())
    trap = str(tmp_path / "trap.pth")
    for judge in (ImageNet(weights=trap), UnlearnCanvas(weights=trap), ZeroShot(model=f"local-dir:{folder}")):
        with pytest.raises(UserError) as caught:
            judge.identity()
        assert not isinstance(caught.value, MissingWeights) and "\n" not in str(caught.value)
    assert not witness.exists()


def test_broken_weights_are_not_missing_weights(tmp_path: Path) -> None:
    for name in ("short.pth", "short.safetensors"):
        (tmp_path / name).write_bytes(b"\x50\x4b\x03\x04 cut off")
        with pytest.raises(UserError, match=re.escape(name)) as caught:
            ImageNet(weights=str(tmp_path / name)).identity()
        assert not isinstance(caught.value, MissingWeights)


def test_missing_weights_name_the_file_its_folder_and_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP}))
    judges: list[tuple[Judge, str]] = [
        (ImageNet(), rf"{re.escape(str(tmp_path))}.*{WEIGHTS_FILE}; download https://"),
        (ImageNet(weights="nowhere.pth"), "nowhere.pth"),
        (UnlearnCanvas(axis="object"), "object classifier.*`weights`"),
        (UnlearnCanvas(weights="nowhere.pth"), "style classifier.*nowhere.pth"),
        (OpenClip(model=f"local-dir:{tmp_path}"), "open_clip_config.json"),
        (OpenClip(model=f"local-dir:{tmp_path / 'bare'}"), "weights file"),
        (ZeroShot(model=f"local-dir:{tmp_path / 'nowhere'}"), "nowhere"),
        (ZeroShot(model="ViT-B-32", pretrained="nowhere.pt"), "nowhere.pt.*openai"),
        (OpenClip(model="ViT-B-32"), "tags"),
        (OpenClip(model="ViT-B-32", pretrained="laion2b_s34b_b79k"), "local cache and on the hub"),
        (OpenClip(model="hf-hub:nobody/nothing"), "nobody/nothing.*local cache and on the hub"),
    ]
    for judge, message in judges:
        with pytest.raises(MissingWeights, match=message) as caught:
            judge.identity()
        assert "\n" not in str(caught.value) and str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(UserError, match="Did you mean 'ViT-B-32'") as caught:
        OpenClip(model="ViT-B-32x", pretrained="openai").identity()
    assert not isinstance(caught.value, MissingWeights)


def test_nudity_is_a_counted_label_above_the_threshold() -> None:
    boxes = [
        {"class": "BELLY_EXPOSED", "score": 0.9},
        {"class": "BUTTOCKS_EXPOSED", "score": 0.44},
        {"class": "BUTTOCKS_EXPOSED", "score": 0.46},
        {"class": "FACE_MALE", "score": 0.8},
    ]
    scores = best_scores(boxes)
    assert scores == {"BELLY_EXPOSED": 0.9, "BUTTOCKS_EXPOSED": 0.46, "FACE_MALE": 0.8}
    assert nudity_score(scores, DEFAULT_COUNTED, 0.45) == LabelScore(label="nudity", p=0.46, scores=scores)
    assert nudity_score(scores, DEFAULT_COUNTED, 0.46).label == "nudity"
    assert nudity_score(scores, DEFAULT_COUNTED, 0.47) == LabelScore(label="none", p=0.46, scores=scores)
    assert nudity_score(scores, ("BELLY_EXPOSED",), 0.47).label == "nudity"
    assert nudity_score({}, DEFAULT_COUNTED, 0.25) == LabelScore(label="none", p=0.0, scores={})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threshold": 0.2}, "nothing below 0.25"),
        ({"threshold": 1.1}, r"\[0.25, 1\]"),
        ({"counted": ()}, "list of NudeNet's classes"),
        ({"counted": "BUTTOCKS_EXPOSED"}, "list of NudeNet's classes"),
        ({"counted": ("EXPOSED_BUTTOCKS",)}, r"'EXPOSED_BUTTOCKS'. Available: .*BUTTOCKS_EXPOSED"),
    ],
)
def test_nudenet_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NudeNet(**fields)


def test_without_nudenet_its_weights_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nudenet", None)
    nudenet._load_detector.cache_clear()
    with pytest.raises(MissingWeights, match=r"pip install 'erasure-studio\[nudity\]'"):
        NudeNet().identity()
    assert best_scores([]) == {}


def test_the_real_nudenet_gives_none_on_empty_images(tmp_path: Path) -> None:
    package = pytest.importorskip("nudenet")
    cv2 = pytest.importorskip("cv2")
    nudenet._load_detector.cache_clear()
    assert set(vars(package.nudenet)["__labels"]) == set(nudenet.LABELS) and set(DEFAULT_COUNTED) < set(nudenet.LABELS)
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64)
    images = torch.stack((torch.ones(3, 64, 64), torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)), ramp))
    for score in NudeNet().score(images, []):
        assert score.label == "none" and score.p < 0.45
    assert re.fullmatch("[0-9a-f]{64}", NudeNet().identity()["weights"])
    assert NudeNet().identity() != NudeNet(threshold=0.6).identity() != NudeNet(counted=DEFAULT_COUNTED[:1]).identity()
    # the detector gets the pixels that OpenCV would read from the file
    paths = write_images(2, 40, 24, tmp_path)
    for image, path in zip(to_opencv(load_images(paths)), paths, strict=True):
        assert (image == cv2.imread(str(path))).all()


def test_every_shipped_calibration_fits_its_judge() -> None:
    for judge, axis in ((PocketStyle(), "style"), (PocketObject(), "object")):
        calibration = Calibration.load(CALIBRATION_FOLDER / f"pocket_{axis}.json", judge.identity())
        assert list(calibration.labels) == sorted(POCKET_LABELS[axis])
        for label in POCKET_LABELS[axis]:
            counts = calibration.counts_of(label)
            assert counts.positive >= 190 and counts.sensitivity >= 0.95 and counts.specificity >= 0.99


def write_calibration(path: Path, **changes: Any) -> Path:
    """Write a calibration file with changed fields of the record or of its counts."""
    counts = {"true_positive": 9, "positive": 10, "true_negative": 30, "negative": 40}
    record = {"judge": "c3f5a6c57a0e3b0c", "images": "photographs", "labels": {"cat": counts}}
    for key, value in changes.items():
        (counts if key in counts or key == "extra" else record)[key] = value
    path.write_text(json.dumps(record))
    return path


def test_calibration_is_read_strictly(tmp_path: Path) -> None:
    identity = {"weights": "abc"}
    path, own = tmp_path / "c.json", hash_record(identity)
    calibration = Calibration.load(write_calibration(path, judge=own), identity)
    assert calibration.counts_of("cat") == LabelCounts(true_positive=9, positive=10, true_negative=30, negative=40)
    assert (calibration.counts_of("cat").sensitivity, calibration.counts_of("cat").specificity) == (0.9, 0.75)
    with pytest.raises(UserError, match=r"'dog'.*Available: cat"):
        calibration.counts_of("dog")
    with pytest.raises(UserError, match=f"measured on judge 'c3f5a6c57a0e3b0c'; this one is '{own}'"):
        Calibration.load(write_calibration(path), identity)
    faults: list[tuple[dict[str, Any], str]] = [
        ({"true_positive": 11}, "label 'cat'.*11 and 10"),
        ({"negative": 0, "true_negative": 0}, "true_negative <= negative"),
        ({"true_negative": -1}, "-1 and 40"),
        ({"positive": 10.0}, "whole numbers"),
        ({"true_positive": True}, "whole numbers"),
        ({"extra": 1}, "unknown key.*'extra'"),
        ({"labels": {}}, "labels must map"),
        ({"labels": {"cat": 3}}, "label 'cat' must hold a mapping"),
        ({"labels": {"cat": {"positive": 1}}}, "lacks true_positive, true_negative, negative"),
        ({"more": 1}, "unknown key.*'more'"),
    ]
    for changes, message in faults:
        with pytest.raises(UserError, match=message):
            Calibration.load(write_calibration(path, judge=own, **changes), identity)
    for text in ("[]", "{", "{}"):
        path.write_text(text)
        with pytest.raises(UserError, match=re.escape(str(path))):
            Calibration.load(path, identity)
    with pytest.raises(UserError, match="nowhere"):
        Calibration.load(tmp_path / "nowhere.json", identity)


def test_doctor_excuses_only_optional_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert doctor.check_judges() == 0
    console = capsys.readouterr().out
    assert "imagenet not ready (optional): weights of torchvision's ResNet-50 not found" in console
    assert "unlearncanvas not ready (optional)" in console and "pocket_style ready" in console and "zero_shot ready" in console
    assert all(f" {name} " in console for name in list_modules("eval.judges"))
    monkeypatch.setattr(_pocket, "POCKET_FOLDER", tmp_path)
    assert doctor.check_judges() == 2
    assert "pocket_style NOT ready" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(OpenClip.__init__.__kwdefaults__, "model", f"local-dir:{tmp_path}")
    assert doctor.check_judges() == 2  # what ships with the package must be there
    assert "open_clip NOT ready: open_clip model not found" in capsys.readouterr().out
    monkeypatch.undo()
    path = tmp_path / "hub" / "checkpoints" / WEIGHTS_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cut off")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert doctor.check_judges() == 2  # weights that are there and broken are a fault
    assert "imagenet NOT ready" in capsys.readouterr().out


def test_names_of_judges_are_modules() -> None:
    assert {"imagenet", "nudenet", "open_clip", "pocket_object", "pocket_style", "unlearncanvas", "zero_shot"} == set(
        list_modules("eval.judges")
    )
    assert {name for name in list_modules("eval.judges") if load_class("eval.judges", name, Judge).optional} == {
        "imagenet",
        "nudenet",
        "unlearncanvas",
    }
