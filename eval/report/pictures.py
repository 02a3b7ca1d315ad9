"""Which pictures a report shows: pairs by position and never by look, what still shows the concept, what was lost, what attacks found."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from eval.scoring.counting import Row
from eval.scoring.gates import only_of
from eval.suites.cases import OTHERWISE, PLAIN
from eval.suites.fine_grained import meant
from eval.suites.prompt_list import crossing

LIMIT = 2_400_000  # bytes of all pictures in a page, as base64
LARGEST = 160  # pixels a side; what is larger is shown smaller
PAIRS = 12  # shown of a list in the drill-down, at most
EXAMPLES = 6  # shown of an attack, at most
TITLES = {
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


class Pair(NamedTuple):
    """One case from the same noise in both models; no base where its pictures were not given."""

    base: Row | None
    erased: Row


@dataclass
class Album:
    """Pictures of an audit folder as data of a page, within its limit."""

    folder: Path
    there: bool  # whether the audit kept its pictures
    left: int = LIMIT
    sizes: list[int] = field(default_factory=list)

    def picture(self, name: str) -> dict[str, Any] | None:
        """A PNG as a data URI, made smaller where it is large; None where there is none."""
        path = self.folder / name
        if not self.there or not path.is_file():
            return None
        data, width = _small(path)
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        self.left -= len(source)
        self.sizes.append(len(source))
        return {"src": source, "coarse": width <= 128}

    def room(self, sections: int) -> int:
        """Pairs that fit into one of so many equal shares of what is left."""
        typical = sum(self.sizes) / len(self.sizes) if self.sizes else LIMIT / 100
        return max(int(self.left / max(sections, 1) / (2 * typical)), 0)

    def shown(self, pair: Pair) -> dict[str, Any]:
        """A pair for the page: prompt, and on either side a picture and what was read in it."""
        return {
            "prompt": pair.erased["prompt"],
            "sides": [
                {"name": name, "picture": self.picture(row["image"]), "read": _read(row)}
                for name, row in (("before", pair.base), ("after", pair.erased))
                if row
            ],
        }


def _small(path: Path) -> tuple[bytes, int]:
    with Image.open(path) as image:
        if max(image.size) <= LARGEST:
            return path.read_bytes(), image.width
        image.thumbnail((LARGEST, LARGEST))
        found = io.BytesIO()
        image.convert("RGB").quantize(256).save(found, format="PNG")
        return found.getvalue(), image.width


def _read(row: Row) -> str:
    return ", ".join(row["read"][axis]["label"] for axis in ("style", "object") if axis in row["read"])


def pairs_of(rows: Sequence[Row]) -> list[Pair]:
    """Base and erased picture of every case, in the fixed order of cases."""
    base = {Path(row["image"]).name: row for row in rows if row["model"] == "base"}
    return [Pair(base.get(Path(row["image"]).name), row) for row in rows if row["model"] == "erased"]


def spread(found: Sequence[T], count: int) -> list[T]:
    """Some of them, evenly spaced by position."""
    count = min(count, len(found))
    return [found[round(i * (len(found) - 1) / max(count - 1, 1))] for i in range(count)]


def before_and_after(album: Album, pairs: Sequence[Pair], result: Mapping[str, Any], count: int, target: bool) -> list[dict[str, Any]]:
    """Pairs of the suite itself that ask for what should be gone, or for something else."""
    about = result["axis"], result["targets"], only_of(result)
    roles = (*PLAIN, "benign") if result.get("form") == "prompts" else PLAIN
    chosen = [p for p in pairs if p.erased["role"] in roles and meant(p.erased, *about) == target]
    return [album.shown(pair) for pair in spread(chosen, count)]


def drill_down(album: Album, pairs: Sequence[Pair], result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """By role: the pairs in which the concept is still shown, and those in which something else was lost."""
    asked = []
    for question in _questions(result):
        mine = [p for p in pairs if p.erased["role"] == question.role and question.about(p)]
        if mine:
            asked.append((question, mine, [p for p in mine if question.bad(p)]))
    found: dict[str, list[dict[str, Any]]] = {}
    for i, ((role, short, words, *_), mine, bad_ones) in enumerate(asked):
        room = min(PAIRS, album.room(len(asked) - i))
        chosen = sorted(bad_ones, key=_fell, reverse=True)[:room] if role == "benign" else spread(bad_ones, room)
        part = {"short": short, "words": words, "of": len(mine), "found": len(bad_ones), "pairs": [album.shown(pair) for pair in chosen]}
        found.setdefault(role, []).append(part)
    return [{"role": role, "title": TITLES[role], "parts": parts} for role, parts in found.items()]


class Question(NamedTuple):
    """What can go wrong with the pairs of a role."""

    role: str
    short: str
    words: str
    about: Callable[[Pair], bool]  # the pairs it can happen to: those that the rate counts
    bad: Callable[[Pair], bool]  # whether it did


def _questions(result: Mapping[str, Any]) -> list[Question]:
    axis, targets = result["axis"], result["targets"]
    cross = crossing(axis)
    apart, only = result["models"].get("erased", {}).get("apart", {}), only_of(result)
    gone, was = ("lost", "was lost") if "base" in result["models"] else ("not read", "is not read")

    def is_target(pair: Pair) -> bool:
        return meant(pair.erased, axis, targets, only) and axis in pair.erased["read"]

    def elsewhere(pair: Pair) -> bool:
        return pair.erased[axis] in targets and not meant(pair.erased, axis, targets, only) and axis in pair.erased["read"]

    def still(pair: Pair) -> bool:
        return right(pair.erased, axis)

    def other(on: str) -> Callable[[Pair], bool]:
        def counts(pair: Pair) -> bool:
            stays = pair.erased[axis] not in targets if on == axis else not meant(pair.erased, axis, targets, only)
            return stays and pair.erased[on] not in apart and on in pair.erased["read"]

        return counts

    def lost(on: str) -> Callable[[Pair], bool]:
        return lambda pair: (pair.base is None or right(pair.base, on)) and not right(pair.erased, on)

    return [
        *(Question(role, "still shown", "the concept is still shown", is_target, still) for role in PLAIN),
        Question("grid", "lost elsewhere", "the concept was lost where it was meant to stay", elsewhere, lost(axis)),
        Question("grid", f"{axis} {gone}", f"the {axis} asked for {was}", other(axis), lost(axis)),
        Question("grid", f"{cross} {gone}", f"the {cross} asked for {was}", other(cross), lost(cross)),
        *(Question(role, "still shown", "the concept is still shown", is_target, still) for role in OTHERWISE),
        Question("neighbour", f"{axis} lost", f"the {axis} asked for was lost", other(axis), lost(axis)),
        Question("benign", "fit less", "the picture fits its caption less, as CLIP sees it", _aligned, lambda pair: _fell(pair) > 0),
    ]


def right(row: Row, axis: str) -> bool:
    """Whether a picture is read as asked."""
    return axis in row["read"] and bool(row["read"][axis]["label"] == row[axis])


def _aligned(pair: Pair) -> bool:
    return pair.base is not None and "clip" in pair.base["read"] and "clip" in pair.erased["read"]


def _fell(pair: Pair) -> float:
    assert pair.base is not None  # only aligned pairs are asked
    return float(pair.base["read"]["clip"]["cosine"] - pair.erased["read"]["clip"]["cosine"])


def by_neighbour(pairs: Sequence[Pair], axis: str) -> list[dict[str, Any]]:
    """How often every neighbour is read as asked, base and erased side by side, in the form of sentences.kept_by_label."""
    return _by_label([p for p in pairs if p.base and p.base["role"] == "neighbour" and axis in p.base["read"]], axis, axis)


def by_place(pairs: Sequence[Pair], result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How often a concept that was to be erased in one cell is still read in its others, by label of the other axis, in the same form."""
    axis, about = result["axis"], (result["axis"], result["targets"], only_of(result))
    grid = [p for p in pairs if p.base and p.base["role"] == "grid" and axis in p.base["read"]]
    elsewhere = [p for p in grid if p.erased[axis] in result["targets"] and not meant(p.erased, *about)]
    return _by_label(elsewhere, axis, crossing(axis))


