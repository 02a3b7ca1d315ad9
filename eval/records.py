"""The schema of result.json. A result is checked when it is read, so that all later code can rely on every key."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Discriminator, Field, Tag
from typing_extensions import TypedDict

from erasure.config.validation import check_mapping
from erasure.errors import UserError
from erasure.storage.files import DamagedFile, MissingChecksum, read_checksummed_json
from eval.scoring.rates import counted_rate
from eval.suites.axes import Axis

MADE_BY_EARLIER_VERSION = "{} was made by an earlier version of this project; audit again with --fresh."
MAX_RECOUNTED_TRIALS = 10_000_000  # above it, an interval is not computed again
TOLERANCE = 1e-6  # between a recorded and a recomputed value

Count = Annotated[int, Field(ge=0)]
Proportion = Annotated[float, Field(ge=0, le=1)]
Difference = Annotated[float, Field(ge=-1, le=1)]
FiniteNumber = Annotated[float, Field(allow_inf_nan=False)]
ModelName = Annotated[str, Field(pattern=r"^(base|erased|retrained-[0-9]+)$")]
ImagePart = Literal["target", "retained"]
EstimateAndBounds = Annotated[list[FiniteNumber], Field(min_length=3, max_length=3)]  # estimate, low, high


class CountedRate(TypedDict):
    """A rate with its interval (eval.scoring.rates.counted_rate)."""

    k: Count
    n: Annotated[int, Field(ge=1)]
    estimate: Proportion
    low: Proportion
    high: Proportion
    effective: NotRequired[Annotated[float, Field(gt=0, allow_inf_nan=False)]]


class SuccessCount(TypedDict):
    """Successes k in n trials; n may be 0."""

    k: Count
    n: Count


class MeanEstimate(TypedDict):
    """A mean and its 95 % interval."""

    estimate: FiniteNumber
    low: FiniteNumber
    high: FiniteNumber


class PairedDifference(TypedDict):
    """The erased model's rate minus the base's (eval.scoring.counting.paired_differences)."""

    estimate: Difference
    low: Difference
    high: Difference
    both: Count
    erased_only: Count
    base_only: Count
    neither: Count
    p: Proportion


class ConfusionMatrix(TypedDict):
    """Image counts by prompted label (rows) and read label (columns)."""

    labels: list[str]
    counts: list[list[Count]]


class AlignmentByPart(TypedDict):
    """CLIP alignment, 100 x cosine, by part; None if it was not measured."""

    retained: MeanEstimate | None
    target: MeanEstimate | None
    benign: MeanEstimate | None


class ModelFigures(TypedDict):
    """What was counted for one model."""

    rates: dict[str, CountedRate]
    confusion: ConfusionMatrix
    clip: AlignmentByPart
    excluded: dict[str, SuccessCount]


class DistributionDistance(TypedDict):
    """FID, KID or CMMD of two image sets; if value is None, `reason` says why."""

    value: FiniteNumber | None
    low: FiniteNumber | None
    high: FiniteNumber | None
    reason: str | None
    n: list[Count]
    extractor: str
    width: Count


class ModelPairKid(TypedDict):
    """KID between two models' images of different noise."""

    first: ModelName
    second: ModelName
    value: FiniteNumber | None
    low: FiniteNumber | None
    high: FiniteNumber | None


class ImageSetDistances(TypedDict, total=False):
    """Distances between image sets (eval.metrics.image_distances.image_set_distances); empty if nothing was measured."""

    extractor: dict[str, Any]
    parts: dict[ImagePart, dict[ModelName, dict[Literal["fid", "kid", "cmmd"], dict[str, DistributionDistance]]]]
    model_pairs: dict[ImagePart, list[ModelPairKid]]


class DivergenceDirections(TypedDict):
    """A divergence per image, from either model to the other, and their mean."""

    forward: EstimateAndBounds
    backward: EstimateAndBounds
    mean: EstimateAndBounds


class DenoiserDivergence(TypedDict):
    """The divergence of a pair of models, or why it is missing (eval.retrained.divergences.measure_divergences)."""

    part: ImagePart
    first: ModelName
    second: ModelName
    n: Count
    nats: NotRequired[DivergenceDirections]
    mean_squared_error: NotRequired[DivergenceDirections]
    skipped: NotRequired[str]


