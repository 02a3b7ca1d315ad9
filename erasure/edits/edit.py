"""An erasure as an edit: what moved and where it came from. Applied to a plain diffusers pipeline, reverted bit-exactly, stacked."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from erasure.edits import deltas as forms
from erasure.edits.checks import check_base, check_edit_fits, check_strength, check_weights_unchanged
from erasure.edits.edit_json import EditInfo, read_edit_info, to_edit_record
from erasure.edits.stacking import build_sampling, stack_of
from erasure.edits.transaction import replace_stack
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.storage.run import canonical_json, write_bytes, write_json

TENSORS_FILE, RECORD_FILE = "edit.safetensors", "edit.json"
CONTROL_CHARS = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]+")


@dataclass(frozen=True)
class Edit:
    """What an edit puts in place, by "unet.<name>" or "text_encoder.<name>", in the forms of erasure.edits.deltas, and its origin."""

    tensors: dict[str, Tensor]
    info: EditInfo

    @classmethod
    def load(cls, folder: str | Path) -> "Edit":
        """Read an edit folder (edit.safetensors beside edit.json), or the path of either file.

        Raises:
            UserError: a missing, truncated, changed or foreign file, a record or a tensor that no edit can have.
        """
        if not isinstance(folder, str | PathLike):
            raise UserError(f"an edit is loaded from the path of its folder, got a value of type {type(folder).__name__}.")
        path = Path(folder)
        edit_folder = path.parent if path.name in (TENSORS_FILE, RECORD_FILE) and not path.is_dir() else path
        try:
            if missing := [name for name in (TENSORS_FILE, RECORD_FILE) if not (edit_folder / name).is_file()]:
                raise UserError(f"no edit at {str(folder)[:300]}: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.")
            info, recorded = read_edit_info(edit_folder / RECORD_FILE)
            with (edit_folder / TENSORS_FILE).open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
            if actual != recorded:
                raise UserError(
                    f"{edit_folder} holds a broken edit: {TENSORS_FILE} is not the file that {RECORD_FILE} was written for (sha256 {actual[:12]}, "
                    f"recorded {recorded[:12]}); make or copy both again."
                )
            edit = cls(load_file(edit_folder / TENSORS_FILE), info)
        except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{str(edit_folder)[:300]} holds a broken edit ({str(error)[:200]}); make or copy it again.") from error
        edit.check()
        return edit

    def save(self, folder: str | Path) -> None:
        """Write edit.safetensors and edit.json, the same bytes for the same edit.

        edit.json comes second and holds the digest of the first, so that `load` refuses what a kill between the two leaves behind.

        Raises:
            UserError: NaN, Inf, or anything else that `load` would refuse; nothing is written then.
        """
        self.check()
        folder, tensors = Path(folder), self._bytes()
        record = to_edit_record(self.info, hashlib.sha256(tensors).hexdigest(), folder / RECORD_FILE)
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / TENSORS_FILE, tensors)
        write_json(folder / RECORD_FILE, record)

    def apply(self, pipe: Any, strength: float = 1.0, other_base: bool = False) -> "Edit":
        """Put the edit into a diffusers pipeline. Further edits stack: base + sum of s (new - base), in fp32, then zeroed entries.

        It happens whole or not at all (erasure.edits.transaction). An edit made on top of others counts from what they had put in place,
        and needs them in the stack at strength 1. A LoRA may be loaded, but not fused.

        Args:
            strength: s, from -10 to 10; 0 is the base, 1 the edit as it was made.

        Raises:
            UserError: another base (other shapes always, other values unless `other_base`), an edit missing underneath, an edit that is
                applied already, weights that something else changed since the edits in place went in.
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
        """Take this edit out again, whole or not at all; what other edits put in stays, and so does a loaded LoRA.

        What it moved holds the base bit for bit. The other weights are not touched: whatever fusing and unfusing a LoRA rounded off stays
        off. The pipeline may have moved to another device, or been cast: then the base comes back in that dtype.

        Raises:
            UserError: it is not applied, another edit in the stack was made on top of it, something else changed its weights since, or the
                pipeline was cast to a narrower dtype and back, and the digits of its other weights with it.
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
        """
        Raises:
            UserError: tensors that no edit can have, too many or none for its product, guidance or a start that cannot be used.
        """
        return self._checked

    @cached_property
    def _checked(self) -> None:
        forms.check_deltas(self.tensors)
        if (self.info.product == "guidance") == bool(self.tensors):
            raise UserError(f"{self.name} is a {self.info.product} edit and has {len(self.tensors)} tensors; it cannot be used.")
        if self.info.product == "one-step" and not (type(start := self.info.fields.get("start")) is int and 0 <= start < 1000):
            raise UserError(f"{self.name} is a one-step edit; its field start must be a timestep from 0 to 999, got {str(start)[:40]}.")
        build_sampling(((self, 1.0),))

    @property
    def after(self) -> list[str]:
        """Digests of the edits that were in place when this one was made."""
        return self.info.base.get("after", [])

    @property
    def name(self) -> str:
        """What people may call it, in one line: method and concepts."""
        concepts = CONTROL_CHARS.sub(" ", "; ".join(c["name"] for c in self.info.concepts))
        return f"{self.info.method} ({concepts if len(concepts) <= 200 else concepts[:199] + '…'})"

    def moved_parameters(self) -> set[str]:
        """Names of the parameters it touches."""
        return forms.parameter_names_of(self.tensors)

    def equals(self, other: "Edit") -> bool:
        """Whether it is the same edit, perhaps loaded once more."""
        return self is other or self.digest() == other.digest()

    def digest(self) -> str:
        """Content hash: the tensors, where they came from, and for edits without tensors what they do instead."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        identity = {"base": self.info.base["fingerprint"], "after": self.after, "product": self.info.product}
        if self.info.product != "weights":
            identity |= {"method": self.info.method, "fields": self.info.fields, "concepts": [c["name"] for c in self.info.concepts]}
        return hashlib.sha256(self._bytes() + canonical_json(identity).encode()).hexdigest()[:16]

    def _bytes(self) -> bytes:
        """The safetensors file; names in order, so that equal edits give equal bytes."""
        return save({name: self.tensors[name].contiguous() for name in sorted(self.tensors)}, metadata={"format": "pt"})


def check_distinct(edits: Sequence[Edit]) -> Sequence[Edit]:
    """The edits themselves.

    Raises:
        UserError: one of them is given twice.
    """
    for i, edit in enumerate(edits):
        if any(edit.equals(other) for other in edits[:i]):
            raise UserError(f"{edit.name} is given twice; name every edit once.")
    return edits


@contextmanager
def apply_edits(model: DiffusionModel, edits: Sequence[Edit], other_base: bool = False, strength: float = 1.0) -> Iterator[None]:
    """Edits in place, in this order, and out again on exit; also if one of them cannot be applied."""
    strength, count_before = check_strength(strength), len(stack_of(model.pipe).edits)
    try:
        for edit in edits:
            edit.apply(model.pipe, strength, other_base)
        yield
    finally:
        # what the stack says, not what was noted here: an interruption may come between the two
        for edit, _ in reversed(stack_of(model.pipe).edits[count_before:]):
            edit.revert(model.pipe)


def revert_all(pipe: Any) -> None:
    """Take every edit out, the last one first.

    Raises:
        UserError: as Edit.revert.
    """
    for edit, _ in reversed(stack_of(pipe).edits):
        edit.revert(pipe)
