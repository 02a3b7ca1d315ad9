"""An erasure as an edit: what moved and where it came from. Applied to a plain diffusers pipeline, reverted bit-exactly, stacked."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from erasure import forms
from erasure.errors import UserError
from erasure.families.base import Sampling, canonical, fingerprint
from erasure.guidance import attach, guidance_of
from erasure.run import canonical_json, read_json, write_bytes, write_json

FORMAT = 2


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
    known: list[dict[str, Any]]  # how much each concept moves the frozen model's predictions, beside nonsense words (erasure.known)
    notes: dict[str, Any]  # figures of the method about itself
    format: int = FORMAT


@dataclass(frozen=True)
class Edit:
    """What an edit puts in place, by "unet.<name>" or "text_encoder.<name>", in the forms of erasure.forms, and its origin."""

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
        """Put the edit into a diffusers pipeline. Further edits stack: base + sum of s (new - base), in fp32, then zeroed entries.

        An edit made on top of others counts from what they had put in place, and needs them in the stack at strength 1.

        Raises:
            UserError: another base (other shapes always, other values unless `other_base`), an edit missing underneath, or the edit is
                already applied.
        """
        stack = stack_of(pipe)
        if any(self is edit for edit, _ in stack.edits):
            raise UserError("this edit is already applied; revert it before applying it with another strength.")
        check_base(self, pipe, stack, other_base)
        stack.edits.append((self, strength))
        rebuild(pipe, stack)
        return self

    def revert(self, pipe: Any) -> None:
        """Take this edit out again; what other edits put in stays.

        Raises:
            UserError: it is not applied, or another edit in the stack was made on top of it.
        """
        stack = stack_of(pipe)
        if not any(self is edit for edit, _ in stack.edits):
            raise UserError("this edit is not applied to that pipeline.")
        for edit, _ in stack.edits:
            if edit is not self and self.digest() in edit.after:
                raise UserError(f"{edit.name} was made on top of {self.name}; revert that one first.")
        stack.edits[:] = [(edit, s) for edit, s in stack.edits if edit is not self]
        rebuild(pipe, stack)

    @property
    def after(self) -> list[str]:
        """Digests of the edits that were in place when this one was made."""
        return self.info.base.get("after", [])

    @property
    def name(self) -> str:
        """What people may call it: method and concepts."""
        return f"{self.info.method} ({'; '.join(c['name'] for c in self.info.concepts)})"

    def moved(self) -> set[str]:
        """Names of the parameters it touches."""
        return forms.names(self.tensors)

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


@dataclass
class Stack:
    """The edits in a pipeline and the kept originals of everything they touch."""

    edits: list[tuple[Edit, float]] = field(default_factory=list)
    originals: dict[str, Tensor] = field(default_factory=dict)
    detach: Callable[[], None] | None = None  # takes guidance out of a plain pipeline


def stack_of(pipe: Any) -> Stack:
    if not hasattr(pipe, "erasure_stack"):
        pipe.erasure_stack = Stack()
    return pipe.erasure_stack


def parameters(pipe: Any) -> dict[str, nn.Parameter]:
    modules = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    return {f"{part}.{canonical(name)}": p for part, module in modules.items() for name, p in module.named_parameters()}


def check_base(edit: Edit, pipe: Any, stack: Stack, other_base: bool) -> None:
    found = parameters(pipe)
    for name in sorted(edit.moved()):
        shape = tuple(found[name].shape) if name in found else None
        if shape is None or not forms.fits(edit.tensors, name, shape):
            raise UserError(
                f"the edit does not fit this model: {name} is {shape or 'missing'} here and another size in the edit "
                f"(made on {edit.info.base['source']})."
            )
    present = {below.digest() for below, strength in stack.edits if strength == 1.0}
    if missing := [digest for digest in edit.after if digest not in present]:
        raise UserError(f"{edit.name} was made on top of edit {', '.join(missing)}; apply that one first, at strength 1.")
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
    """Set every touched parameter from the kept originals and the edits now in the stack, and how the pipeline samples."""
    found = parameters(pipe)
    touched = {name for edit, _ in stack.edits for name in edit.moved()}
    for name in touched - stack.originals.keys():
        stack.originals[name] = found[name].detach().clone()
    for name, original in stack.originals.items():
        found[name].copy_(stacked(name, original, stack.edits))
    stack.originals = {name: value for name, value in stack.originals.items() if name in touched}
    guidance, one_step = [], None
    for edit, strength in stack.edits:
        if edit.info.product == "guidance":
            guidance.append(guidance_of(edit.info.method, edit.info.fields, edit.info.concepts, strength))
        elif edit.info.product == "one-step":
            one_step = int(edit.info.fields["start"])
    sample_as(pipe, stack, Sampling(tuple(guidance), one_step))


def stacked(name: str, original: Tensor, edits: list[tuple[Edit, float]]) -> Tensor:
    """One parameter under a stack: each edit adds s (new - what it was made on); zeroed entries come last, so that two edits that zero
    the same entry leave zero."""
    mine = [(edit, s) for edit, s in edits if name in edit.moved()]
    if not mine:
        return original
    if len(mine) == 1 and mine[0][1] == 1.0:
        return forms.new(mine[0][0].tensors, name, original)
    base = original.float()
    value, keep = base.clone(), torch.ones_like(base)
    for edit, s in mine:
        if forms.zeroes(edit.tensors, name):
            keep *= 1 - s * (forms.new(edit.tensors, name, torch.ones_like(base)) == 0)
            continue
        below = [(other, 1.0) for other, _ in edits if other.digest() in edit.after] if edit.after else []
        under = stacked(name, original, below).float()
        value += s * (forms.new(edit.tensors, name, under).float() - under)
    return value * keep


def sample_as(pipe: Any, stack: Stack, sampling: Sampling) -> None:
    """Our own sampler reads `erasure_sampling`; a plain pipeline gets a hook on its UNet."""
    pipe.erasure_sampling = sampling
    if stack.detach:
        stack.detach()
        stack.detach = None
    if sampling.guidance and not getattr(pipe, "erasure_owned", False):
        stack.detach = attach(pipe, sampling.guidance)
