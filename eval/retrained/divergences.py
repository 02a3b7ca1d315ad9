"""Denoiser divergence inside an audit: how far the erasure drifted, and how far it is from models that never saw the concept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from erasure.edits import Edit
from erasure.edits.external.reading import foreign
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.storage.files import Damaged, folder_exists, is_there, read_sealed, tell, write_sealed
from erasure.storage.run import cache_folder, digest
from eval.generation import Attempt
from eval.metrics.denoiser_divergence import between

PROMPTS = 20  # of each kind, spread evenly


def oracles(model: DiffusionModel, sources: Sequence[str], targets: Sequence[str]) -> tuple[Edit, ...]:
    """Models that never saw the concept, each as an edit of `model`.

    Args:
        sources: whatever `foreign` reads.
        targets: labels of what is asked about.

    Raises:
        UserError: not readable, or the file of a reference says itself that it was trained without something else.
    """
    for source in sources:
        if (unseen := trained_without(source)) and {unseen} != set(targets):
            raise UserError(f"{source} was trained without {unseen}, this audit asks about {', '.join(targets)}; give models without that.")
    return tuple(foreign(model, source, []) for source in sources)


def trained_without(source: str) -> str:
    """What scripts/train_references.py left out, from the header of its file; empty for all other files and folders."""
    if not (source.endswith(".safetensors") and Path(source).is_file()):
        return ""
    try:
        with safe_open(source, "pt") as file:
            return (file.metadata() or {}).get("without", "")
    except SafetensorError:  # `foreign` says what is wrong with it
        return ""


def divergences(
    model: DiffusionModel, stacks: dict[str, Sequence[Edit]], target: Sequence[Attempt], kept: Sequence[Attempt]
) -> list[dict[str, Any]]:
    """One record for every two models that are worth comparing, under prompts for the concept and under others.

    Finished comparisons are kept in the cache by content: those of base and oracles are the same for every erasure of the concept.

    Args:
        stacks: the edits that make each model: base, erased, and any oracles.
        target, kept: pictures that ask for the concept and that do not; their prompts and noise are used.
    """
    oracles = [name for name in stacks if name.startswith("oracle")]
    pairs = [("base", "erased"), *((name, oracle) for oracle in oracles for name in ("base", "erased"))]
    pairs += [(a, b) for i, a in enumerate(oracles) for b in oracles[i + 1 :]]
    found, where = [], {"base": model.fingerprint(), "compute": str(model.compute), "device": model.device.type}
    for part, chosen in (("target", spread(target)), ("kept", spread(kept))):
        for first, second in pairs if chosen else []:
            asked = [(a.case.prompt, a.seed) for a in chosen]
            key = digest({**where, "models": [[e.digest() for e in stacks[name]] for name in (first, second)], "asked": asked})
            path = cache_folder() / "divergence" / f"{key}.json"
            figures = known_figures(path)
            if figures is None:
                figures = compared(model, stacks[first], stacks[second], asked)
                folder_exists(path.parent)
                write_sealed(path, figures)
            found.append({"prompts": part, "first": first, "second": second, "n": len(asked), **figures})
    return found


def known_figures(path: Path) -> dict[str, Any] | None:
    """What `compared` found before; None where that is not in the cache, or damaged, which is told."""
    if not is_there(path):
        return None
    try:
        return read_sealed(path)
    except Damaged as error:
        tell(f"{error} It is made anew.")
        return None


def compared(model: DiffusionModel, first: Sequence[Edit], second: Sequence[Edit], asked: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Both readings of the divergence with their intervals, or why there is none."""
    try:
        prompts, seeds = zip(*asked, strict=True)
        figures = between(model, first, second, prompts, seeds)
    except UserError as error:
        return {"skipped": str(error)}
    return {
        name: {direction: [float(f"{value:.6g}") for value in interval] for direction, interval in reading._asdict().items()}
        for name, reading in figures.items()
    }


def spread(attempts: Sequence[Attempt]) -> list[Attempt]:
    """PROMPTS of them with different prompts, evenly spaced."""
    distinct = list({a.case.prompt: a for a in reversed(attempts)}.values())[::-1]
    return [distinct[int(i * len(distinct) / PROMPTS)] for i in range(PROMPTS)] if len(distinct) > PROMPTS else distinct
