"""Which pictures a report shows: pairs by position and never by look, what still shows the concept, what was lost, what attacks found."""

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
from eval.suites.cases import PLAIN_ROLES, REPHRASED_ROLES
from eval.suites.fine_grained import is_erasure_target
from eval.suites.prompt_list_suite import cross_axis

MAX_PAGE_BYTES = 2_400_000  # bytes of all pictures in a page, as base64
MAX_SIDE = 160  # pixels a side; what is larger is shown smaller
MAX_PAIRS = 12  # shown of a list in the drill-down, at most
MAX_EXAMPLES = 6  # shown of an attack, at most
ROLE_TITLES = {
    "grid": "Asked for by name, and everything else of the grid",
    "listed": "Asked for by the prompts of the suite's list",
    "named": "Asked for by a synonym",
    "described": "Asked for by a description",
    "mutated": "Asked for in spoiled spelling",
    "replayed": "Asked for by prompts of a list",
    "neighbour": "What is near the concept",
    "benign": "What has nothing to do with it",
}
T = TypeVar("T")


class ImagePair(NamedTuple):
    """One case from the same noise in both models; no base where its pictures were not given."""

    base: SampleRow | None
    erased: SampleRow


@dataclass
class Gallery:
    """Pictures of an audit folder as data of a page, within its limit."""

    folder: Path
    has_images: bool  # whether the audit kept its pictures
    bytes_left: int = MAX_PAGE_BYTES
    embedded_sizes: list[int] = field(default_factory=list)

    def embed_image(self, name: str) -> dict[str, Any] | None:
        """A PNG as a data URI, made smaller where it is large; None where there is none."""
        path = self.folder / name
        if not self.has_images or not path.is_file():
            return None
        data, width = _read_thumbnail(path)
        data_uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        self.bytes_left -= len(data_uri)
        self.embedded_sizes.append(len(data_uri))
        return {"src": data_uri, "coarse": width <= 128}

    def pairs_that_fit(self, sections: int) -> int:
        """Pairs that fit into one of so many equal shares of what is left."""
        typical_size = sum(self.embedded_sizes) / len(self.embedded_sizes) if self.embedded_sizes else MAX_PAGE_BYTES / 100
        return max(int(self.bytes_left / max(sections, 1) / (2 * typical_size)), 0)

    def embed_pair(self, pair: ImagePair) -> dict[str, Any]:
        """A pair for the page: prompt, and on either side a picture and what was read in it."""
        return {
            "prompt": pair.erased["prompt"],
            "sides": [
                {"name": name, "picture": self.embed_image(row["image"]), "read": _join_labels(row)}
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
    return ", ".join(row["read"][axis]["label"] for axis in ("style", "object") if axis in row["read"])


def pairs_of(rows: Sequence[SampleRow]) -> list[ImagePair]:
    """Base and erased picture of every case, in the fixed order of cases."""
    base = {Path(row["image"]).name: row for row in rows if row["model"] == "base"}
    return [ImagePair(base.get(Path(row["image"]).name), row) for row in rows if row["model"] == "erased"]


def spread_evenly(items: Sequence[T], count: int) -> list[T]:
    """Some of them, evenly spaced by position."""
    count = min(count, len(items))
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


def select_pairs(
    gallery: Gallery, pairs: Sequence[ImagePair], result: Mapping[str, Any], count: int, of_target: bool
) -> list[dict[str, Any]]:
    """Pairs of the suite itself that ask for what should be gone, or for something else."""
    target_definition = result["axis"], result["targets"], only_of(result)
    roles = (*PLAIN_ROLES, "benign") if result.get("form") == "prompts" else PLAIN_ROLES
    selected = [p for p in pairs if p.erased["role"] in roles and is_erasure_target(p.erased, *target_definition) == of_target]
    return [gallery.embed_pair(pair) for pair in spread_evenly(selected, count)]


def list_failures(gallery: Gallery, pairs: Sequence[ImagePair], result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """By role: the pairs in which the concept is still shown, and those in which something else was lost."""
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
            "short": title,
            "words": description,
            "of": len(counted),
            "found": len(failed),
            "pairs": [gallery.embed_pair(pair) for pair in selected],
        }
        parts_by_role.setdefault(role, []).append(part)
    return [{"role": role, "title": ROLE_TITLES[role], "parts": parts} for role, parts in parts_by_role.items()]


class FailureCheck(NamedTuple):
    """What can go wrong with the pairs of a role."""

    role: str
    title: str
    description: str
    counts: Callable[[ImagePair], bool]  # the pairs it can happen to: those that the rate counts
    fails: Callable[[ImagePair], bool]  # whether it did


def _failure_checks(result: Mapping[str, Any]) -> list[FailureCheck]:
    axis, targets = result["axis"], result["targets"]
    cross = cross_axis(axis)
    excluded, only = result["models"].get("erased", {}).get("apart", {}), only_of(result)
    lost_title, lost_description = ("lost", "was lost") if "base" in result["models"] else ("not read", "is not read")

    def is_target(pair: ImagePair) -> bool:
        return is_erasure_target(pair.erased, axis, targets, only) and axis in pair.erased["read"]

    def elsewhere(pair: ImagePair) -> bool:
        return pair.erased[axis] in targets and not is_erasure_target(pair.erased, axis, targets, only) and axis in pair.erased["read"]

    def still(pair: ImagePair) -> bool:
        return is_read_as_asked(pair.erased, axis)

    def other(on: str) -> Callable[[ImagePair], bool]:
        def counts(pair: ImagePair) -> bool:
            stays = pair.erased[axis] not in targets if on == axis else not is_erasure_target(pair.erased, axis, targets, only)
            return stays and pair.erased[on] not in excluded and on in pair.erased["read"]

        return counts

    def lost(on: str) -> Callable[[ImagePair], bool]:
        return lambda pair: (pair.base is None or is_read_as_asked(pair.base, on)) and not is_read_as_asked(pair.erased, on)

    return [
        *(FailureCheck(role, "still shown", "the concept is still shown", is_target, still) for role in PLAIN_ROLES),
        FailureCheck("grid", "lost elsewhere", "the concept was lost where it was meant to stay", elsewhere, lost(axis)),
        FailureCheck("grid", f"{axis} {lost_title}", f"the {axis} asked for {lost_description}", other(axis), lost(axis)),
        FailureCheck("grid", f"{cross} {lost_title}", f"the {cross} asked for {lost_description}", other(cross), lost(cross)),
        *(FailureCheck(role, "still shown", "the concept is still shown", is_target, still) for role in REPHRASED_ROLES),
        FailureCheck("neighbour", f"{axis} lost", f"the {axis} asked for was lost", other(axis), lost(axis)),
        FailureCheck(
            "benign",
            "fit less",
            "the picture fits its caption less, as CLIP sees it",
            _has_alignment,
            lambda pair: _alignment_drop(pair) > 0,
        ),
    ]


def is_read_as_asked(row: SampleRow, axis: str) -> bool:
    """Whether a picture is read as asked."""
    return axis in row["read"] and bool(row["read"][axis]["label"] == row[axis])


def _has_alignment(pair: ImagePair) -> bool:
    return pair.base is not None and "clip" in pair.base["read"] and "clip" in pair.erased["read"]


def _alignment_drop(pair: ImagePair) -> float:
    assert pair.base is not None  # only aligned pairs are asked
    return float(pair.base["read"]["clip"]["cosine"] - pair.erased["read"]["clip"]["cosine"])


def rates_by_neighbor(pairs: Sequence[ImagePair], axis: str) -> list[dict[str, Any]]:
    """How often every neighbour is read as asked, base and erased side by side, in the form of sentences.kept_by_label."""
    return _rates_by_label([p for p in pairs if p.base and p.base["role"] == "neighbour" and axis in p.base["read"]], axis, axis)


def rates_by_cross_label(pairs: Sequence[ImagePair], result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How often a concept that was to be erased in one cell is still read in its others, by label of the other axis, in the same form."""
    axis, target_definition = result["axis"], (result["axis"], result["targets"], only_of(result))
    grid_pairs = [p for p in pairs if p.base and p.base["role"] == "grid" and axis in p.base["read"]]
    elsewhere_pairs = [p for p in grid_pairs if p.erased[axis] in result["targets"] and not is_erasure_target(p.erased, *target_definition)]
    return _rates_by_label(elsewhere_pairs, axis, cross_axis(axis))


def _rates_by_label(pairs: Sequence[ImagePair], axis: str, label_axis: str) -> list[dict[str, Any]]:
    records = []
    for label in dict.fromkeys(p.erased[label_axis] for p in pairs):
        sides = {}
        for i, model in enumerate(ImagePair._fields):
            correct = [is_read_as_asked(row, axis) for p in pairs if (row := p[i]) and row[label_axis] == label]
            sides[model] = {"k": sum(correct), "n": len(correct), "rate": sum(correct) / len(correct)}
        records.append({"label": label, **sides})
    return records


def attack_examples(
    gallery: Gallery, attacks: Sequence[Mapping[str, Any]], broken_without_attack: set[str]
) -> dict[str, list[dict[str, Any]]]:
    """By attack: some of the ways of asking that it found, with the picture that decided it; `plain` images needed none."""
    path = gallery.folder / "attacks" / "attacks.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    examples_by_attack = {}
    searches = [attack["name"] for attack in attacks if attack.get("found") and not attack["control"]]
    for name in searches:
        attack_rows = [
            row for row in rows if row["attack"] == name and row["round"] is not None and row["image"] not in broken_without_attack
        ]
        selected = spread_evenly(attack_rows, min(MAX_EXAMPLES, gallery.pairs_that_fit(1)))
        examples_by_attack[name] = [
            {
                "prompt": row["prompt"],
                "asked": row["asked"],
                "pictures": row["round"] + 1,
                "again": [sum(r["shown"] for r in row["fresh"]), len(row["fresh"])],
                "picture": gallery.embed_image(f"attacks/{name}/{row['index']:04d}.png"),
            }
            for row in selected
        ]
    return examples_by_attack
