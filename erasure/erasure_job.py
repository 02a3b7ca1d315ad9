"""What identifies an erasure: two with equal records give the same edit."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from erasure.concept import Concept
from erasure.edits import Edit
from erasure.families.base import DiffusionModel
from erasure.methods.base import Method, Trained
from erasure.training import fill_cache, saliency


@dataclass(frozen=True, kw_only=True)
class ErasureJob:
    """The inputs of an erasure, by digests where they are weights or files."""

    base: str  # the model's fingerprint
    after: tuple[str, ...]  # digests of the edits underneath
    concepts: tuple[Concept, ...]
    method: Method
    mask: str  # digest of the saliency mask; empty without one
    sources: Mapping[str, str]  # digests of the files that a method reads, by path
    seed: int
    compute: str  # precision, such as float32
    image_options: Mapping[str, Any]  # of DiffusionModel

    @property
    def method_name(self) -> str:
        return type(self.method).__module__.rsplit(".", 1)[-1]

    def to_record(self) -> dict[str, Any]:
        """Return what job.json holds; its hash names the run folder."""
        return {
            "task": "erase",
            "base": self.base,
            "after": list(self.after),
            "concepts": [concept.to_dict() for concept in self.concepts],
            "method": self.method_name,
            "version": self.method.version,
            "fields": asdict(self.method),
            "mask": self.mask,
            "sources": dict(self.sources),
            "seed": self.seed,
            "compute": self.compute,
            **self.image_options,
        }


def make_job(
    model: DiffusionModel, concepts: Sequence[Concept], method: Method, seed: int, after: Sequence[Edit] = (), mask: Path | None = None
) -> ErasureJob:
    """Return what identifies an erasure; reads the files that its method depends on."""
    return ErasureJob(
        base=model.fingerprint(),
        after=tuple(edit.digest() for edit in after),
        concepts=tuple(concepts),
        method=method,
        mask=saliency.mask_digest(mask) if mask else "",
        sources=fill_cache.source_digests(method.query(list(concepts), seed)) if isinstance(method, Trained) else {},
        seed=seed,
        compute=str(model.compute_dtype).removeprefix("torch."),
        image_options=model.image_options,
    )
