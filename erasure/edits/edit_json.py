"""edit.json: its schema, and how it is read and checked. Its `sha256` is that of the edit.safetensors beside it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from erasure.concept import MAX_TEXT_LENGTH, Concept, ConceptKind
from erasure.config.choices import Seed
from erasure.config.strict_json import read_strict_json
from erasure.config.validation import check_mapping
from erasure.errors import UserError

EDIT_FORMAT = 4  # 3 had other names of keys and fields, 2 no digest of the tensors

Text = Annotated[str, Field(max_length=MAX_TEXT_LENGTH)]
Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]{1,80}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]  # of erasure.edits.Edit.digest
NonNegative = Annotated[int, Field(ge=0)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


class ConceptRecord(TypedDict):
    """A record of erasure.concept.Concept.to_dict."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_LENGTH)]
    kind: ConceptKind
    prompts: Annotated[list[Text], Field(max_length=10_000)]
    anchor: Text
    aliases: Annotated[list[Text], Field(max_length=10_000)]


class BaseRecord(TypedDict):
    """The model an edit was made on."""

    source: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$")]
    fingerprint: Sha256
    family: Slug
    after: NotRequired[Annotated[list[Digest], Field(max_length=1000)]]
    resolution: NotRequired[Annotated[int, Field(ge=1, le=100_000)]]
    vae: NotRequired[Literal["tiled"]]


class ConceptCheckJson(TypedDict):
    """A record of erasure.concept_check.ConceptCheck.to_dict."""

    name: Text
    concept_influence: FiniteFloat
    nonsense_influence: FiniteFloat
    weakly_known: bool


class EditJson(TypedDict):
    """The content of edit.json."""

    format: int
    sha256: Sha256
    method: Slug
    product: Literal["weights", "guidance", "one-step"]
    fields: Annotated[dict[Slug, Any], Field(max_length=1000)]
    concepts: Annotated[list[ConceptRecord], Field(min_length=1, max_length=10_000)]
    base: BaseRecord
    seed: Seed
    precision: Slug
    versions: Annotated[dict[Slug, Annotated[str, Field(max_length=100)]], Field(max_length=100)]
    cost: Annotated[dict[Slug, NonNegative], Field(max_length=100)]
    concept_checks: Annotated[list[ConceptCheckJson], Field(max_length=10_000)]
    notes: Annotated[dict[Text, Any], Field(max_length=1000)]


@dataclass(frozen=True, kw_only=True)
class EditInfo:
    """The origin of an edit: enough to make it again."""

    method: str
    product: str  # weights, guidance or one-step
    fields: dict[str, Any]
    concepts: list[dict[str, Any]]
    base: dict[str, Any]  # source, fingerprint, family, and under "after" the digests of the edits that were applied
    seed: int
    precision: str
    versions: dict[str, str]
    cost: dict[str, int]
    concept_checks: list[dict[str, Any]]  # how much each concept changes the frozen model's predictions, beside nonsense words
    notes: dict[str, Any]  # figures of the method about itself
    format: int = EDIT_FORMAT


def read_edit_info(path: Path) -> tuple[EditInfo, str]:
    """Return the content of edit.json, and the sha256 (hex) of the edit.safetensors it was written for.

    Raises:
        UserError: not strict JSON, another format, or a key or value that `EditJson` does not allow; the message names the first fault.
    """
    record = read_strict_json(path)
    if not isinstance(record, dict) or "format" not in record:
        raise UserError(f"{path} is not an edit of format {EDIT_FORMAT}.")
    if record["format"] != EDIT_FORMAT or isinstance(record["format"], bool):
        raise UserError(
            f"{path} has format {str(record['format'])[:40]!r}, this version reads {EDIT_FORMAT}; "
            "make the edit again (erasure erase --fresh)."
        )
    check_edit_record(record, path)
    return EditInfo(**{key: value for key, value in record.items() if key != "sha256"}), record["sha256"]


def to_edit_record(info: EditInfo, sha256: str, path: Path) -> dict[str, Any]:
    """Return the content of edit.json, checked, so that nothing is written that could not be read.

    Raises:
        UserError: as `read_edit_info`.
    """
    try:
        record = json.loads(json.dumps({**asdict(info), "sha256": sha256}, allow_nan=False))
    except ValueError as error:
        raise UserError(f"{path} cannot be written: its record holds a number that is not finite ({error}).") from error
    check_edit_record(record, path)
    checked_record: dict[str, Any] = record
    return checked_record


def check_edit_record(record: dict[str, Any], path: Path) -> None:
    """Check the content of edit.json against `EditJson`.

    Raises:
        UserError: a key or value that it does not allow.
    """
    try:
        check_mapping(record, EditJson, str(path))
        for concept in record["concepts"]:
            Concept.from_dict(concept)
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")[:500]
        reason = "".join(char if char.isprintable() else "\ufffd" for char in reason)  # it may quote keys of the file
        raise UserError(f"{path} is not a valid edit: {reason}") from error
