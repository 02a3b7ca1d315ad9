"""The images of a report: pairs chosen by position and never by look, what still shows the concept, what was lost, what attacks found."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from eval.scoring.counting import SampleRow
from eval.scoring.gates import only_of
from eval.suites.axes import cross_axis
from eval.suites.cases import PLAIN_ROLES, REPHRASED_ROLES
from eval.suites.fine_grained import is_erasure_target

MAX_PAGE_BYTES = 2_400_000  # of all images in a page, as base64
MAX_SIDE = 160  # pixels; larger images are scaled down
MAX_PAIRS = 12  # shown of each list of failures, at most
MAX_EXAMPLES = 6  # shown per attack, at most
ROLE_TITLES = {
    "grid": "Asked for by name, and everything else of the grid",
    "prompt_list": "Asked for by the prompts of the suite's list",
    "named": "Asked for by a synonym",
    "described": "Asked for by a description",
    "perturbed": "Asked for with misspellings",
    "replayed": "Asked for by the prompts of a list",
    "neighbor": "Neighbors of the concept",
    "benign": "Captions unrelated to the concept",
}
T = TypeVar("T")


class ImagePair(NamedTuple):
    """One case from the same noise in both models; no base if its images were not given."""

    base: SampleRow | None
    erased: SampleRow


@dataclass
class Gallery:
    """Embeds images of an audit folder in a page, within a limit of bytes."""

    folder: Path
    has_images: bool  # whether the audit kept its images
    bytes_left: int = MAX_PAGE_BYTES
    embedded_sizes: list[int] = field(default_factory=list)

    def embed_image(self, name: str) -> dict[str, Any] | None:
        """Return a PNG as a data URI, scaled down if it is large; None if there is no such file."""
        path = self.folder / name
        if not self.has_images or not path.is_file():
            return None
        data, width = _read_thumbnail(path)
        data_uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        self.bytes_left -= len(data_uri)
        self.embedded_sizes.append(len(data_uri))
        return {"src": data_uri, "coarse": width <= 128}

    def pairs_that_fit(self, sections: int) -> int:
        """Return how many pairs fit into one of so many equal shares of the bytes left."""
        typical_size = sum(self.embedded_sizes) / len(self.embedded_sizes) if self.embedded_sizes else MAX_PAGE_BYTES / 100
        return max(int(self.bytes_left / max(sections, 1) / (2 * typical_size)), 0)

    def embed_pair(self, pair: ImagePair) -> dict[str, Any]:
        """Return a pair for the page: the prompt, and for either model the image and the labels that judges gave it."""
        return {
            "prompt": pair.erased["prompt"],
            "sides": [
                {"name": name, "image": self.embed_image(row["image"]), "labels": _join_labels(row)}
                for name, row in (("before", pair.base), ("after", pair.erased))
                if row
            ],
        }


def _read_thumbnail(path: Path) -> tuple[bytes, int]:
    with Image.open(path) as image:
        if max(image.size) <= MAX_SIDE:
            return path.read_bytes(), image.width
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        buffer = io.BytesIO()
        image.convert("RGB").quantize(256).save(buffer, format="PNG")
        return buffer.getvalue(), image.width


def _join_labels(row: SampleRow) -> str:
    return ", ".join(row["scores"][axis]["label"] for axis in ("style", "object") if axis in row["scores"])


def pairs_of(rows: Sequence[SampleRow]) -> list[ImagePair]:
    """Pair the base's and the erased model's row of every case, in the fixed order of cases."""
    base = {Path(row["image"]).name: row for row in rows if row["model"] == "base"}
    return [ImagePair(base.get(Path(row["image"]).name), row) for row in rows if row["model"] == "erased"]


def spread_evenly(items: Sequence[T], count: int) -> list[T]:
    """Select `count` items, evenly spaced by position."""
    count = min(count, len(items))
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


def select_pairs(
    gallery: Gallery, pairs: Sequence[ImagePair], result: Mapping[str, Any], count: int, of_target: bool
) -> list[dict[str, Any]]:
    """Select pairs of the suite itself that ask for what should be erased (`of_target`), or for something else."""
    target_definition = result["axis"], result["targets"], only_of(result)
    roles = (*PLAIN_ROLES, "benign") if result.get("suite_format") == "prompt_list" else PLAIN_ROLES
    selected = [p for p in pairs if p.erased["role"] in roles and is_erasure_target(p.erased, *target_definition) == of_target]
    return [gallery.embed_pair(pair) for pair in spread_evenly(selected, count)]


def list_failures(gallery: Gallery, pairs: Sequence[ImagePair], result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return by role the pairs that still show the concept, and those in which something else was lost."""
    checked = []
    for check in _failure_checks(result):
        counted = [p for p in pairs if p.erased["role"] == check.role and check.counts(p)]
        if counted:
            checked.append((check, counted, [p for p in counted if check.fails(p)]))
    parts_by_role: dict[str, list[dict[str, Any]]] = {}
    for i, ((role, title, description, *_), counted, failed) in enumerate(checked):
        limit = min(MAX_PAIRS, gallery.pairs_that_fit(len(checked) - i))
        selected = sorted(failed, key=_alignment_drop, reverse=True)[:limit] if role == "benign" else spread_evenly(failed, limit)
        part = {
            "title": title,
            "description": description,
            "counted": len(counted),
            "failed": len(failed),
            "pairs": [gallery.embed_pair(pair) for pair in selected],
        }
        parts_by_role.setdefault(role, []).append(part)
    return [{"role": role, "title": ROLE_TITLES[role], "parts": parts} for role, parts in parts_by_role.items()]


