"""What to erase: a name, its kind, the prompts that train the erasure, and what should take its place."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from erasure.errors import UserError

ConceptKind = Literal["style", "object", "person", "nsfw"]
SLOT = "{}"
MAX_TEXT_LENGTH = 10_000  # characters of a name, a prompt, an anchor or an alias

# Prompt templates by kind; the concept fills the slot.
PROMPT_TEMPLATES: dict[ConceptKind, tuple[str, ...]] = {
    "style": ("{}", "{} style", "a picture in {} style", "a painting in the style of {}"),
    "object": ("{}", "a {}", "a photo of a {}", "a picture of a {}"),
    "person": ("{}", "a photo of {}", "a portrait of {}", "{} in a crowd"),
    "nsfw": ("{}", "a photo of {}", "a picture showing {}"),
}


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One concept to erase.

    Attributes:
        name: what people call it, such as "Van Gogh".
        kind: decides the prompt templates and the recipe.
        prompts: prompt templates with one `{}` where the concept goes, optionally followed by `|` and the same prompt without the
            concept; a text is one template, empty means those of the kind.
        anchor: what the concept should become; "" means nothing in particular.
        aliases: synonyms and implicit descriptions, for evaluation only; they are never trained on.

    Raises:
        UserError: A value of the wrong type, an empty name, an unknown kind, a text that is too long or not valid Unicode, an anchor that
            equals the name, or a prompt template without exactly one slot.
    """

    name: str
    kind: ConceptKind = "style"
    prompts: Sequence[str] = ()
    anchor: str = ""
    aliases: Sequence[str] = ()

    def __post_init__(self) -> None:
        from erasure.config.arguments import check_fields  # pydantic, which no help needs

        for texts in ("prompts", "aliases"):
            if isinstance(given := getattr(self, texts), str):
                object.__setattr__(self, texts, (given,))
        check_fields(self)
        for texts in ("prompts", "aliases"):
            object.__setattr__(self, texts, tuple(getattr(self, texts)))
        if not self.name.strip():
            raise UserError("a concept needs a name, such as 'Van Gogh'; it is empty here.")
        for text in (self.name, self.anchor, *self.prompts, *self.aliases):
            if len(text) > MAX_TEXT_LENGTH or any(
                character == "\0" or "\ud800" <= character <= "\udfff" for character in text
            ):  # half of a surrogate pair is not valid Unicode
                raise UserError(
                    f"texts of a concept must be valid Unicode of at most {MAX_TEXT_LENGTH:,} characters without NUL; got {text[:40]!r}."
                )
        if self.anchor.strip().lower() == self.name.strip().lower():
            raise UserError(f"the anchor {self.anchor!r} equals the concept; name what it should become, or leave it empty.")
        for prompt in self.prompts:
            if prompt.count(SLOT) != 1:
                raise UserError(f"a training prompt needs exactly one {SLOT} where the concept goes, got {prompt!r}.")

    def prompt_pairs(self) -> list[tuple[str, str]]:
        """Return pairs (prompt with the concept, prompt without it).

        "a {} in neon style | neon style" gives both prompts. With an anchor, the second one is the first with the anchor in the slot.
        Without either, the second one is empty, as in the papers.
        """
        pairs = []
        for template in self.prompts or PROMPT_TEMPLATES[self.kind]:
            prompt, _, neutral = (part.strip() for part in template.partition("|"))
            neutral_prompt = fill_template(prompt, self.anchor) if self.anchor else neutral
            pairs.append((fill_template(prompt, self.name), neutral_prompt))
        return pairs

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Concept":
        """Return the concept that `to_dict` wrote; JSON has lists instead of tuples."""
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
        return cls(**values)


def fill_template(template: str, text: str) -> str:
    """Return the template with `text` in its slot and single spaces between words."""
    return " ".join(template.replace(SLOT, text).split())


def parse_concepts(text: str, *, kind: ConceptKind, prompts: tuple[str, ...] = (), anchor: str = "") -> list[Concept]:
    """Return the concepts of "a; b; c".

    Raises:
        UserError: A name is empty or appears twice.
    """
    names = [part.strip() for part in text.split(";")]
    if not all(names):
        raise UserError(f"every concept needs a name, and one is missing in {text!r}; write them like 'neon; sketch'.")
    if len({name.lower() for name in names}) < len(names):
        raise UserError(f"a concept is named twice in {text!r}; name every concept once.")
    return [Concept(name=name, kind=kind, prompts=prompts, anchor=anchor) for name in names]


ConceptSource = str | Concept  # "a; b" as on the command line, or a Concept


def resolve_concepts(
    concepts: ConceptSource | Sequence[ConceptSource],
    *,
    kind: ConceptKind = "style",
    prompts: str | Sequence[str] = (),
    anchor: str = "",
) -> list[Concept]:
    """Return the concepts behind "a; b; c", a Concept, or several of either.

    Args:
        kind, prompts, anchor: of those that are given as text.

    Raises:
        UserError: As `parse_concepts`; no concept; or a kind, prompts or anchor where no concept is given as text.
    """
    sources = concepts if isinstance(concepts, Sequence) and not isinstance(concepts, str) else [concepts]
    if not sources:
        raise UserError("there is no concept to erase; name at least one, such as 'neon'.")
    templates = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    if (anchor or templates or kind != "style") and not any(isinstance(source, str) for source in sources):
        raise UserError("kind, prompts and anchor are for concepts given as text; put them into the Concept.")
    resolved: list[Concept] = []
    for source in sources:
        resolved += [source] if isinstance(source, Concept) else parse_concepts(source, kind=kind, prompts=templates, anchor=anchor)
    return resolved
