"""edit.json: what it may hold, and how it is read and checked. The tensors beside it are held against `sha256`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from erasure.concept import TEXT_LIMIT, Concept, Kind
from erasure.config.choices import Seed
from erasure.config.strict_json import read_strict_json
from erasure.config.validation import check
from erasure.errors import UserError

FORMAT = 3  # 2 had no digest of the tensors

Text = Annotated[str, Field(max_length=TEXT_LIMIT)]
Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]{1,80}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]  # of erasure.edits.Edit.digest
Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class ConceptRecord(TypedDict):
    """erasure.concept.Concept.record."""

    name: Annotated[str, Field(min_length=1, max_length=TEXT_LIMIT)]
    kind: Kind
    prompts: Annotated[list[Text], Field(max_length=10_000)]
    anchor: Text
    aliases: Annotated[list[Text], Field(max_length=10_000)]


class BaseRecord(TypedDict):
    """The model an edit was made on."""

    source: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$")]
    fingerprint: Sha256
    family: Slug
    after: NotRequired[Annotated[list[Digest], Field(max_length=1000)]]


class KnownRecord(TypedDict):
    """erasure.concept_check.Known.record."""

    name: Text
    concept: Number
    nonsense: Number
    doubtful: bool


class EditRecord(TypedDict):
    """edit.json."""

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
    cost: Annotated[dict[Slug, Count], Field(max_length=100)]
    known: Annotated[list[KnownRecord], Field(max_length=10_000)]
    notes: Annotated[dict[Text, Any], Field(max_length=1000)]


@dataclass(frozen=True, kw_only=True)
class EditInfo:
    """Where an edit came from: enough to make it again."""

    method: str
    product: str  # weights, guidance or one-step
    fields: dict[str, Any]
    concepts: list[dict[str, Any]]
    base: dict[str, Any]  # source, fingerprint, family, and under "after" the digests of the edits that were in place
    seed: int
    precision: str
    versions: dict[str, str]
    cost: dict[str, int]
    known: list[dict[str, Any]]  # how much each concept moves the frozen model's predictions, beside nonsense words (erasure.concept_check)
    notes: dict[str, Any]  # figures of the method about itself
    format: int = FORMAT


def read_info(path: Path) -> tuple[EditInfo, str]:
    """What edit.json says, and the sha256 of the edit.safetensors it was written for.

    Raises:
        UserError: one line that names the first fault: not strict JSON, another format, a key or value that `EditRecord` does not allow.
    """
    record = read_strict_json(path)
    if not isinstance(record, dict) or "format" not in record:
        raise UserError(f"{path} is not an edit of format {FORMAT}.")
    if record["format"] != FORMAT or isinstance(record["format"], bool):
        raise UserError(
            f"{path} has format {str(record['format'])[:40]!r}, this version reads {FORMAT}; make the edit again (erasure erase --fresh)."
        )
    checked(record, path)
    return EditInfo(**{key: value for key, value in record.items() if key != "sha256"}), record["sha256"]


def record_of(info: EditInfo, sha256: str, place: Path) -> dict[str, Any]:
    """The content of edit.json, checked, so that nothing is written that could not be read.

    Raises:
        UserError: as `read_info`.
    """
    try:
        record = json.loads(json.dumps({**asdict(info), "sha256": sha256}, allow_nan=False))
    except ValueError as error:
        raise UserError(f"{place} cannot be written: its record holds a number that is not finite ({error}).") from error
    checked(record, place)
    found: dict[str, Any] = record
    return found


def checked(record: dict[str, Any], path: Path) -> None:
    try:
        check(record, EditRecord, str(path))
        for concept in record["concepts"]:
            Concept.from_record(concept)
    except UserError as error:
        said = str(error).removeprefix(f"{path}: ")[:500]
        said = "".join(letter if letter.isprintable() else "\ufffd" for letter in said)  # it quotes keys of the file
        raise UserError(f"{path} is not a valid edit: {said}") from error
