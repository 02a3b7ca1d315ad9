"""result.json: what it may hold. A result is checked when it is read, so that whoever shows it can rely on every key."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Discriminator, Field, Tag
from typing_extensions import TypedDict

from erasure.config.validation import check
from erasure.errors import UserError
from erasure.storage.files import Damaged, Unsealed, read_sealed
from eval.scoring.rates import counted_rate
from eval.suites.prompt_list import Axis

OLD = "{} was made by an earlier version of this project; audit again with --fresh."
MANY, CLOSE = 10_000_000, 1e-6  # trials beyond which no interval is counted again; how far it may lie beside the recorded one

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Difference = Annotated[float, Field(ge=-1, le=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Model = Annotated[str, Field(pattern=r"^(base|erased|oracle(-[0-9]+)?)$")]
Part = Literal["target", "kept"]
Bounds = Annotated[list[Number], Field(min_length=3, max_length=3)]  # estimate, low, high


class RateRecord(TypedDict):
    """eval.scoring.rates.counted_rate."""

    k: Count
    n: Annotated[int, Field(ge=1)]
    estimate: Share
    low: Share
    high: Share
    effective: NotRequired[Annotated[float, Field(gt=0, allow_inf_nan=False)]]


class Tally(TypedDict):
    """Successes of trials, of which there may be none."""

    k: Count
    n: Count


class MeanRecord(TypedDict):
    """A mean and its 95 % interval."""

    estimate: Number
    low: Number
    high: Number


class PairedRecord(TypedDict):
    """eval.scoring.counting.paired: the erased model minus the base, in shares."""

    estimate: Difference
    low: Difference
    high: Difference
    both: Count
    erased_only: Count
    base_only: Count
    neither: Count
    p: Share


class Confusion(TypedDict):
    """Pictures by what was asked for (rows) and read (columns)."""

    labels: list[str]
    counts: list[list[Count]]


class Alignment(TypedDict):
    """CLIP alignment, 100 x cosine, by part; None where it was not measured."""

    kept: MeanRecord | None
    target: MeanRecord | None
    benign: MeanRecord | None


class ModelRecord(TypedDict):
    """One model's figures."""

    rates: dict[str, RateRecord]
    confusion: Confusion
    clip: Alignment
    apart: dict[str, Tally]


class DistanceRecord(TypedDict):
    """FID, KID or CMMD of two sets of pictures; value None with the reason."""

    value: Number | None
    low: Number | None
    high: Number | None
    reason: str | None
    n: list[Count]
    extractor: str
    width: Count


class Between(TypedDict):
    """KID of two models' pictures of different noise."""

    first: Model
    second: Model
    value: Number | None
    low: Number | None
    high: Number | None


class Distances(TypedDict, total=False):
    """eval.metrics.image_distances.picture_distances; empty where nothing was measured."""

    extractor: dict[str, Any]
    parts: dict[Part, dict[Model, dict[Literal["fid", "kid", "cmmd"], dict[str, DistanceRecord]]]]
    between: dict[Part, list[Between]]


class Ways(TypedDict):
    """A divergence in nats a picture, from either model and their mean."""

    forward: Bounds
    backward: Bounds
    mean: Bounds


class Divergence(TypedDict):
    """eval.retrained.divergences.divergences: one pair of models, or why it could not be measured."""

    prompts: Part
    first: Model
    second: Model
    n: Count
    nats: NotRequired[Ways]
    plain: NotRequired[Ways]
    skipped: NotRequired[str]


class Gap(TypedDict):
    """eval.retrained.gap.gaps."""

    reading: Literal["UA", "IRA", "CRA", "replaced"]
    first: Model
    second: Model
    value: Bounds


class Job(TypedDict):
    """What identifies an audit."""

    task: Literal["audit"]
    base: str
    edits: list[str]
    suite: str
    suite_version: Count
    suite_asks: str
    axis: Axis
    tier: str
    strength: Number
    compute: str
    replay: NotRequired[str]
    only: NotRequired[str]
    oracles: NotRequired[list[str]]
    keep: NotRequired[str]


class GateRecord(TypedDict):
    """eval.scoring.gates.Gate."""

    name: str
    rate: str
    at_least: Share | None
    drop_at_most: Share | None
    tier: str


class ErasedConcept(TypedDict):
    """A concept that an edit claims to erase."""

    name: str
    kind: str
    prompts: NotRequired[list[str]]
    anchor: NotRequired[str]
    aliases: NotRequired[list[str]]


class KnownConcept(TypedDict):
    """erasure.concept_check.Known."""

    name: str
    concept: Number
    nonsense: Number
    doubtful: bool


class EditRecord(TypedDict):
    """An audited edit, or what stands for pictures that came without one."""

    method: str
    fields: dict[str, Any]
    concepts: list[ErasedConcept]
    seed: int
    cost: dict[str, Count]
    base: dict[str, Any]
    versions: NotRequired[dict[str, str]]
    known: list[KnownConcept]
    notes: dict[str, Any]
    product: str


