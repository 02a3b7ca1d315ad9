"""Answer sets: pictures that another tool drew, counted with a suite's judges (UnlearnCanvas: Zhang et al., arXiv:2402.11846)."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from erasure.concept import Kind
from erasure.config.seeds import LARGEST
from erasure.errors import UserError
from erasure.photos import files, opened, plain
from erasure.storage.run import Run
from eval.attack_runs.runner import label
from eval.audit import WRITES, asks, buildable
from eval.generation import Attempt, read_png, save_png
from eval.judges.base import MissingWeights
from eval.metrics.image_distances import kept_distance, picture_distances
from eval.scoring.attack_rates import under_attack
from eval.scoring.counting import counted
from eval.scoring.judge_scores import errors_of, judge, judges_of, samples_digest
from eval.scoring.published import as_published
from eval.suites.cases import Case
from eval.suites.suite import Suite

SUFFIXES = (".jpg", ".jpeg", ".png")
NAME = re.compile(r"(?P<cell>.+)_seed(?P<seed>[0-9]{1,19})")  # {style}_{object}_seed{seed}
TIER = "answers"  # of a result that no tier drew
FEW = 5  # named in an error
Cell = tuple[str, str]  # style, object


class Answers(NamedTuple):
    """The pictures of one model."""

    files: dict[tuple[Cell, int], Path]  # by cell and seed
    sizes: dict[Path, tuple[int, int]]  # width and height in pixels
    digest: str  # of names and bytes


def count_answers(
    folder: Path, suite: Suite, concept: str, kind: Kind, out: Path, base: Path | None = None, fresh: bool = False
) -> dict[str, Any]:
    """Judge and count a folder of pictures named {style}_{object}_seed{seed}; returns the result that is also in out/result.json.

    `out` gets the pictures as PNG, readings and samples.jsonl, as any audit. Without the base's pictures nothing is paired, and what needs
    them is unmeasured.

    Args:
        concept: what is said to be erased, a label of the suite or its words.
        base: the base's pictures, under the same names.

    Raises:
        UserError: a suite without a grid, another job in `out`, names that fit no cell, cells without pictures, or unreadable pictures.
    """
    if suite.listed:
        raise UserError(f"suite {suite.name} has no styles and objects, by which answers are named; choose one with a grid.")
    buildable(suite)
    axis, target = suite.find(concept)
    sets = {"base": read_answers(base, suite)} if base else {}
    sets["erased"] = read_answers(folder, suite)
    if base:
        _same(folder, sets["erased"], base, sets["base"])
    judges, missing = judges_of(suite)
    run = Run(out, job_record(suite, axis, sets), fresh, WRITES)
    run.begin()
    todo = attempts_of(suite, sets["erased"])
    unpack(sets, todo, out / "images")
    images = described(sets)
    rows = judge(todo, tuple(sets), judges, out)
    comparable = base is not None and len(images["sizes"]) == 1
    apart: dict[str, Any] = {}
    if comparable:
        parts = {part: [a for a in todo if (label(a.case, axis) == target) == (part == "target")] for part in ("kept", "target")}
        try:
            apart = picture_distances(parts, tuple(sets), suite.features, out / "images")
        except MissingWeights as error:
            missing["features"] = str(error)
    result: dict[str, Any] = {
        "tier": TIER,
        **under_attack(counted(rows, suite, axis, [target]), []),
        "job": run.job,
        "samples_sha256": samples_digest(out),
        "images": images,
        "attacks": [],
        "distance": kept_distance([a for a in todo if label(a.case, axis) != target], out / "images") if comparable else None,
        "distances": apart,
        "divergence": [],
        "judges": {name: j.identity() for name, j in judges.items()},
        "gates": [asdict(gate) for gate in suite.gates],
        **({"suite_file": suite.file} if suite.file else {}),
        "missing": missing,
        "errors": errors_of(suite, axis, [target], judges[axis]) if axis in judges else None,
        "edits": [_edit(concept, kind, folder, base)],
        "overlap": [],
    }
    result["published"] = as_published(suite, rows, result)
    run.finish(result)
    return result


def read_answers(folder: Path, suite: Suite) -> Answers:
    """Which picture of a folder belongs to which cell and seed. Labels contain underscores, so longer styles are tried first.

    Raises:
        UserError: no such folder, a name that fits no cell, two pictures of one cell and seed, cells without a picture, a picture that is
            broken or too large to be unpacked.
    """
    if not folder.is_dir():
        raise UserError(f"no folder of pictures at {folder}.")
    cells = {f"{_said(s)}_{_said(o)}": (s, o) for s in sorted(suite.styles, key=len) for o in sorted(suite.objects, key=len)}
    found: dict[tuple[Cell, int], Path] = {}
    content = hashlib.sha256()
    for path in files(folder, SUFFIXES):
        match = NAME.fullmatch(path.stem)
        cell = cells.get(match["cell"]) if match else None
        if not match or not cell:
            raise UserError(
                f"{path} fits no cell of suite {suite.name}; pictures are named {{style}}_{{object}}_seed{{seed}}, as {_example(suite)}."
            )
        at = cell, int(match["seed"])
        if at[1] > LARGEST:
            raise UserError(f"{path}: a seed is a whole number from 0 to {LARGEST} (2^63 - 1), got {at[1]}.")
        if at in found:
            raise UserError(f"{path} and {found[at].name} are both {cell[0]}, {cell[1]}, seed {at[1]}; keep one of them.")
        found[at] = path
        content.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest() + (b"" if plain(path) else b"as seen"))
    filled, every = {cell for cell, _ in found}, [(s, o) for s in suite.styles for o in suite.objects]
    if empty := [f"{_said(s)}_{_said(o)}" for s, o in every if (s, o) not in filled]:
        raise UserError(f"{folder} has no picture of {len(empty)} of {len(every)} cells: {_few(empty)}.")
    return Answers(found, {path: opened(path).size for path in found.values()}, content.hexdigest()[:16])


def attempts_of(suite: Suite, answers: Answers) -> list[Attempt]:
    """The pictures as the suite would have asked for them, in its order; the index of a picture is the place of its seed among all."""
    seeds = {seed: i for i, seed in enumerate(sorted({seed for _, seed in answers.files}))}
    found = []
    for style, style_words in suite.styles.items():
        for thing, thing_words in suite.objects.items():
            mine = sorted(seed for cell, seed in answers.files if cell == (style, thing))
            case = Case(style, thing, suite.template.format(style=style_words, object=thing_words), len(mine))
            found += [Attempt(case, seeds[seed], seed) for seed in mine]
    return sorted(found, key=lambda a: a.index)


def unpack(sets: dict[str, Answers], todo: Sequence[Attempt], images: Path) -> None:
    """Write every picture as PNG where an audit keeps it."""
    for model, answers in sets.items():
        for a in todo:
            place = images / model / a.name
            if read_png(place) is None:
                picture = opened(answers.files[(a.case.style, a.case.object), a.seed])
                save_png(torch.from_numpy(np.array(picture)).permute(2, 0, 1), place)


def described(sets: dict[str, Answers]) -> dict[str, Any]:
    """What the files are like: number of JPEGs, sizes, fewest and most pictures a cell, seeds."""
    paths = [path for answers in sets.values() for path in answers.files.values()]
    cells = Counter(cell for cell, _ in sets["erased"].files)
    return {
        "jpeg": sum(path.suffix.lower() != ".png" for path in paths),
        "n": len(paths),
        "sizes": [f"{w} x {h}" for w, h in sorted({size for answers in sets.values() for size in answers.sizes.values()})],
        "per_cell": [min(cells.values()), max(cells.values())],
        "seeds": sorted({seed for _, seed in sets["erased"].files}),
    }


def job_record(suite: Suite, axis: str, sets: dict[str, Answers]) -> dict[str, Any]:
    """What identifies the count of an answer set."""
    return {
        "task": "audit",
        "base": sets["base"].digest if "base" in sets else "",
        "edits": [sets["erased"].digest],
        "suite": suite.name,
        "suite_version": suite.version,
        "suite_asks": asks(suite),
        "axis": axis,
        "tier": TIER,
        "strength": 1.0,
        "compute": "elsewhere",
    }


def _edit(concept: str, kind: Kind, folder: Path, base: Path | None) -> dict[str, Any]:
    """What stands for the edit that nobody here has seen."""
    return {
        "method": "answers",
        "fields": {},
        "concepts": [{"name": concept, "kind": kind}],
        "seed": 0,
        "cost": {},
        "base": {"source": base.name if base else ""},
        "known": [],
        "notes": {"folder": folder.name},
        "product": "pictures",
    }


def _same(folder: Path, erased: Answers, base_folder: Path, base: Answers) -> None:
    """Complains about pictures that one folder has and the other lacks: a rate of other cells is no comparison."""
    for where, lacking in ((base_folder, erased.files.keys() - base.files.keys()), (folder, base.files.keys() - erased.files.keys())):
        if lacking:
            names = [f"{s}_{o}_seed{seed}" for (s, o), seed in sorted(lacking)]
            raise UserError(f"{where} lacks {len(names)} pictures that the other folder has: {_few(names)}.")


def _few(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:FEW]) + (f" and {len(every) - FEW} more" if len(every) > FEW else "")


def _said(name: str) -> str:
    return name.replace(" ", "_")


def _example(suite: Suite) -> str:
    return f"{_said(next(iter(suite.styles)))}_{_said(next(iter(suite.objects)))}_seed{(suite.seeds or (0,))[0]}.png"