class ModelDistance(TypedDict):
    """A distance between two models (eval.retrained.retrain_gap.model_distances)."""

    measure: Literal["UA", "IRA", "CRA", "replacement_labels"]
    first: ModelName
    second: ModelName
    value: EstimateAndBounds


class AuditJob(TypedDict):
    """What identifies an audit."""

    task: Literal["audit"]
    base: str
    edits: list[str]
    suite: str
    suite_version: Count
    suite_digest: str
    axis: Axis
    tier: str
    strength: FiniteNumber
    compute: str
    replay: NotRequired[str]
    only: NotRequired[str]
    retrained: NotRequired[list[str]]
    keep_images: NotRequired[str]


class GateRecord(TypedDict):
    """A gate of the suite (eval.scoring.gates.Gate)."""

    name: str
    rate: str
    at_least: Proportion | None
    drop_at_most: Proportion | None
    tier: str


class ErasedConcept(TypedDict):
    """A concept that an edit claims to erase."""

    name: str
    kind: str
    prompts: NotRequired[list[str]]
    anchor: NotRequired[str]
    aliases: NotRequired[list[str]]


class ConceptCheckRecord(TypedDict):
    """Whether the base knows a concept (erasure.concept_check.ConceptCheck)."""

    name: str
    concept_influence: FiniteNumber
    nonsense_influence: FiniteNumber
    weakly_known: bool


class AuditedEdit(TypedDict):
    """An audited edit, or the stand-in for external images, which come without one."""

    method: str
    fields: dict[str, Any]
    concepts: list[ErasedConcept]
    seed: int
    cost: dict[str, Count]
    base: dict[str, Any]
    versions: NotRequired[dict[str, str]]
    concept_checks: list[ConceptCheckRecord]
    notes: dict[str, Any]
    product: str


class EditOverlap(TypedDict):
    """How much two edits change the same weights (erasure.edits.overlap.PairOverlap)."""

    first: str
    second: str
    shared: Count
    cosine: FiniteNumber | None
    warning: str


class PromptListFile(TypedDict):
    """A list file and its use (eval.suites.list_reader.PromptListOrigin)."""

    use: Literal["prompts", "replay"]
    file: str
    sha256: str
    rows: Count
    prompts: Count
    left_out: dict[str, Count]
    warnings: list[str]


class ExternalImagesSummary(TypedDict):
    """What external image files are like (eval.external_images.summarize_images)."""

    jpeg_count: Count
    n: Count
    sizes: Annotated[list[str], Field(min_length=1)]
    per_cell_range: Annotated[list[Count], Field(min_length=2, max_length=2)]
    seeds: list[Count]


class SearchPoint(CountedRate):
    """Prompts broken within a number of images."""

    images: Count


class FineTuningPoint(CountedRate):
    """Images that show the concept after a number of fine-tuning steps."""

    steps: Count


class ImagesToSuccess(TypedDict):
    """Images that a search needed per prompt (eval.scoring.attack_rates.images_to_success)."""

    median: Count | None
    p95: Count | None
    per_success: FiniteNumber | None


class TokenIdRates(TypedDict):
    """Results of token ids that no typed text is tokenized to."""

    failed_round_trips: CountedRate
    ids_only: CountedRate


class ControlDifference(TypedDict, total=False):
    """The attack's share of broken prompts minus a control's; empty if no prompt had both."""

    estimate: Difference
    low: Difference
    high: Difference
    n: Count


class AttackInfo(TypedDict):
    """What identifies an attack."""

    name: str
    paper: str
    threat: str
    control: bool
    fields: dict[str, Any]


class AttackNotRun(AttackInfo):
    """An attack without figures, and the reason."""

    skipped: NotRequired[str]
    crashed: NotRequired[str]


class PromptSearch(AttackInfo):
    """An attack that searches for prompts."""

    planned: Count
    n: Count
    images: Count
    curve: Annotated[list[SearchPoint], Field(min_length=1)]
    base: CountedRate
    per_image: Proportion
    searched: Count
    images_to_success: ImagesToSuccess
    broken_by_search: Count
    fresh_noise: CountedRate | None
    token_ids: NotRequired[TokenIdRates]
    over_controls: NotRequired[dict[str, ControlDifference]]