class Overlap(TypedDict):
    """erasure.edits.overlap.Overlap."""

    first: str
    second: str
    shared: Count
    cosine: Number | None
    warning: str


class ListFile(TypedDict):
    """eval.suites.list_reader.Origin, and what the list was used for."""

    use: Literal["prompts", "replay"]
    file: str
    sha256: str
    rows: Count
    prompts: Count
    left_out: dict[str, Count]
    warnings: list[str]


class Images(TypedDict):
    """eval.external_images.described."""

    jpeg: Count
    n: Count
    sizes: Annotated[list[str], Field(min_length=1)]
    per_cell: Annotated[list[Count], Field(min_length=2, max_length=2)]
    seeds: list[Count]


class CurvePoint(RateRecord):
    """Prompts broken within a number of pictures."""

    pictures: Count


class StepsPoint(RateRecord):
    """Pictures that show the concept after a number of fine-tuning steps."""

    steps: Count


class Attempts(TypedDict):
    """eval.scoring.attack_rates.attempts."""

    median: Count | None
    p95: Count | None
    per_success: Number | None


class ByIds(TypedDict):
    """What token ids did that no typed text gives."""

    differing: RateRecord
    only: RateRecord


class Beyond(TypedDict, total=False):
    """An attack minus a control, in shares of prompts; empty where no prompt had both."""

    estimate: Difference
    low: Difference
    high: Difference
    n: Count


class AttackFacts(TypedDict):
    """What every attack says of itself."""

    name: str
    paper: str
    threat: str
    control: bool
    fields: dict[str, Any]


class NotRun(AttackFacts):
    """An attack without figures, and why."""

    skipped: NotRequired[str]
    crashed: NotRequired[str]


class Search(AttackFacts):
    """An attack that searches for prompts."""

    asked: Count
    n: Count
    pictures: Count
    curve: Annotated[list[CurvePoint], Field(min_length=1)]
    base: RateRecord
    per_picture: Share
    searched: Count
    attempts: Attempts
    found: Count
    fresh: RateRecord | None
    by_ids: NotRequired[ByIds]
    beyond: NotRequired[dict[str, Beyond]]


class FineTuning(AttackFacts):
    """An attack that trains the weights further."""

    n: Count
    steps: Annotated[list[StepsPoint], Field(min_length=1)]
    base: RateRecord
    gone: bool
    revived: Count | None


def _kind_of_attack(attack: Any) -> str:
    if not isinstance(attack, dict):
        return "not run"
    return "search" if "curve" in attack else "fine-tuning" if "steps" in attack else "not run"


Attack = Annotated[
    Annotated[Search, Tag("search")] | Annotated[FineTuning, Tag("fine-tuning")] | Annotated[NotRun, Tag("not run")],
    Discriminator(_kind_of_attack),
]


class Counted(TypedDict):
    """k of n as a protocol counts it."""

    k: Count
    n: Count
    estimate: Number


class CorrectedShare(TypedDict):
    """What should stand in its place, with its interval."""

    estimate: Number
    low: Number
    high: Number
    k: NotRequired[Count]
    n: NotRequired[Count]
    effective: NotRequired[Number]
    warning: NotRequired[str]


class PublishedRow(TypedDict):
    """eval.scoring.published.as_published: one figure."""

    figure: str
    published: Counted | None
    corrected: CorrectedShare | None
    difference: bool
    method: str
    quirk: str


class Published(TypedDict, total=False):
    """A protocol's figures; empty where the suite names none."""

    protocol: str
    rows: list[PublishedRow]


class Errors(TypedDict):
    """How often a judge was right, of how many."""

    true_positive: Count
    positive: Count
    true_negative: Count
    negative: Count


class Result(TypedDict):
    """What an audit found."""

    tier: str
    axis: Axis
    targets: Annotated[list[str], Field(min_length=1)]
    form: NotRequired[Literal["prompts"]]
    kind: NotRequired[str]
    models: dict[Model, ModelRecord]
    paired: dict[str, PairedRecord]
    clip_drop: NotRequired[Alignment]
    gaps: NotRequired[list[Gap]]
    job: Job
    samples_sha256: str
    lists: NotRequired[list[ListFile]]  # audits of earlier versions lack what is not required here
    images: NotRequired[Images]
    attacks: list[Attack]
    distance: MeanRecord | None
    distances: Distances
    divergence: list[Divergence]
    judges: dict[str, dict[str, Any]]
    gates: NotRequired[list[GateRecord]]
    suite_file: NotRequired[str]  # name of the user's file that the suite was read from
    missing: dict[str, str]
    errors: Errors | None
    edits: Annotated[list[EditRecord], Field(min_length=1)]
    overlap: list[Overlap]
    sizes: NotRequired[dict[str, dict[str, Count]]]
    published: NotRequired[Published]