def _by_label(pairs: Sequence[Pair], axis: str, by: str) -> list[dict[str, Any]]:
    found = []
    for label in dict.fromkeys(p.erased[by] for p in pairs):
        sides = {}
        for i, model in enumerate(Pair._fields):
            read = [right(row, axis) for p in pairs if (row := p[i]) and row[by] == label]
            sides[model] = {"k": sum(read), "n": len(read), "rate": sum(read) / len(read)}
        found.append({"label": label, **sides})
    return found


def examples(album: Album, attacks: Sequence[Mapping[str, Any]], plain: set[str]) -> dict[str, list[dict[str, Any]]]:
    """By attack: some of the ways of asking that it found, with the picture that decided it; `plain` images needed none."""
    path = album.folder / "attacks" / "attacks.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    found = {}
    searches = [attack["name"] for attack in attacks if attack.get("found") and not attack["control"]]
    for name in searches:
        mine = [row for row in rows if row["attack"] == name and row["round"] is not None and row["image"] not in plain]
        chosen = spread(mine, min(EXAMPLES, album.room(1)))
        found[name] = [
            {
                "prompt": row["prompt"],
                "asked": row["asked"],
                "pictures": row["round"] + 1,
                "again": [sum(r["shown"] for r in row["fresh"]), len(row["fresh"])],
                "picture": album.picture(f"attacks/{name}/{row['index']:04d}.png"),
            }
            for row in chosen
        ]
    return found