class FineTuningAttack(AttackInfo):
    """An attack that trains the weights further."""

    n: Count
    steps: Annotated[list[FineTuningPoint], Field(min_length=1)]
    base: CountedRate
    erased_before: bool
    revived_at_step: Count | None


def _attack_tag(attack: Any) -> str:
    if not isinstance(attack, dict):
        return "not run"
    return "search" if "curve" in attack else "fine-tuning" if "steps" in attack else "not run"


AttackRecord = Annotated[
    Annotated[PromptSearch, Tag("search")] | Annotated[FineTuningAttack, Tag("fine-tuning")] | Annotated[AttackNotRun, Tag("not run")],
    Discriminator(_attack_tag),
]


class PublishedRate(TypedDict):
    """k of n as a published protocol counts them."""

    k: Count
    n: Count
    estimate: FiniteNumber


class CorrectedFigure(TypedDict):
    """The corrected counterpart of a published figure, with its interval."""

    estimate: FiniteNumber
    low: FiniteNumber
    high: FiniteNumber
    k: NotRequired[Count]
    n: NotRequired[Count]
    effective: NotRequired[FiniteNumber]
    warning: NotRequired[str]


class PublishedFigure(TypedDict):
    """One figure of a protocol beside the corrected one (eval.scoring.published.published_figures)."""

    figure: str
    published: PublishedRate | None
    corrected: CorrectedFigure | None
    is_difference: bool
    method: str
    caveat: str


class PublishedFigures(TypedDict, total=False):
    """A protocol's figures; empty if the suite names no protocol."""

    protocol: str
    figures: list[PublishedFigure]


class JudgeErrors(TypedDict):
    """How often a judge was right about the targets, and of how many images."""

    true_positive: Count
    positive: Count
    true_negative: Count
    negative: Count


class AuditResult(TypedDict):
    """The result of an audit."""

    tier: str
    axis: Axis
    targets: Annotated[list[str], Field(min_length=1)]
    suite_format: NotRequired[Literal["prompt_list"]]
    kind: NotRequired[str]
    models: dict[ModelName, ModelFigures]
    paired: dict[str, PairedDifference]
    clip_drop: NotRequired[AlignmentByPart]
    model_distances: NotRequired[list[ModelDistance]]
    job: AuditJob
    samples_sha256: str
    prompt_lists: NotRequired[list[PromptListFile]]  # keys that are not required here are missing in results of earlier versions
    external_images: NotRequired[ExternalImagesSummary]
    attacks: list[AttackRecord]
    pixel_distance: MeanEstimate | None
    image_set_distances: ImageSetDistances
    denoiser_divergences: list[DenoiserDivergence]
    judges: dict[str, dict[str, Any]]
    gates: NotRequired[list[GateRecord]]
    suite_file: NotRequired[str]  # name of the user's suite file
    missing: dict[str, str]
    judge_errors: JudgeErrors | None
    edits: Annotated[list[AuditedEdit], Field(min_length=1)]
    edit_overlaps: list[EditOverlap]
    sample_sizes: NotRequired[dict[str, dict[str, Count]]]
    published: NotRequired[PublishedFigures]


def read_result(folder: Path) -> dict[str, Any]:
    """Return what result.json of a folder holds, without its checksum, which is required in an audit's result.

    Raises:
        DamagedFile: unreadable, or changed after it was written.
        UserError: an audit of an earlier version, without a checksum.
    """
    path = folder / "result.json"
    try:
        return read_checksummed_json(path)
    except MissingChecksum as error:
        result = read_checksummed_json(path, required=False)
        if is_audit(result):
            raise UserError(MADE_BY_EARLIER_VERSION.format(folder)) from error
        if not isinstance(result.get("job", {}), dict):
            raise DamagedFile(f"{path} is damaged: its job is not a mapping. Run the command that made it again.") from error
        return result
    except DamagedFile as error:
        raise DamagedFile(f"{error} Run the command that made it again.") from error


def is_audit(result: Mapping[str, Any]) -> bool:
    """Return whether a result is that of an audit, not of an erasure."""
    job = result.get("job")
    return isinstance(job, dict) and job.get("task") == "audit"


