"""An erasure as an edit: what moved and where it came from. Applied to a plain diffusers pipeline, reverted bit-exactly, stacked."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from erasure.errors import UserError
from erasure.families.base import canonical, fingerprint
from erasure.run import read_json, write_bytes, write_json

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class EditInfo:
    """Where an edit came from: enough to make it again."""

    method: str
    fields: dict[str, Any]
    concepts: list[dict[str, Any]]
    base: dict[str, str]  # source, fingerprint, family
    seed: int
    precision: str
    versions: dict[str, str]
    cost: dict[str, int]
    influence: float  # how much the concept changed the frozen model's predictions (Bank.influence)
    format: int = FORMAT


@dataclass(frozen=True)
class Edit:
    """New values (fp16) of the moved parameters, by "unet.<name>" or "text_encoder.<name>"."""

    tensors: dict[str, Tensor]
    info: EditInfo

    @classmethod
    def load(cls, folder: str | Path) -> "Edit":
        """Read an edit folder (edit.safetensors beside edit.json), or the path of either file.

        Raises:
            UserError: a missing, truncated or foreign file.
        """
        path = Path(folder)
        path = path.parent if path.suffix in (".safetensors", ".json") else path
        if not (path / "edit.json").is_file() or not (path / "edit.safetensors").is_file():
            raise UserError(f"no edit at {folder}: expected edit.safetensors and edit.json there.")
        record = read_json(path / "edit.json")
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise UserError(f"{path / 'edit.json'} is no edit of format {FORMAT}.")
        try:
            return cls(load_file(path / "edit.safetensors"), EditInfo(**record))
        except (SafetensorError, TypeError) as error:
            raise UserError(f"{path} holds a broken edit ({error}); make or copy it again.") from error

    def save(self, folder: Path) -> None:
        """Write edit.safetensors and edit.json, the same bytes for the same edit."""
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "edit.safetensors", self._bytes())
        write_json(folder / "edit.json", asdict(self.info))

    def apply(self, pipe: Any, strength: float = 1.0, other_base: bool = False) -> "Edit":
        """Put the edit into a diffusers pipeline. Further edits stack: base + sum of s (new - base), in fp32.

        Raises:
            UserError: another base (other shapes always, other values unless `other_base`), or the edit is already applied.
        """
        stack = stack_of(pipe)
        if any(self is edit for edit, _ in stack.edits):
            raise UserError("this edit is already applied; revert it before applying it with another strength.")
        check_base(self, pipe, stack, other_base)
        stack.edits.append((self, strength))
        rebuild(pipe, stack)
        return self

    def revert(self, pipe: Any) -> None:
        """Take this edit out again; what other edits put in stays."""
        stack = stack_of(pipe)
        if not any(self is edit for edit, _ in stack.edits):
            raise UserError("this edit is not applied to that pipeline.")
        stack.edits[:] = [(edit, s) for edit, s in stack.edits if edit is not self]
        rebuild(pipe, stack)

    def digest(self) -> str:
        """Content hash: the tensors and where they came from."""
        return hashlib.sha256(self._bytes() + self.info.base["fingerprint"].encode()).hexdigest()[:16]

    def _bytes(self) -> bytes:
        """The safetensors file; names in order, so that equal edits give equal bytes."""
        return save({name: self.tensors[name].contiguous() for name in sorted(self.tensors)}, metadata={"format": "pt"})


@dataclass
class Stack:
    """The edits in a pipeline and the kept originals of everything they touch."""

    edits: list[tuple[Edit, float]] = field(default_factory=list)
    originals: dict[str, Tensor] = field(default_factory=dict)


def stack_of(pipe: Any) -> Stack:
    if not hasattr(pipe, "erasure_stack"):
        pipe.erasure_stack = Stack()
    return pipe.erasure_stack


def parameters(pipe: Any) -> dict[str, nn.Parameter]:
    modules = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    return {f"{part}.{canonical(name)}": p for part, module in modules.items() for name, p in module.named_parameters()}


def check_base(edit: Edit, pipe: Any, stack: Stack, other_base: bool) -> None:
    found = parameters(pipe)
    for name, tensor in edit.tensors.items():
        if name not in found or found[name].shape != tensor.shape:
            here = tuple(found[name].shape) if name in found else "missing"
            made_on = edit.info.base["source"]
            raise UserError(
                f"the edit does not fit this model: {name} is {here} here and {tuple(tensor.shape)} in the edit (made on {made_on})."
            )
    if other_base:
        return
    with swapped(found, stack.originals):
        here = fingerprint({"unet": pipe.unet, "text_encoder": pipe.text_encoder})
    base = edit.info.base
    if here != base["fingerprint"]:
        raise UserError(
            f"the edit was made on another base ({base['source']}, {base['fingerprint'][:12]}; this one is {here[:12]}); "
            "--other-base applies it all the same."
        )


class swapped:
    """Context in which some parameters hold other values."""

    def __init__(self, found: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
        self.found, self.values = found, values

    def __enter__(self) -> None:
        self.kept = {name: self.found[name].detach().clone() for name in self.values}
        put(self.found, self.values)

    def __exit__(self, *_: object) -> None:
        put(self.found, self.kept)


@torch.no_grad()
def put(found: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        found[name].copy_(value)


@torch.no_grad()
def rebuild(pipe: Any, stack: Stack) -> None:
    """Set every touched parameter from the kept originals and the edits now in the stack."""
    found = parameters(pipe)
    touched = {name for edit, _ in stack.edits for name in edit.tensors}
    for name in touched - stack.originals.keys():
        stack.originals[name] = found[name].detach().clone()
    for name, original in stack.originals.items():
        moves = [(edit.tensors[name], s) for edit, s in stack.edits if name in edit.tensors]
        if len(moves) == 1 and moves[0][1] == 1.0:
            found[name].copy_(moves[0][0])
            continue
        base = original.float()
        total = sum((s * (new.to(base.device).float() - base) for new, s in moves), torch.zeros_like(base))
        found[name].copy_(base + total if moves else original)
    stack.originals = {name: value for name, value in stack.originals.items() if name in touched}