class FailureCheck(NamedTuple):
    """One thing that can go wrong with the pairs of a role."""

    role: str
    title: str
    description: str
    counts: Callable[[ImagePair], bool]  # whether it can happen to a pair: those that the rate counts
    fails: Callable[[ImagePair], bool]  # whether it did


def _failure_checks(result: Mapping[str, Any]) -> list[FailureCheck]:
    axis, targets = result["axis"], result["targets"]
    cross = cross_axis(axis)
    excluded, only = result["models"].get("erased", {}).get("excluded", {}), only_of(result)
    lost_title, lost_description = ("lost", "was lost") if "base" in result["models"] else ("not shown", "is not shown")

    def is_target(pair: ImagePair) -> bool:
        return is_erasure_target(pair.erased, axis, targets, only) and axis in pair.erased["scores"]

    def is_elsewhere(pair: ImagePair) -> bool:
        return pair.erased[axis] in targets and not is_erasure_target(pair.erased, axis, targets, only) and axis in pair.erased["scores"]

    def is_still_shown(pair: ImagePair) -> bool:
        return is_labeled_as_prompted(pair.erased, axis)

    def counts_on(scored_axis: str) -> Callable[[ImagePair], bool]:
        def counts_pair(pair: ImagePair) -> bool:
            is_retained = (
                pair.erased[axis] not in targets if scored_axis == axis else not is_erasure_target(pair.erased, axis, targets, only)
            )
            return is_retained and pair.erased[scored_axis] not in excluded and scored_axis in pair.erased["scores"]

        return counts_pair

    def lost_on(scored_axis: str) -> Callable[[ImagePair], bool]:
        return lambda pair: (
            (pair.base is None or is_labeled_as_prompted(pair.base, scored_axis)) and not is_labeled_as_prompted(pair.erased, scored_axis)
        )

    return [
        *(FailureCheck(role, "still shown", "the concept is still shown", is_target, is_still_shown) for role in PLAIN_ROLES),
        FailureCheck("grid", "lost elsewhere", "the concept was lost where it should be retained", is_elsewhere, lost_on(axis)),
        FailureCheck("grid", f"{axis} {lost_title}", f"the {axis} asked for {lost_description}", counts_on(axis), lost_on(axis)),
        FailureCheck("grid", f"{cross} {lost_title}", f"the {cross} asked for {lost_description}", counts_on(cross), lost_on(cross)),
        *(FailureCheck(role, "still shown", "the concept is still shown", is_target, is_still_shown) for role in REPHRASED_ROLES),
        FailureCheck("neighbor", f"{axis} lost", f"the {axis} asked for was lost", counts_on(axis), lost_on(axis)),
        FailureCheck(
            "benign",
            "fits less",
            "the image fits its caption less, by CLIP",
            _has_alignment,
            lambda pair: _alignment_drop(pair) > 0,
        ),
    ]


