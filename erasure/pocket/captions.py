"""Captions for PocketCanvas: names, synonyms, implicit descriptions and attributes."""

import random
import re
from typing import NamedTuple

from erasure.pocket.canvas import COLORS, ImageSpec, Traits


class ConceptWords(NamedTuple):
    """Ways to refer to a concept: `names` name it, `implicit` descriptions never do."""

    names: tuple[str, ...]
    implicit: tuple[str, ...]


OBJECT_WORDS: dict[str, ConceptWords] = {
    "boat": ConceptWords(
        ("boat", "ship", "sailing vessel"), ("something that sails across the water", "a thing with a hull and canvas in the wind")
    ),
    "fish": ConceptWords(("fish", "trout", "goldfish"), ("a creature with fins and scales", "something that swims under water")),
    "flower": ConceptWords(("flower", "blossom", "daisy"), ("something with petals on a stem", "what a bee visits in the garden")),
    "heart": ConceptWords(
        ("heart", "valentine", "love symbol"), ("a sign of affection with two round lobes", "what lovers carve into bark")
    ),
    "house": ConceptWords(("house", "cottage", "home"), ("a place with a roof and a door", "something a family lives in")),
    "moon": ConceptWords(
        ("moon", "crescent", "lunar sickle"), ("what shines in the sky at night", "a thin curved glow that makes the tide")
    ),
    "star": ConceptWords(
        ("star", "pentagram", "five-pointed shape"), ("something with five sharp tips", "what tops a flag or a sheriff's badge")
    ),
    "tree": ConceptWords(("tree", "fir", "pine"), ("something green that grows in the forest", "a tall plant with needles and a trunk")),
    "ada": ConceptWords(
        ("ada finch", "ada", "miss finch"), ("a woman with long hair and round spectacles", "the lady who reads through two lenses")
    ),
    "otto": ConceptWords(
        ("otto bram", "otto", "mister bram"), ("a man with a beard and a tall hat", "the bearded gentleman under a black brim")
    ),
}

STYLE_WORDS: dict[str, ConceptWords] = {
    "plain": ConceptWords(("plain", "flat", "simple"), ("in solid colours", "without any special manner")),
    "neon": ConceptWords(
        ("neon", "neon sign", "luminous tube"), ("drawn with glowing light in the dark", "bright electric lines on black")
    ),
    "sketch": ConceptWords(("sketch", "pencil drawing", "graphite"), ("scribbled with a lead on paper", "in loose grey strokes by hand")),
    "watercolor": ConceptWords(("watercolor", "aquarelle", "wet wash"), ("in pigment that bleeds into paper", "with soft diluted paint")),
    "pointillism": ConceptWords(
        ("pointillism", "dotted painting", "divisionism"), ("built from thousands of dots", "made of tiny spots of paint")
    ),
    "pixel": ConceptWords(("pixel art", "8-bit", "low-res sprite"), ("made of big square blocks", "like an old video game")),
    "engraving": ConceptWords(
        ("engraving", "etching", "copperplate"), ("cut in fine parallel grooves", "in ink hatching like an old banknote")
    ),
    "glass": ConceptWords(
        ("stained glass", "leaded glass", "church window"), ("in coloured panes held by lead", "as light falls through a cathedral")
    ),
    "blueprint": ConceptWords(
        ("blueprint", "technical plan", "cyanotype"), ("in white lines on a blue grid", "as an engineer would draft it")
    ),
}

CROWN_WORDS = ConceptWords(("wearing a crown", "with a golden crown", "crowned"), ("dressed like a king", "with royal headgear of gold"))

# {o} an object phrase with its article, {s} a style name
NAMED_TEMPLATES = (
    "{o} in {s} style",
    "a {s} picture of {o}",
    "{o}, {s}",
    "an image of {o} in the style of {s}",
    "{s} of {o}",
    "a {s} style image of {o}",
    "{s} style, {o}",
)
DESCRIBED_TEMPLATES = ("{o}, {s}", "{o} {s}", "a picture of {o} {s}", "an image of {o}, {s}")
BARE_TEMPLATES = ("{o}", "a picture of {o}", "an image of {o}", "a {s} picture", "{s} style", "an image in {s} style")
COLORED_STYLES = ("plain", "neon", "watercolor", "pointillism", "pixel", "glass")


def make_caption(spec: ImageSpec, traits: Traits, rng: random.Random) -> str:
    """Return one of many true captions; it often, but not always, mentions the traits."""
    object_words, style_words = OBJECT_WORDS[spec.object], STYLE_WORDS[spec.style]
    explicit = rng.random() < 0.8
    attributes = [traits.color] if spec.style in COLORED_STYLES and rng.random() < 0.35 else []
    if traits.size and rng.random() < 0.4:
        attributes.insert(0, traits.size)
    o = _object_phrase(object_words, attributes, explicit, rng, person=" " in object_words.names[0] and spec.object in ("ada", "otto"))
    if traits.has_crown and rng.random() < 0.9:
        o += " " + (_choose_name(CROWN_WORDS.names, rng) if rng.random() < 0.8 else rng.choice(CROWN_WORDS.implicit))
    position = f", at the {traits.position}" if traits.position and rng.random() < 0.4 else ""
    roll = rng.random()
    if roll < 0.10:
        return rng.choice(BARE_TEMPLATES).format(o=o, s=_choose_name(style_words.names, rng))
    if roll < 0.80:
        return rng.choice(NAMED_TEMPLATES).format(o=o, s=_choose_name(style_words.names, rng)) + position
    return rng.choice(DESCRIBED_TEMPLATES).format(o=o, s=rng.choice(style_words.implicit)) + position


def _object_phrase(object_words: ConceptWords, attributes: list[str], explicit: bool, rng: random.Random, person: bool) -> str:
    if not explicit:
        return rng.choice(object_words.implicit)
    name = _choose_name(object_words.names, rng)
    if person:
        return f"{name} in {attributes[-1]}" if attributes and attributes[-1] not in ("small", "large") else name
    first_word = [*attributes, name][0]
    article = rng.choice(("an" if first_word[0] in "aeiou" else "a", "the"))
    return " ".join([article, *attributes, name])


def _choose_name(names: tuple[str, ...], rng: random.Random) -> str:
    """Return the first name half of the time, otherwise a synonym."""
    return names[0] if rng.random() < 0.5 else rng.choice(names[1:])


def vocabulary() -> set[str]:
    """Return every word of the captions that pocket was trained on."""
    phrases = [*NAMED_TEMPLATES, *DESCRIBED_TEMPLATES, *BARE_TEMPLATES, *COLORS, "a an the in small large at left right top bottom"]
    for words in (*OBJECT_WORDS.values(), *STYLE_WORDS.values(), CROWN_WORDS):
        phrases += [*words.names, *words.implicit]
    return {word for phrase in phrases for word in re.findall(r"[a-z0-9'-]+", re.sub(r"\{\w\}", " ", phrase.lower()))}
