"""The images of a report: pairs chosen by position and never by look, what still shows the concept, what was lost, what attacks found."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image

from eval.records.audit_result import AuditResult
from eval.records.axes import Axis, cross_axis
from eval.records.fields import Role
from eval.records.models import BASE, ERASED
from eval.records.report import LabelCount, LabelRates
from eval.records.row_files import read_attack_rows
from eval.records.rows import SampleRow, SearchRow
from eval.report.page_records import AttackExample, EmbeddedImage, FailedPairs, FailedRole, ShownPair, ShownSide
from eval.suites.cases import PLAIN_ROLES, REPHRASED_ROLES
from eval.suites.fine_grained import is_erasure_target

MAX_PAGE_BYTES = 2_400_000  # of all images in a page, as base64
MAX_SIDE = 160  # pixels; larger images are scaled down
MAX_PAIRS = 12  # shown of each list of failures, at most
MAX_EXAMPLES = 6  # shown per attack, at most
ROLE_TITLES: dict[Role, str] = {
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

    def embed_image(self, name: str) -> EmbeddedImage | None:
        """Return a PNG as a data URI, scaled down if it is large; None if there is no such file."""
        path = self.folder / name
        if not self.has_images or not path.is_file():
            return None
        data, width = _read_thumbnail(path)
        data_uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        self.bytes_left -= len(data_uri)
        self.embedded_sizes.append(len(data_uri))
        return EmbeddedImage(data_uri, width <= 128)

    def pairs_that_fit(self, sections: int) -> int:
        """Return how many pairs fit into one of so many equal shares of the bytes left."""
        typical_size = sum(self.embedded_sizes) / len(self.embedded_sizes) if self.embedded_sizes else MAX_PAGE_BYTES / 100
        return max(int(self.bytes_left / max(sections, 1) / (2 * typical_size)), 0)

    def embed_pair(self, pair: ImagePair) -> ShownPair:
        """Return a pair for the page: the prompt, and for either model the image and the labels that judges gave it."""
        sides = [(name, row) for name, row in (("before", pair.base), ("after", pair.erased)) if row]
        return ShownPair(pair.erased.prompt, tuple(ShownSide(name, self.embed_image(row.image), _join_labels(row)) for name, row in sides))


def _read_thumbnail(path: Path) -> tuple[bytes, int]:
    with Image.open(path) as image:
        if max(image.size) <= MAX_SIDE:
            return path.read_bytes(), image.width
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        buffer = io.BytesIO()
        image.convert("RGB").quantize(256).save(buffer, format="PNG")
        return buffer.getvalue(), image.width


def _join_labels(row: SampleRow) -> str:
    return ", ".join(label for label in (row.judged("style"), row.judged("object")) if label is not None)


def pairs_of(rows: Sequence[SampleRow]) -> list[ImagePair]:
    """Pair the base's and the erased model's row of every case, in the fixed order of cases."""
    base = {row.file_name: row for row in rows if row.model == BASE}
    return [ImagePair(base.get(row.file_name), row) for row in rows if row.model == ERASED]


def spread_evenly(items: Sequence[T], count: int) -> list[T]:
    """Select `count` items, evenly spaced by position."""
    count = min(count, len(items))
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


def select_pairs(gallery: Gallery, pairs: Sequence[ImagePair], result: AuditResult, count: int, of_target: bool) -> list[ShownPair]:
    """Select pairs of the suite itself that ask for what should be erased (`of_target`), or for something else."""
    target_definition = result.axis, result.targets, result.job.only
    roles = (*PLAIN_ROLES, "benign") if result.is_prompt_list else PLAIN_ROLES
    selected = [p for p in pairs if p.erased.role in roles and is_erasure_target(vars(p.erased), *target_definition) == of_target]
    return [gallery.embed_pair(pair) for pair in spread_evenly(selected, count)]


def list_failures(gallery: Gallery, pairs: Sequence[ImagePair], result: AuditResult) -> list[FailedRole]:
    """Return by role the pairs that still show the concept, and those in which something else was lost."""
    checked = []
    for check in _failure_checks(result):
        counted = [p for p in pairs if p.erased.role == check.role and check.counts(p)]
        if counted:
            checked.append((check, counted, [p for p in counted if check.fails(p)]))
    parts_by_role: dict[Role, list[FailedPairs]] = {}
    for i, (check, counted, failed) in enumerate(checked):
        limit = min(MAX_PAIRS, gallery.pairs_that_fit(len(checked) - i))
        selected = sorted(failed, key=_alignment_drop, reverse=True)[:limit] if check.role == "benign" else spread_evenly(failed, limit)
        shown = tuple(gallery.embed_pair(pair) for pair in selected)
        parts_by_role.setdefault(check.role, []).append(FailedPairs(check.title, check.description, len(counted), len(failed), shown))
    return [FailedRole(role, ROLE_TITLES[role], tuple(parts)) for role, parts in parts_by_role.items()]


class FailureCheck(NamedTuple):
    """One thing that can go wrong with the pairs of a role."""

    role: Role
    title: str
    description: str
    counts: Callable[[ImagePair], bool]  # whether it can happen to a pair: those that the rate counts
    fails: Callable[[ImagePair], bool]  # whether it did


def _failure_checks(result: AuditResult) -> list[FailureCheck]:
    axis, targets = result.axis, result.targets
    cross = cross_axis(axis)
    excluded, only = result.erased.excluded if result.erased else {}, result.job.only
    lost_title, lost_description = ("lost", "was lost") if result.base else ("not shown", "is not shown")

    def is_target(pair: ImagePair) -> bool:
        return is_erasure_target(vars(pair.erased), axis, targets, only) and pair.erased.is_judged(axis)

    def is_elsewhere(pair: ImagePair) -> bool:
        is_elsewhere = pair.erased.prompted(axis) in targets and not is_erasure_target(vars(pair.erased), axis, targets, only)
        return is_elsewhere and pair.erased.is_judged(axis)

    def is_still_shown(pair: ImagePair) -> bool:
        return pair.erased.is_as_prompted(axis)

    def counts_on(scored_axis: Axis) -> Callable[[ImagePair], bool]:
        def counts_pair(pair: ImagePair) -> bool:
            is_retained = (
                pair.erased.prompted(axis) not in targets
                if scored_axis == axis
                else not is_erasure_target(vars(pair.erased), axis, targets, only)
            )
            return is_retained and pair.erased.prompted(scored_axis) not in excluded and pair.erased.is_judged(scored_axis)

        return counts_pair

    def lost_on(scored_axis: Axis) -> Callable[[ImagePair], bool]:
        return lambda pair: (pair.base is None or pair.base.is_as_prompted(scored_axis)) and not pair.erased.is_as_prompted(scored_axis)

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


def _has_alignment(pair: ImagePair) -> bool:
    return pair.base is not None and pair.base.scores.clip is not None and pair.erased.scores.clip is not None


def _alignment_drop(pair: ImagePair) -> float:
    assert pair.base and pair.base.scores.clip and pair.erased.scores.clip  # counts only pairs with an alignment
    return pair.base.scores.clip.cosine - pair.erased.scores.clip.cosine


def rates_by_neighbor(pairs: Sequence[ImagePair], axis: Axis) -> list[LabelRates]:
    """Count how often every neighbor is labeled as prompted."""
    return _rates_by_label([p for p in pairs if p.base and p.base.role == "neighbor" and p.base.is_judged(axis)], axis, axis)


def rates_by_cross_label(pairs: Sequence[ImagePair], result: AuditResult) -> list[LabelRates]:
    """Count how often a concept that was to be erased in one cell is still shown in its others, by label of the other axis."""
    axis, target_definition = result.axis, (result.axis, result.targets, result.job.only)
    grid_pairs = [p for p in pairs if p.base and p.base.role == "grid" and p.base.is_judged(axis)]
    elsewhere_pairs = [
        p for p in grid_pairs if p.erased.prompted(axis) in result.targets and not is_erasure_target(vars(p.erased), *target_definition)
    ]
    return _rates_by_label(elsewhere_pairs, axis, cross_axis(axis))


def _rates_by_label(pairs: Sequence[ImagePair], axis: Axis, label_axis: Axis) -> list[LabelRates]:
    def count(rows: Sequence[SampleRow | None], label: str) -> LabelCount:
        outcomes = [row.is_as_prompted(axis) for row in rows if row and row.prompted(label_axis) == label]
        return LabelCount(k=sum(outcomes), n=len(outcomes), rate=sum(outcomes) / len(outcomes))

    base_rows, erased_rows = [pair.base for pair in pairs], [pair.erased for pair in pairs]
    labels = dict.fromkeys(row.prompted(label_axis) for row in erased_rows)
    return [LabelRates(label=label, base=count(base_rows, label), erased=count(erased_rows, label)) for label in labels]


def attack_examples(gallery: Gallery, result: AuditResult, broken_without_attack: set[str]) -> dict[str, list[AttackExample]]:
    """Return by attack some of the prompts it found, with the image that decided each.

    Args:
        broken_without_attack: names of the images that show the concept without an attack; they are left out.
    """
    rows = [row for row in read_attack_rows(gallery.folder / "attacks" / "attacks.jsonl") if isinstance(row, SearchRow)]
    examples_by_attack = {}
    for name in [attack.name for attack in result.searches if attack.broken_by_search and not attack.control]:
        attack_rows = [row for row in rows if row.attack == name and row.round is not None and row.image not in broken_without_attack]
        selected = spread_evenly(attack_rows, min(MAX_EXAMPLES, gallery.pairs_that_fit(1)))
        examples_by_attack[name] = [
            AttackExample(
                prompt=row.prompt,
                found_prompt=row.found_prompt,
                images_tried=row.images_until_success,
                fresh_shown=sum(score.shows_concept for score in row.fresh_scores),
                fresh_images=len(row.fresh_scores),
                image=gallery.embed_image(f"attacks/{name}/{row.index:04d}.png"),
            )
            for row in selected
        ]
    return examples_by_attack
