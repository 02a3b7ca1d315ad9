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

from erasure.concept import ConceptKind
from erasure.config.seeds import MAX_SEED
from erasure.errors import UserError
from erasure.storage.run import Run
from erasure.user_images import is_plain_image, list_files, load_image
from eval.attack_runs.runner import label_of
from eval.audit import OUTPUT_FILES, check_buildable, suite_digest
from eval.generation import Sample, read_png, save_png
from eval.judges.base import MissingWeights
from eval.metrics.image_distances import image_set_distances, retained_distance
from eval.scoring.attack_rates import add_attacked_rate
from eval.scoring.counting import count_rates
from eval.scoring.judge_scores import available_judges, judge_errors, samples_digest, score_samples
from eval.scoring.published import published_figures
from eval.suites.cases import Case
from eval.suites.suite import Suite

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
FILE_NAME = re.compile(r"(?P<cell>.+)_seed(?P<seed>[0-9]{1,19})")  # {style}_{object}_seed{seed}
EXTERNAL_TIER = "answers"  # of a result that no tier drew
MAX_NAMED = 5  # named in an error
Cell = tuple[str, str]  # style, object


class ExternalImages(NamedTuple):
    """The pictures of one model."""

    files: dict[tuple[Cell, int], Path]  # by cell and seed
    sizes: dict[Path, tuple[int, int]]  # width and height in pixels
    digest: str  # of names and bytes


def audit_external_images(
    folder: Path, suite: Suite, concept: str, kind: ConceptKind, out: Path, base: Path | None = None, fresh: bool = False
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
    if suite.prompt_list:
        raise UserError(f"suite {suite.name} has no styles and objects, by which answers are named; choose one with a grid.")
    check_buildable(suite)
    axis, target = suite.find_concept(concept)
    images_by_model = {"base": read_external_images(base, suite)} if base else {}
    images_by_model["erased"] = read_external_images(folder, suite)
    if base:
        _check_same_cells(folder, images_by_model["erased"], base, images_by_model["base"])
    judges, missing = available_judges(suite)
    run = Run(out, external_job_record(suite, axis, images_by_model), fresh, OUTPUT_FILES)
    run.begin()
    samples = external_samples(suite, images_by_model["erased"])
    convert_to_png(images_by_model, samples, out / "images")
    summary = summarize_images(images_by_model)
    rows = score_samples(samples, tuple(images_by_model), judges, out)
    comparable = base is not None and len(summary["sizes"]) == 1
    distances: dict[str, Any] = {}
    if comparable:
        parts = {part: [a for a in samples if (label_of(a.case, axis) == target) == (part == "target")] for part in ("kept", "target")}
        try:
            distances = image_set_distances(parts, tuple(images_by_model), suite.features, out / "images")
        except MissingWeights as error:
            missing["features"] = str(error)
    result: dict[str, Any] = {
        "tier": EXTERNAL_TIER,
        **add_attacked_rate(count_rates(rows, suite, axis, [target]), []),
        "job": run.job,
        "samples_sha256": samples_digest(out),
        "images": summary,
        "attacks": [],
        "distance": retained_distance([a for a in samples if label_of(a.case, axis) != target], out / "images") if comparable else None,
        "distances": distances,
        "divergence": [],
        "judges": {name: j.identity() for name, j in judges.items()},
        "gates": [asdict(gate) for gate in suite.gates],
        **({"suite_file": suite.file} if suite.file else {}),
        "missing": missing,
        "errors": judge_errors(suite, axis, [target], judges[axis]) if axis in judges else None,
        "edits": [_external_edit_record(concept, kind, folder, base)],
        "overlap": [],
    }
    result["published"] = published_figures(suite, rows, result)
    run.finish(result)
    return result


def read_external_images(folder: Path, suite: Suite) -> ExternalImages:
    """Which picture of a folder belongs to which cell and seed. Labels contain underscores, so longer styles are tried first.

    Raises:
        UserError: no such folder, a name that fits no cell, two pictures of one cell and seed, cells without a picture, a picture that is
            broken or too large to be unpacked.
    """
    if not folder.is_dir():
        raise UserError(f"no folder of pictures at {folder}.")
    cells = {f"{_underscored(s)}_{_underscored(o)}": (s, o) for s in sorted(suite.styles, key=len) for o in sorted(suite.objects, key=len)}
    files_by_seed: dict[tuple[Cell, int], Path] = {}
    content = hashlib.sha256()
    for path in list_files(folder, IMAGE_SUFFIXES):
        match = FILE_NAME.fullmatch(path.stem)
        cell = cells.get(match["cell"]) if match else None
        if not match or not cell:
            raise UserError(
                f"{path} fits no cell of suite {suite.name}; pictures are named {{style}}_{{object}}_seed{{seed}}, as {_example_file_name(suite)}."
            )
        cell_and_seed = cell, int(match["seed"])
        if cell_and_seed[1] > MAX_SEED:
            raise UserError(f"{path}: a seed is a whole number from 0 to {MAX_SEED} (2^63 - 1), got {cell_and_seed[1]}.")
        if cell_and_seed in files_by_seed:
            raise UserError(
                f"{path} and {files_by_seed[cell_and_seed].name} are both {cell[0]}, {cell[1]}, seed {cell_and_seed[1]}; keep one of them."
            )
        files_by_seed[cell_and_seed] = path
        content.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest() + (b"" if is_plain_image(path) else b"as seen"))
    filled_cells, all_cells = {cell for cell, _ in files_by_seed}, [(s, o) for s in suite.styles for o in suite.objects]
    if empty := [f"{_underscored(s)}_{_underscored(o)}" for s, o in all_cells if (s, o) not in filled_cells]:
        raise UserError(f"{folder} has no picture of {len(empty)} of {len(all_cells)} cells: {_shorten_list(empty)}.")
    return ExternalImages(files_by_seed, {path: load_image(path).size for path in files_by_seed.values()}, content.hexdigest()[:16])