def check_result(result: dict[str, Any], source: str) -> None:
    """Check that a result.json holds what an audit writes.

    Args:
        source: where the result comes from, for error messages.

    Raises:
        UserError: keys or values do not fit the schema (all are named); figures contradict themselves (`_check_figures`); a confusion
            matrix is not square or has no row for a target.
    """
    check_mapping(result, AuditResult, source)
    for key, required in (("image_set_distances", {"extractor", "parts"}), ("published", {"protocol", "figures"})):
        if (entry := result.get(key)) and (missing := sorted(required - entry.keys())):
            raise UserError(f"{source}: {key} lacks {', '.join(missing)}; it must be empty or hold them all. Audit again with --fresh.")
    _check_figures(result, source)
    if result["models"] and "erased" not in result["models"]:
        raise UserError(f"{source} has no figures of the erased model.")
    for model, entry in result["models"].items():
        if "UA" not in entry["rates"]:
            raise UserError(f"{source}: the rates of {model} lack UA.")
        _check_confusion(entry["confusion"], result["targets"], f"{source}: the confusion matrix of {model}")


def _check_figures(result: Mapping[str, Any], source: str) -> None:
    """Check that k <= n, that an estimate is k / n, and that it lies in its interval.

    The intervals of the models' rates are computed again, as gates do, so that a table and a gate cannot disagree.
    """
    for name, figure in _figures({key: result[key] for key in ("models", "paired", "attacks")}, ""):
        k, n, estimate = (figure.get(key) for key in ("k", "n", "estimate"))
        if k is not None and n is not None and k > n:
            raise UserError(f"{source}: {name} counts {k} of {n}.")
        if k is not None and n and estimate is not None and abs(k / n - estimate) > TOLERANCE:
            raise UserError(f"{source}: the estimate of {name} is {estimate:g}, but {k} of {n} is {k / n:g}; audit again with --fresh.")
        if estimate is not None and "low" in figure and not figure["low"] - TOLERANCE <= estimate <= figure["high"] + TOLERANCE:
            bounds = f"{figure['low']:g} to {figure['high']:g}"
            raise UserError(f"{source}: the interval of {name}, {bounds}, leaves out its estimate, {estimate:g}; audit again with --fresh.")
    for model, figures in result["models"].items():
        for name, rate in figures["rates"].items():
            _check_interval(rate, f"{source}: the interval of {name} of {model}")
    for name, pair in result["paired"].items():
        _check_pair(pair, f"{source}: the paired difference of {name}")


def _figures(part: Any, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every mapping with counts or an estimate, at any depth, with the last key on the way to it."""
    if isinstance(part, dict):
        if part.keys() & {"k", "estimate"}:
            yield name, part
        for key, value in part.items():
            yield from _figures(value, str(key))
    elif isinstance(part, list):
        for value in part:
            yield from _figures(value, name)


def _check_interval(rate: Mapping[str, Any], what: str) -> None:
    if rate["n"] > MAX_RECOUNTED_TRIALS:
        return
    expected = counted_rate(rate["k"], rate["n"], rate.get("effective"))
    if any(abs(rate[key] - expected[key]) > TOLERANCE for key in ("low", "high")):
        bounds = f"{rate['low']:g} to {rate['high']:g}"
        raise UserError(f"{what} is {bounds}, but {rate['k']} of {rate['n']} have {expected['low']:g} to {expected['high']:g}.")


def _check_pair(pair: Mapping[str, Any], what: str) -> None:
    n = sum(pair[key] for key in ("both", "erased_only", "base_only", "neither"))
    expected = (pair["erased_only"] - pair["base_only"]) / n if n else 0.0
    if abs(pair["estimate"] - expected) > TOLERANCE:
        raise UserError(f"{what} is {pair['estimate']:g}, but its pairs say {expected:g}; audit again with --fresh.")


def _check_confusion(matrix: Mapping[str, Any], targets: list[str], what: str) -> None:
    labels, counts = matrix["labels"], matrix["counts"]
    if len(counts) != len(labels) or any(len(row) != len(labels) for row in counts):
        raise UserError(f"{what} is not {len(labels)} x {len(labels)}, as its labels are.")
    if missing := [target for target in targets if target not in labels]:
        raise UserError(f"{what} has no row for {missing[0]!r}.")
