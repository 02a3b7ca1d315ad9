"""Images from a user's disk are loaded as people see them, and files that are not images are skipped."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from erasure.concept import Concept
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.salun import SalUn
from erasure.storage.run import hash_record
from erasure.training import fill_cache
from erasure.training.teacher_cache import TeacherQuery
from erasure.user_images import is_plain_image, list_images, load_image
from eval.external_images import read_external_images
from tests.factories import small_suite

RED, WHITE = (220, 20, 20), (255, 255, 255)
ARROW = np.zeros((4, 6, 3), np.uint8)  # no turn and no mirror of it is itself
ARROW[0, 0], ARROW[0, 1], ARROW[3, 0] = RED, (20, 200, 20), (20, 20, 200)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    """The tag says which visual side the stored row 0 and column 0 are: of 6, for example, right and top (EXIF 2.32, 4.6.4)."""
    large = ARROW.repeat(16, 0).repeat(16, 1)
    across = large.transpose(1, 0, 2)
    stored = [large, large[:, ::-1], large[::-1, ::-1], large[::-1], across, across[::-1], across[::-1, ::-1], across[:, ::-1]]
    upright, turned = Image.fromarray(large), Image.fromarray(stored[orientation - 1].copy())
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"photo.{suffix}"
    turned.save(path, exif=exif, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {"lossless": True}))
    loaded = load_image(path)
    assert loaded.size == upright.size and np.abs(np.asarray(loaded, int) - np.asarray(upright, int)).mean() < 3
    assert is_plain_image(path) == (orientation == 1)


def test_sixteen_bits_are_scaled_and_not_truncated(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 300, 32_896, 65_535]], np.uint16)
    for name, image in (("png", Image.fromarray(levels)), ("tiff", Image.fromarray(levels.astype(np.int32)))):
        path = tmp_path / "gray.png"  # the second is a TIFF under another name, in 32 bits
        image.save(path, format=name)
        assert np.asarray(load_image(path)).tolist() == [[[v] * 3 for v in (0, 1, 1, 128, 255)]] and not is_plain_image(path)
    Image.fromarray(np.array([[70_000]], np.int32)).save(path, format="tiff")
    with pytest.raises(UserError, match="at most 16 bits are read"):
        load_image(path)


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    """Whatever a program left under it: red here."""
    layer = Image.new("RGBA", (2, 1), (*RED, 0))
    layer.putpixel((1, 0), (0, 0, 0, 128))
    layer.save(tmp_path / "a.png")
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "b.png", transparency=0)
    Image.new("LA", (2, 1), (90, 0)).save(tmp_path / "c.png")
    keyed = Image.new("RGB", (2, 1), RED)
    keyed.putpixel((1, 0), (0, 0, 0))
    keyed.save(tmp_path / "d.png", transparency=RED)
    pixels = {path.stem: [load_image(path).getpixel((x, 0)) for x in (0, 1)] for path in list_images(tmp_path)}
    assert pixels == {"a": [WHITE, (127,) * 3], "b": [WHITE, (0, 0, 0)], "c": [WHITE, WHITE], "d": [WHITE, (0, 0, 0)]}


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_other_modes_are_unpacked_as_before(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(ARROW.repeat(8, 0).repeat(8, 1)).convert(mode).save(path, format="PNG" if mode in ("1", "P") else "JPEG")
    with Image.open(path) as image:
        assert load_image(path).tobytes() == image.convert("RGB").tobytes() and is_plain_image(path)


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.JPG", format="JPEG")
    for name in ("._photo.jpg", ".DS_Store", ".png"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7" * 9)
    (tmp_path / "more.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["photo.JPG"]
    (tmp_path / "photo.JPG").unlink()
    with pytest.raises(UserError, match="holds no images"):
        list_images(tmp_path)
    (tmp_path / "gone.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"gone\.png is not a readable image"):
        load_image(list_images(tmp_path)[0])


@pytest.mark.parametrize("damage", range(40))
def test_damaged_photos_are_refused_or_loaded_and_never_crash(tmp_path: Path, damage: int) -> None:
    exif = Image.Exif()
    exif[274], exif[271] = 6, "camera" * 9
    data = io.BytesIO()
    Image.new("RGB", (16, 16), RED).save(data, format="JPEG", exif=exif)
    rng = np.random.default_rng(damage)
    broken = bytearray(data.getvalue()[: int(rng.integers(20, len(data.getvalue())))] if damage % 2 else data.getvalue())
    for position in rng.integers(2, min(len(broken), 200), 6):
        broken[position] = int(rng.integers(256))
    (tmp_path / "a.jpg").write_bytes(broken)
    try:
        assert load_image(tmp_path / "a.jpg").mode == "RGB"
    except UserError as error:
        assert "a.jpg" in str(error) and "\n" not in str(error)


def test_a_turned_photo_is_encoded_upright_and_never_taken_from_an_older_cache(model: StableDiffusion, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("turned", "upright")]
    for folder in folders:
        folder.mkdir()
    image, exif = Image.fromarray(ARROW.repeat(4, 0).repeat(4, 1)), Image.Exif()
    exif[274] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(folders[0] / "a.png", exif=exif)
    image.save(folders[1] / "a.png")
    concept = [Concept(name="cat", kind="object")]
    caches = [
        fill_cache.load_or_fill(model, SalUn(images=str(f), steps=1, retain_prompts=("",), retain_trajectories=1).query(concept, 0))
        for f in folders
    ]
    turned, upright = (cache.x_0[cache.latent_rows("erase")] for cache in caches)
    assert torch.equal(turned, upright)

    def contents(folder: Path) -> str:
        return fill_cache.source_digests(
            TeacherQuery(prompt_pairs=(("a", ""),), trajectories=1, steps=1, guidance=1.0, store="latents", images=str(folder))
        )["images"]

    with_tag = contents(folders[0])
    (folders[1] / "a.png").write_bytes((folders[0] / "a.png").read_bytes())
    assert contents(folders[1]) == with_tag
    image.save(folders[1] / "a.png")
    sha = hashlib.sha256((folders[1] / "a.png").read_bytes()).hexdigest()
    assert contents(folders[1]) == hash_record([sha])  # as it always was
    sha = hashlib.sha256((folders[0] / "a.png").read_bytes()).hexdigest()
    assert with_tag != hash_record([sha])


def test_external_images_skip_hidden_files_and_keep_seeds_distinct(tmp_path: Path) -> None:
    suite = small_suite()
    cells = [(style, object_) for style in suite.styles for object_ in suite.objects]
    for style, object_ in cells:
        Image.new("RGB", (8, 8)).save(tmp_path / f"{style.replace(' ', '_')}_{object_.replace(' ', '_')}_seed{2**63 - 1}.png")
    (tmp_path / "._neon_boat_seed1.png").write_bytes(b"\0")
    external_images = read_external_images(tmp_path, suite)
    assert len(external_images.files) == len(cells) and {seed for _, seed in external_images.files} == {2**63 - 1}
    (style, object_), *_ = cells
    Image.new("RGB", (8, 8)).save(tmp_path / f"{style}_{object_}_seed{2**63}.png")
    with pytest.raises(UserError, match=r"a seed is a whole number from 0 to 9223372036854775807"):
        read_external_images(tmp_path, suite)
