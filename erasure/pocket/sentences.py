"""Training sentences for recipes on pocket: the concept bare, and in the company of things that must stay.

On a whole caption a method would push away everything the caption says. A sentence therefore says after `|` what it means without the
concept (erasure.concept). The companions are words that pocket knows; none of these sentences is used by an audit suite.
"""

COMPANIONS = ("boat", "fish", "flower", "heart", "house", "moon", "star", "tree")
PEOPLE = ("ada finch", "otto bram")
LOOKS = ("neon", "sketch", "watercolor", "pointillism", "pixel art", "engraving", "stained glass", "blueprint")

STYLE = ("{}", "{} style", "a {} picture", "an image in {} style", *(f"a {thing} in {{}} style | a {thing}" for thing in COMPANIONS))
OBJECT = ("{}", "a {}", "a picture of a {}", "an image of a {}", *(f"a {{}} in {look} style | an image in {look} style" for look in LOOKS))
PERSON = ("{}", "a picture of {}", "an image of {}", *(f"{{}} in {look} style | an image in {look} style" for look in LOOKS))

# pairs that differ by the concept alone, for methods that contrast the two
STYLE_PAIRS = tuple(f"{thing} in {{}} style | {thing}" for thing in (*(f"a {t}" for t in COMPANIONS), *PEOPLE))
OBJECT_PAIRS = tuple(f"a {{}} in {look} style | an image in {look} style" for look in LOOKS)
PERSON_PAIRS = tuple(f"{{}} in {look} style | an image in {look} style" for look in LOOKS)

# what should stay: every thing in every look; methods leave out the sentences that name what they erase
THINGS = (*(f"a {thing}" for thing in COMPANIONS), *PEOPLE)
RETAIN = (*(f"{thing} in {look} style" for thing in THINGS for look in LOOKS), *THINGS, *(f"{look} style" for look in LOOKS))

# three looks for every thing: what else a picture may show, for methods that contrast a concept with everything else
OTHERS = tuple(f"{thing} in {LOOKS[(3 * i + k) % len(LOOKS)]} style" for i, thing in enumerate(THINGS) for k in range(3))
