"""Captions for PocketCanvas: names, synonyms, implicit descriptions, and attribute words to keep besides the concept."""

import random
import re
from typing import NamedTuple

from erasure.pocket.canvas import COLOURS, Picture, Traits


class Words(NamedTuple):
    """How a thing can be said. `names` name it, `implicit` never does."""

    names: tuple[str, ...]
    implicit: tuple[str, ...]


OBJECT_WORDS: dict[str, Words] = {
    "boat": Words(
        ("boat", "ship", "sailing vessel"), ("something that sails across the water", "a thing with a hull and canvas in the wind")
    ),
    "fish": Words(("fish", "trout", "goldfish"), ("a creature with fins and scales", "something that swims under water")),
    "flower": Words(("flower", "blossom", "daisy"), ("something with petals on a stem", "what a bee visits in the garden")),
    "heart": Words(("heart", "valentine", "love symbol"), ("a sign of affection with two round lobes", "what lovers carve into bark")),
    "house": Words(("house", "cottage", "home"), ("a place with a roof and a door", "something a family lives in")),
    "moon": Words(("moon", "crescent", "lunar sickle"), ("what shines in the sky at night", "a thin curved glow that makes the tide")),
    "star": Words(("star", "pentagram", "five-pointed shape"), ("something with five sharp tips", "what tops a flag or a sheriff's badge")),
    "tree": Words(("tree", "fir", "pine"), ("something green that grows in the forest", "a tall plant with needles and a trunk")),
    "ada": Words(
        ("ada finch", "ada", "miss finch"), ("a woman with long hair and round spectacles", "the lady who reads through two lenses")
    ),
    "otto": Words(("otto bram", "otto", "mister bram"), ("a man with a beard and a tall hat", "the bearded gentleman under a black brim")),
}

STYLE_WORDS: dict[str, Words] = {
    "plain": Words(("plain", "flat", "simple"), ("in solid colours", "without any special manner")),
    "neon": Words(("neon", "neon sign", "luminous tube"), ("drawn with glowing light in the dark", "bright electric lines on black")),
    "sketch": Words(("sketch", "pencil drawing", "graphite"), ("scribbled with a lead on paper", "in loose grey strokes by hand")),
    "watercolor": Words(("watercolor", "aquarelle", "wet wash"), ("in pigment that bleeds into paper", "with soft diluted paint")),
    "pointillism": Words(
        ("pointillism", "dotted painting", "divisionism"), ("built from thousands of dots", "made of tiny spots of paint")
    ),
    "pixel": Words(("pixel art", "8-bit", "low-res sprite"), ("made of big square blocks", "like an old video game")),
    "engraving": Words(("engraving", "etching", "copperplate"), ("cut in fine parallel grooves", "in ink hatching like an old banknote")),
    "glass": Words(
        ("stained glass", "leaded glass", "church window"), ("in coloured panes held by lead", "as light falls through a cathedral")
    ),
    "blueprint": Words(("blueprint", "technical plan", "cyanotype"), ("in white lines on a blue grid", "as an engineer would draft it")),
}

CROWN_WORDS = Words(("wearing a crown", "with a golden crown", "crowned"), ("dressed like a king", "with royal headgear of gold"))

# {o} an object phrase with its article, {s} a style name
NAMED = (
    "{o} in {s} style",
    "a {s} picture of {o}",
    "{o}, {s}",
    "an image of {o} in the style of {s}",
    "{s} of {o}",
    "a {s} style image of {o}",
    "{s} style, {o}",
)
DESCRIBED = ("{o}, {s}", "{o} {s}", "a picture of {o} {s}", "an image of {o}, {s}")
BARE = ("{o}", "a picture of {o}", "an image of {o}", "a {s} picture", "{s} style", "an image in {s} style")
COLOURED_STYLES = ("plain", "neon", "watercolor", "pointillism", "pixel", "glass")


def caption(picture: Picture, seen: Traits, rng: random.Random) -> str:
    """One of many true captions; what `seen` says is mentioned often, not always."""
    thing, look = OBJECT_WORDS[picture.object], STYLE_WORDS[picture.style]
    explicit = rng.random() < 0.8
    words = [seen.colour] if picture.style in COLOURED_STYLES and rng.random() < 0.35 else []
    if seen.size and rng.random() < 0.4:
        words.insert(0, seen.size)
    o = _phrase(thing, words, explicit, rng, person=" " in thing.names[0] and picture.object in ("ada", "otto"))
    if seen.crown and rng.random() < 0.9:
        o += " " + (_common(CROWN_WORDS.names, rng) if rng.random() < 0.8 else rng.choice(CROWN_WORDS.implicit))
    place = f", at the {seen.place}" if seen.place and rng.random() < 0.4 else ""
    roll = rng.random()
    if roll < 0.10:
        return rng.choice(BARE).format(o=o, s=_common(look.names, rng))
    if roll < 0.80:
        return rng.choice(NAMED).format(o=o, s=_common(look.names, rng)) + place
    return rng.choice(DESCRIBED).format(o=o, s=rng.choice(look.implicit)) + place


def _phrase(thing: Words, words: list[str], explicit: bool, rng: random.Random, person: bool) -> str:
    if not explicit:
        return rng.choice(thing.implicit)
    name = _common(thing.names, rng)
    if person:
        return f"{name} in {words[-1]}" if words and words[-1] not in ("small", "large") else name
    first = [*words, name][0]
    article = rng.choice(("an" if first[0] in "aeiou" else "a", "the"))
    return " ".join([article, *words, name])


def _common(names: tuple[str, ...], rng: random.Random) -> str:
    """The first name more often than its synonyms."""
    return names[0] if rng.random() < 0.5 else rng.choice(names[1:])


def vocabulary() -> set[str]:
    """Every word of the captions that pocket was trained on."""
    phrases = [*NAMED, *DESCRIBED, *BARE, *COLOURS, "a an the in small large at left right top bottom"]
    for words in (*OBJECT_WORDS.values(), *STYLE_WORDS.values(), CROWN_WORDS):
        phrases += [*words.names, *words.implicit]
    return {word for phrase in phrases for word in re.findall(r"[a-z0-9'-]+", re.sub(r"\{\w\}", " ", phrase.lower()))}