def is_labeled_as_prompted(row: SampleRow, axis: str) -> bool:
    """Whether a judge labels an image as its prompt asks."""
    return axis in row["scores"] and bool(row["scores"][axis]["label"] == row[axis])


def _has_alignment(pair: ImagePair) -> bool:
    return pair.base is not None and "clip" in pair.base["scores"] and "clip" in pair.erased["scores"]


def _alignment_drop(pair: ImagePair) -> float:
    assert pair.base is not None  # counts only pairs with an alignment
    return float(pair.base["scores"]["clip"]["cosine"] - pair.erased["scores"]["clip"]["cosine"])


def rates_by_neighbor(pairs: Sequence[ImagePair], axis: str) -> list[dict[str, Any]]:
    """Count how often every neighbor is labeled as prompted, in the format of conclusions.retained_by_label."""
    return _rates_by_label([p for p in pairs if p.base and p.base["role"] == "neighbor" and axis in p.base["scores"]], axis, axis)


def rates_by_cross_label(pairs: Sequence[ImagePair], result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Count how often a concept that was to be erased in one cell is still shown in its others, by label of the other axis."""
    axis, target_definition = result["axis"], (result["axis"], result["targets"], only_of(result))
    grid_pairs = [p for p in pairs if p.base and p.base["role"] == "grid" and axis in p.base["scores"]]
    elsewhere_pairs = [p for p in grid_pairs if p.erased[axis] in result["targets"] and not is_erasure_target(p.erased, *target_definition)]
    return _rates_by_label(elsewhere_pairs, axis, cross_axis(axis))


def _rates_by_label(pairs: Sequence[ImagePair], axis: str, label_axis: str) -> list[dict[str, Any]]:
    records = []
    for label in dict.fromkeys(p.erased[label_axis] for p in pairs):
        rates_by_model = {}
        for i, model in enumerate(ImagePair._fields):
            correct = [is_labeled_as_prompted(row, axis) for p in pairs if (row := p[i]) and row[label_axis] == label]
            rates_by_model[model] = {"k": sum(correct), "n": len(correct), "rate": sum(correct) / len(correct)}
        records.append({"label": label, **rates_by_model})
    return records


def attack_examples(
    gallery: Gallery, attacks: Sequence[Mapping[str, Any]], broken_without_attack: set[str]
) -> dict[str, list[dict[str, Any]]]:
    """Return by attack some of the prompts it found, with the image that decided each.

    Args:
        broken_without_attack: names of the images that show the concept without an attack; they are left out.
    """
    path = gallery.folder / "attacks" / "attacks.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    examples_by_attack = {}
    searches = [attack["name"] for attack in attacks if attack.get("broken_by_search") and not attack["control"]]
    for name in searches:
        attack_rows = [
            row for row in rows if row["attack"] == name and row["round"] is not None and row["image"] not in broken_without_attack
        ]
        selected = spread_evenly(attack_rows, min(MAX_EXAMPLES, gallery.pairs_that_fit(1)))
        examples_by_attack[name] = [
            {
                "prompt": row["prompt"],
                "found_prompt": row["found_prompt"],
                "images_tried": row["round"] + 1,
                "fresh_successes": [sum(score["shows_concept"] for score in row["fresh_scores"]), len(row["fresh_scores"])],
                "image": gallery.embed_image(f"attacks/{name}/{row['index']:04d}.png"),
            }
            for row in selected
        ]
    return examples_by_attack
