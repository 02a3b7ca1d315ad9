"""Training prompts for recipes on pocket: the concept alone, and together with things that must be retained.

With a whole caption a method would push away everything the caption says. A prompt template therefore gives, after `|`, the prompt without
the concept (erasure.concept). The other words are ones that pocket knows. No audit suite uses these prompts.
"""

OBJECT_NAMES = ("boat", "fish", "flower", "heart", "house", "moon", "star", "tree")
PEOPLE = ("ada finch", "otto bram")
STYLE_NAMES = ("neon", "sketch", "watercolor", "pointillism", "pixel art", "engraving", "stained glass", "blueprint")

STYLE = ("{}", "{} style", "a {} picture", "an image in {} style", *(f"a {thing} in {{}} style | a {thing}" for thing in OBJECT_NAMES))
OBJECT = (
    "{}",
    "a {}",
    "a picture of a {}",
    "an image of a {}",
    *(f"a {{}} in {style} style | an image in {style} style" for style in STYLE_NAMES),
)
PERSON = ("{}", "a picture of {}", "an image of {}", *(f"{{}} in {style} style | an image in {style} style" for style in STYLE_NAMES))

# pairs that differ only by the concept, for methods that contrast the two
STYLE_PAIRS = tuple(f"{thing} in {{}} style | {thing}" for thing in (*(f"a {t}" for t in OBJECT_NAMES), *PEOPLE))
OBJECT_PAIRS = tuple(f"a {{}} in {style} style | an image in {style} style" for style in STYLE_NAMES)
PERSON_PAIRS = tuple(f"{{}} in {style} style | an image in {style} style" for style in STYLE_NAMES)

# what to retain: every subject in every style; methods leave out the prompts that name what they erase
SUBJECTS = (*(f"a {thing}" for thing in OBJECT_NAMES), *PEOPLE)
RETAIN = (
    *(f"{thing} in {style} style" for thing in SUBJECTS for style in STYLE_NAMES),
    *SUBJECTS,
    *(f"{style} style" for style in STYLE_NAMES),
)

# three styles for every subject: what else an image may show, for methods that contrast a concept with everything else
BASE = tuple(f"{thing} in {STYLE_NAMES[(3 * i + k) % len(STYLE_NAMES)]} style" for i, thing in enumerate(SUBJECTS) for k in range(3))