def external_samples(suite: Suite, erased_images: ExternalImages) -> list[Sample]:
    """The pictures as the suite would have asked for them, in its order; the index of a picture is the place of its seed among all."""
    seeds = {seed: i for i, seed in enumerate(sorted({seed for _, seed in erased_images.files}))}
    samples = []
    for style, style_words in suite.styles.items():
        for object_label, object_words in suite.objects.items():
            cell_seeds = sorted(seed for cell, seed in erased_images.files if cell == (style, object_label))
            case = Case(style, object_label, suite.template.format(style=style_words, object=object_words), len(cell_seeds))
            samples += [Sample(case, seeds[seed], seed) for seed in cell_seeds]
    return sorted(samples, key=lambda a: a.index)


def convert_to_png(images_by_model: dict[str, ExternalImages], samples: Sequence[Sample], out_folder: Path) -> None:
    """Write every picture as PNG where an audit keeps it."""
    for model, model_images in images_by_model.items():
        for a in samples:
            path = out_folder / model / a.file_name
            if read_png(path) is None:
                image = load_image(model_images.files[(a.case.style, a.case.object), a.seed])
                save_png(torch.from_numpy(np.array(image)).permute(2, 0, 1), path)


def summarize_images(images_by_model: dict[str, ExternalImages]) -> dict[str, Any]:
    """What the files are like: number of JPEGs, sizes, fewest and most pictures a cell, seeds."""
    paths = [path for model_images in images_by_model.values() for path in model_images.files.values()]
    cells = Counter(cell for cell, _ in images_by_model["erased"].files)
    return {
        "jpeg": sum(path.suffix.lower() != ".png" for path in paths),
        "n": len(paths),
        "sizes": [
            f"{w} x {h}" for w, h in sorted({size for model_images in images_by_model.values() for size in model_images.sizes.values()})
        ],
        "per_cell": [min(cells.values()), max(cells.values())],
        "seeds": sorted({seed for _, seed in images_by_model["erased"].files}),
    }


def external_job_record(suite: Suite, axis: str, images_by_model: dict[str, ExternalImages]) -> dict[str, Any]:
    """What identifies the count of an answer set."""
    return {
        "task": "audit",
        "base": images_by_model["base"].digest if "base" in images_by_model else "",
        "edits": [images_by_model["erased"].digest],
        "suite": suite.name,
        "suite_version": suite.version,
        "suite_asks": suite_digest(suite),
        "axis": axis,
        "tier": EXTERNAL_TIER,
        "strength": 1.0,
        "compute": "elsewhere",
    }


def _external_edit_record(concept: str, kind: ConceptKind, folder: Path, base: Path | None) -> dict[str, Any]:
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


def _check_same_cells(folder: Path, erased: ExternalImages, base_folder: Path, base: ExternalImages) -> None:
    """Complains about pictures that one folder has and the other lacks: a rate of other cells is no comparison."""
    for incomplete_folder, missing in (
        (base_folder, erased.files.keys() - base.files.keys()),
        (folder, base.files.keys() - erased.files.keys()),
    ):
        if missing:
            names = [f"{s}_{o}_seed{seed}" for (s, o), seed in sorted(missing)]
            raise UserError(f"{incomplete_folder} lacks {len(names)} pictures that the other folder has: {_shorten_list(names)}.")


def _shorten_list(names: Iterable[str]) -> str:
    listing = list(names)
    return ", ".join(listing[:MAX_NAMED]) + (f" and {len(listing) - MAX_NAMED} more" if len(listing) > MAX_NAMED else "")


def _underscored(name: str) -> str:
    return name.replace(" ", "_")


def _example_file_name(suite: Suite) -> str:
    return f"{_underscored(next(iter(suite.styles)))}_{_underscored(next(iter(suite.objects)))}_seed{(suite.seeds or (0,))[0]}.png"
