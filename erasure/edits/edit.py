"""An erasure as an edit: what changed, and its origin. Edits are applied to a diffusers pipeline, stacked, and reverted bit for bit."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from typing_extensions import Doc

from erasure.config.arguments import check_arguments
from erasure.config.strength import check_strength
from erasure.edits import deltas
from erasure.edits.checks import check_base, check_edit_fits, check_weights_unchanged
from erasure.edits.edit_json import EditInfo, read_edit_info, to_edit_record
from erasure.edits.stacking import build_sampling, stack_of
from erasure.edits.transaction import replace_stack
from erasure.errors import UserError, to_one_line, truncate_middle
from erasure.families.base import DiffusionModel
from erasure.storage.edit_folders import RECORD_FILE, TENSORS_FILE, check_edit_exists
from erasure.storage.run import canonical_json, write_bytes, write_json

LoadedModel = Annotated[DiffusionModel, Doc("what erasure.load_model returns")]  # of functions that a model must outlive
CONTROL_CHARS = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]+")


@dataclass(frozen=True)
class Edit:
    """The tensors of an edit, by "unet.<name>" or "text_encoder.<name>" in the formats of erasure.edits.deltas, and its origin."""

    tensors: dict[str, Tensor]
    info: EditInfo

    @classmethod
    @check_arguments
    def load(cls, folder: str | Path) -> "Edit":
        """Read an edit folder (edit.safetensors beside edit.json), or the path of either file.

        Raises:
            UserError: a missing, truncated or changed file, not an edit's file, or a record or tensor that no edit can have.
        """
        path = Path(folder)
        edit_folder = path.parent if path.name in (TENSORS_FILE, RECORD_FILE) and not path.is_dir() else path
        try:
            check_edit_exists(edit_folder)
            info, recorded = read_edit_info(edit_folder / RECORD_FILE)
            with (edit_folder / TENSORS_FILE).open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
            if actual != recorded:
                raise UserError(
                    f"{edit_folder} holds a broken edit: {TENSORS_FILE} is not the file that {RECORD_FILE} was written for "
                    f"(sha256 {actual[:12]}, recorded {recorded[:12]}); make or copy both again."
                )
            edit = cls(load_file(edit_folder / TENSORS_FILE), info)
        except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{str(edit_folder)[:300]} holds a broken edit ({str(error)[:200]}); make or copy it again.") from error
        edit.check()
        return edit

    @check_arguments
    def save(self, folder: str | Path) -> None:
        """Write edit.safetensors and edit.json; equal edits give equal bytes.

        edit.json comes second and holds the digest of edit.safetensors, so that `load` refuses what a kill between the two leaves behind.

        Raises:
            UserError: NaN, Inf, or anything else that `load` would refuse; nothing is written then. The folder cannot be written.
        """
        self.check()
        folder, tensors = Path(folder), self._bytes()
        record = to_edit_record(self.info, hashlib.sha256(tensors).hexdigest(), folder / RECORD_FILE)
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / TENSORS_FILE, tensors)
        write_json(folder / RECORD_FILE, record)

    @check_arguments
    def apply(self, pipe: Any, strength: float = 1.0, other_base: bool = False) -> "Edit":
        """Apply the edit to a diffusers pipeline and return it.

        Edits stack: base + sum of s (new - base) in fp32, then zeroed entries. An edit is applied completely or not at all
        (erasure.edits.transaction). The change of one that was made on top of others is measured from what they had put in place, so it
        needs them in the stack at strength 1. A LoRA may be loaded, but not fused.

        Args:
            strength: s, from -10 to 10; 0 is the base, 1 the edit as it was made.

        Raises:
            UserError: another base (other shapes always, other values unless `other_base`), an edit underneath that is missing, an edit
                that is already applied, weights that something else has changed since the applied edits went in.
        """
        strength = check_strength(strength)
        self.check()
        stack = stack_of(pipe)
        if strengths := [s for edit, s in stack.edits if self.equals(edit)]:
            raise UserError(f"{self.name} is already applied at strength {strengths[0]:g}; revert it before applying it again.")
        check_edit_fits(self, pipe)
        check_base(self, pipe, other_base)
        check_weights_unchanged(self, pipe)
        replace_stack(pipe, (*stack.edits, (self, strength)), self.moved_parameters())
        return self

    def revert(self, pipe: Any) -> None:
        """Take this edit out again, completely or not at all; other edits and a loaded LoRA stay.

        The parameters that only it moved hold the base again, bit for bit. Other weights are not touched: what fusing and unfusing a LoRA
        rounded off stays lost. The pipeline may have moved to another device, or been cast: then the base comes back in that dtype.

        Raises:
            UserError: it is not applied, another edit in the stack was made on top of it, something else has changed its weights since, or
                the pipeline was cast to a narrower dtype and back, so that its other weights lost digits.
        """
        stack = stack_of(pipe)
        applied_edit = next((edit for edit, _ in stack.edits if self.equals(edit)), None)
        if applied_edit is None:
            raise UserError(f"{self.name} is not applied to that pipeline.")
        for edit, _ in stack.edits:
            if edit is not applied_edit and self.digest() in edit.after:
                raise UserError(f"{edit.name} was made on top of {self.name}; revert that one first.")
        check_weights_unchanged(applied_edit, pipe)
        replace_stack(pipe, tuple(entry for entry in stack.edits if entry[0] is not applied_edit), applied_edit.moved_parameters())

    def check(self) -> None:
        """Check that the edit can be used; the result is cached.

        Raises:
            UserError: tensors that no edit can have, tensors that its product must not have, or none where it needs some, guidance or an
                init_timestep that cannot be used.
        """
        return self._checked

    @cached_property
    def _checked(self) -> None:
        deltas.check_deltas(self.tensors)
        if (self.info.product == "guidance") == bool(self.tensors):
            raise UserError(f"{self.name} is a {self.info.product} edit and has {len(self.tensors)} tensors; it cannot be used.")
        init_timestep = self.info.fields.get("init_timestep")
        if self.info.product == "one-step" and not (type(init_timestep) is int and init_timestep >= 0):
            raise UserError(
                f"{self.name} is a one-step edit; its field init_timestep must be a timestep, a whole number from 0, "
                f"got {str(init_timestep)[:40]}."
            )
        build_sampling(((self, 1.0),))

    @property
    def after(self) -> list[str]:
        """The digests of the edits that were applied when this one was made."""
        digests: list[str] = self.info.base.get("after", [])
        return digests

    @property
    def name(self) -> str:
        """A name for people, in one line: method and concepts."""
        concepts = CONTROL_CHARS.sub(" ", "; ".join(c["name"] for c in self.info.concepts))
        return f"{self.info.method} ({concepts if len(concepts) <= 200 else concepts[:199] + '…'})"

    def __repr__(self) -> str:
        """Return method, concepts and size; every tensor would take pages."""
        concepts = "; ".join(concept["name"] for concept in self.info.concepts)
        megabytes = sum(value.nbytes for value in self.tensors.values()) / 1e6
        return f"Edit({self.info.method}, {to_one_line(truncate_middle(concepts, 80))}, {megabytes:.1f} MB)"

    def moved_parameters(self) -> set[str]:
        """Return the names of the parameters that the edit changes."""
        return deltas.parameter_names_of(self.tensors)

    def equals(self, other: "Edit") -> bool:
        """Return whether it is the same edit, perhaps loaded once more."""
        return self is other or self.digest() == other.digest()

    def digest(self) -> str:
        """Return the content hash (16 hex digits) of tensors and base; for guidance and one-step edits of more."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        identity = {"base": self.info.base["fingerprint"], "after": self.after, "product": self.info.product}
        if self.info.product != "weights":
            identity |= {"method": self.info.method, "fields": self.info.fields, "concepts": [c["name"] for c in self.info.concepts]}
        return hashlib.sha256(self._bytes() + canonical_json(identity).encode()).hexdigest()[:16]

    def _bytes(self) -> bytes:
        """Return the content of edit.safetensors; names are sorted, so that equal edits give equal bytes."""
        return save({name: self.tensors[name].contiguous() for name in sorted(self.tensors)}, metadata={"format": "pt"})