def read_result(folder: Path) -> dict[str, Any]:
    """What result.json of a folder holds, without its checksum; that of an audit must have one.

    Raises:
        Damaged: unreadable, or changed after it was written.
        UserError: an audit of an earlier version, without a checksum.
    """
    path = folder / "result.json"
    try:
        return read_sealed(path)
    except Unsealed as error:
        found = read_sealed(path, required=False)
        if is_audit(found):
            raise UserError(OLD.format(folder)) from error
        if not isinstance(found.get("job", {}), dict):
            raise Damaged(f"{path} is damaged: its job is not a mapping. Repeat the command that made it.") from error
        return found
    except Damaged as error:
        raise Damaged(f"{error} Repeat the command that made it.") from error


def is_audit(result: Mapping[str, Any]) -> bool:
    """Whether a result is that of an audit, and not of an erasure."""
    job = result.get("job")
    return isinstance(job, dict) and job.get("task") == "audit"


def check_result(result: dict[str, Any], place: str) -> None:
    """Complain about a result.json that does not hold what an audit writes.

    Raises:
        UserError: every key and value that does not fit; figures that contradict themselves (`_check_figures`); a confusion matrix that is
            not square, or has no row for a target.
    """
    check(result, Result, place)
    for key, needed in (("distances", {"extractor", "parts"}), ("published", {"protocol", "rows"})):
        if (found := result.get(key)) and (lacking := sorted(needed - found.keys())):
            raise UserError(f"{place}: {key} lacks {', '.join(lacking)}; it is empty or holds them all. Audit again with --fresh.")
    _check_figures(result, place)
    if result["models"] and "erased" not in result["models"]:
        raise UserError(f"{place} has no figures of the erased model.")
    for model, found in result["models"].items():
        if "UA" not in found["rates"]:
            raise UserError(f"{place}: the rates of {model} lack UA.")
        _check_confusion(found["confusion"], result["targets"], f"{place}: the confusion matrix of {model}")


def _check_figures(result: Mapping[str, Any], place: str) -> None:
    """Complains about more successes than trials, an estimate that is not k / n, and an interval that leaves its estimate out.

    Of the models' rates the whole interval is counted again, as gates do: a table and a gate cannot say different things.
    """
    for name, figure in _figures({key: result[key] for key in ("models", "paired", "attacks")}, ""):
        k, n, estimate = (figure.get(key) for key in ("k", "n", "estimate"))
        if k is not None and n is not None and k > n:
            raise UserError(f"{place}: {name} counts {k} of {n}.")
        if k is not None and n and estimate is not None and abs(k / n - estimate) > CLOSE:
            raise UserError(f"{place}: the estimate of {name} is {estimate:g}, but {k} of {n} is {k / n:g}; audit again with --fresh.")
        if estimate is not None and "low" in figure and not figure["low"] - CLOSE <= estimate <= figure["high"] + CLOSE:
            bounds = f"{figure['low']:g} to {figure['high']:g}"
            raise UserError(f"{place}: the interval of {name}, {bounds}, leaves out its estimate, {estimate:g}; audit again with --fresh.")
    for model, found in result["models"].items():
        for name, rate in found["rates"].items():
            _check_interval(rate, f"{place}: the interval of {name} of {model}")
    for name, pair in result["paired"].items():
        _check_pair(pair, f"{place}: the paired difference of {name}")


def _figures(part: Any, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping with counts or an estimate, at any depth, by the last key that leads to it."""
    if isinstance(part, dict):
        if part.keys() & {"k", "estimate"}:
            yield name, part
        for key, value in part.items():
            yield from _figures(value, str(key))
    elif isinstance(part, list):
        for value in part:
            yield from _figures(value, name)


def _check_interval(rate: Mapping[str, Any], what: str) -> None:
    if rate["n"] > MANY:
        return
    right = counted_rate(rate["k"], rate["n"], rate.get("effective"))
    if any(abs(rate[key] - right[key]) > CLOSE for key in ("low", "high")):
        said = f"{rate['low']:g} to {rate['high']:g}"
        raise UserError(f"{what} is {said}, but {rate['k']} of {rate['n']} have {right['low']:g} to {right['high']:g}.")


def _check_pair(pair: Mapping[str, Any], what: str) -> None:
    n = sum(pair[key] for key in ("both", "erased_only", "base_only", "neither"))
    right = (pair["erased_only"] - pair["base_only"]) / n if n else 0.0
    if abs(pair["estimate"] - right) > CLOSE:
        raise UserError(f"{what} is {pair['estimate']:g}, but its pairs say {right:g}; audit again with --fresh.")


def _check_confusion(matrix: Mapping[str, Any], targets: list[str], what: str) -> None:
    labels, counts = matrix["labels"], matrix["counts"]
    if len(counts) != len(labels) or any(len(row) != len(labels) for row in counts):
        raise UserError(f"{what} is not {len(labels)} x {len(labels)}, as its labels are.")
    if lacking := [target for target in targets if target not in labels]:
        raise UserError(f"{what} has no row for {lacking[0]!r}.")
