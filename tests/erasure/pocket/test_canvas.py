"""PocketCanvas is determined by its seeds, and captions describe the image."""

import random

import pytest
import torch

from erasure.pocket.canvas import COLORS, OBJECTS, STYLES, ImageSpec, traits_of
from erasure.pocket.captions import OBJECT_WORDS, STYLE_WORDS, make_caption
from erasure.pocket.styles import render


def test_an_image_does_not_depend_on_its_batch() -> None:
    specs = [ImageSpec(o, s, 7) for o in OBJECTS[:3] for s in STYLES]
    together = render(specs)
    order = list(range(len(specs)))
    random.Random(0).shuffle(order)
    assert torch.allclose(render([specs[i] for i in order]), together[order], atol=1e-6)
    assert torch.allclose(render(specs[4:5])[0], together[4], atol=1e-6)


def test_every_cell_is_rendered_within_range() -> None:
    images = render([ImageSpec(o, s, 1) for o in OBJECTS for s in STYLES])
    assert images.shape == (len(OBJECTS) * len(STYLES), 3, 64, 64)
    assert images.min() >= 0 and images.max() <= 1
    assert (images.flatten(1).std(1) > 0.02).all()


def test_seeds_and_styles_make_different_images() -> None:
    a, b, c = render([ImageSpec("boat", "neon", 1), ImageSpec("boat", "neon", 2), ImageSpec("boat", "sketch", 1)])
    assert (a - b).abs().mean() > 0.01
    assert (a - c).abs().mean() > 0.1


def test_the_crown_is_added_and_nothing_else_changes() -> None:
    bare, crowned = render([ImageSpec("boat", "plain", 3, crown=False), ImageSpec("boat", "plain", 3, crown=True)])
    changed = (bare - crowned).abs().amax(0) > 1e-3
    assert 0.005 < changed.float().mean() < 0.2


def test_traits_are_independent_of_object_and_style() -> None:
    def red_or_blue(object_: str, style: str) -> float:
        return sum(traits_of(ImageSpec(object_, style, i)).color in ("red", "blue") for i in range(300)) / 300

    for o, s in (("boat", "neon"), ("ada", "engraving")):
        assert abs(red_or_blue(o, s) - 2 / len(COLORS)) < 0.08
    assert 0.15 < sum(traits_of(ImageSpec("fish", "pixel", i)).has_crown for i in range(300)) / 300 < 0.35


def test_captions_name_what_is_there_and_implicit_ones_do_not() -> None:
    for words in (*OBJECT_WORDS.values(), *STYLE_WORDS.values()):
        assert len(words.names) >= 3 and len(words.implicit) >= 2
        for text in words.implicit:
            assert not any(name in text.split() for name in words.names)
    spec = ImageSpec("boat", "neon", 5)
    captions = [make_caption(spec, traits_of(spec), random.Random(i)) for i in range(400)]
    others = {n for o, w in OBJECT_WORDS.items() if o != "boat" for n in w.names}
    assert not any(f" {other} " in f" {text} " for text in captions for other in others)
    assert len(set(captions)) > 100


def test_unknown_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="got 'car'"):
        render([ImageSpec("car", "neon", 0)])