EditSource = Edit | str | Path  # an edit, or the path of its folder


def load_edits(edits: EditSource | Sequence[EditSource]) -> tuple[Edit, ...]:
    """Return one edit or several, loaded where a path is given.

    Raises:
        UserError: as `Edit.load` and `check_distinct`.
    """
    sources = edits if isinstance(edits, Sequence) and not isinstance(edits, str) else [edits]
    return tuple(check_distinct([source if isinstance(source, Edit) else Edit.load(source) for source in sources]))


def check_distinct(edits: Sequence[Edit]) -> Sequence[Edit]:
    """Return the edits if they are all different.

    Raises:
        UserError: an edit is duplicated.
    """
    for i, edit in enumerate(edits):
        if any(edit.equals(other) for other in edits[:i]):
            raise UserError(f"{edit.name} is given twice; name every edit once.")
    return edits


@contextmanager
@check_arguments
def apply_edits(
    model: LoadedModel, edits: EditSource | Sequence[EditSource], other_base: bool = False, strength: float = 1.0
) -> Iterator[None]:
    """Apply edits in this order, and revert them on exit, also if one of them cannot be applied.

    Args:
        edits: one edit or several, or the paths of their folders.
        other_base, strength: as in `Edit.apply`.

    Raises:
        UserError: as `load_edits`, `Edit.apply` and `Edit.revert`.
    """
    loaded, strength = load_edits(edits), check_strength(strength)
    count_before = len(stack_of(model.pipe).edits)
    try:
        for edit in loaded:
            edit.apply(model.pipe, strength, other_base)
        yield
    finally:
        # ask the stack, not a list of our own: an interruption may come between the two
        for edit, _ in reversed(stack_of(model.pipe).edits[count_before:]):
            edit.revert(model.pipe)


def revert_all(pipe: Any) -> None:
    """Revert every edit in a pipeline, the last one first.

    Raises:
        UserError: as `Edit.revert`.
    """
    for edit, _ in reversed(stack_of(pipe).edits):
        edit.revert(pipe)
