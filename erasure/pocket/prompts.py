"""Training sentences for recipes on pocket: the concept bare, and in the company of things that must stay.

On a whole caption a method would push away everything the caption says. A sentence therefore says after `|` what it means without the
concept (erasure.concept). The companions are words that pocket knows; none of these sentences is used by an audit suite.
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
    *(f"a {{}} in {look} style | an image in {look} style" for look in STYLE_NAMES),
)
PERSON = ("{}", "a picture of {}", "an image of {}", *(f"{{}} in {look} style | an image in {look} style" for look in STYLE_NAMES))

# pairs that differ by the concept alone, for methods that contrast the two
STYLE_PAIRS = tuple(f"{thing} in {{}} style | {thing}" for thing in (*(f"a {t}" for t in OBJECT_NAMES), *PEOPLE))
OBJECT_PAIRS = tuple(f"a {{}} in {look} style | an image in {look} style" for look in STYLE_NAMES)
PERSON_PAIRS = tuple(f"{{}} in {look} style | an image in {look} style" for look in STYLE_NAMES)

# what should stay: every thing in every look; methods leave out the sentences that name what they erase
SUBJECTS = (*(f"a {thing}" for thing in OBJECT_NAMES), *PEOPLE)
RETAIN = (
    *(f"{thing} in {look} style" for thing in SUBJECTS for look in STYLE_NAMES),
    *SUBJECTS,
    *(f"{look} style" for look in STYLE_NAMES),
)

# three looks for every thing: what else a picture may show, for methods that contrast a concept with everything else
BASE = tuple(f"{thing} in {STYLE_NAMES[(3 * i + k) % len(STYLE_NAMES)]} style" for i, thing in enumerate(SUBJECTS) for k in range(3))
