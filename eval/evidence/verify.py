"""Check a finished audit: every digest, and every figure counted again from the rows that it came from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from erasure.edits import Edit
from erasure.errors import UserError
from erasure.storage.files import read_json
from erasure.storage.run import hash_record
from eval.auditing.plan import AuditPlan
from eval.auditing.prepare import suite_digest
from eval.evidence.manifest import MANIFEST_FILE, file_digest, folders_of_edits, listed_files, read_manifest
from eval.generation import Sample, load_batches
from eval.metrics.image_distances import retained_distance
from eval.records.attacks import AttackInfo
from eval.records.audit_result import AuditResult
from eval.records.convert import to_record
from eval.records.models import AuditedModel
from eval.records.result_files import audit_gates, is_audit, read_report_head, read_result
from eval.records.row_files import read_attack_rows
from eval.records.scores import AlignmentScore, LabelScore
from eval.report.report_json import make_report
from eval.scoring.attack_rates import count_attack_rates
from eval.scoring.judge_scores import available_judges, load_scores
from eval.scoring.recount import load_sample_rows, recount
from eval.suites.formats import Suite
from eval.suites.suite import load_suite

CheckState = Literal["ok", "broken", "not checked"]
SHOWN_PATHS = 3
REJUDGED = "images read again"
LABEL_TOLERANCE, COSINE_TOLERANCE = 0.02, 0.2  # of p, and of 100 x cosine: another machine rounds differently


@dataclass(frozen=True)
class Check:
    """One thing that was checked: what came out, and in a sentence why."""

    name: str
    state: CheckState
    detail: str


def verify_audit(folder: Path, edits: Sequence[Path] = (), *, suite: str = "", rejudge: bool = False) -> tuple[Check, ...]:
    """Check a finished audit.

    Args:
        folder: of the audit.
        edits: folders of the edits that it audited; by default the one above or beside it.
        suite: that the audit was made with, as a name or a file; by default the shipped one of its name.
        rejudge: load every image and let the judges read it again, and measure again how much the retained images changed.

    Raises:
        UserError: no finished audit of this version.
    """
    path = folder / "result.json"
    if not path.is_file() or not is_audit(read_json(path)):
        raise UserError(f"no finished audit at {folder}; give the audit-... folder that `erasure audit EDIT` made.")
    checks: list[Check] = [attempt("files", lambda: check_files(folder))]
    try:
        result = read_result(folder)
    except UserError as error:
        return (*checks, Check("result.json", "broken", str(error)))
    checks.append(Check("result.json", "ok", "its checksum is that of its figures."))
    checks.append(attempt("rows", lambda: check_rows(folder, result)))
    found = find_suite(result, suite)
    checks.append(attempt("figures", lambda: check_figures(folder, result, found)))
    checks.append(attempt("attacks", lambda: check_attacks(folder, result)))
    checks.append(attempt("report", lambda: check_report(folder, result)))
    checks.append(attempt("edits", lambda: check_edits(folder, result, edits)))
    if rejudge:
        checks.append(attempt(REJUDGED, lambda: check_judgments(folder, result, found)))
    else:
        checks.append(Check(REJUDGED, "not checked", "the judges read every image again with --rejudge."))
    return tuple(checks)


def attempt(name: str, check: Callable[[], Check]) -> Check:
    """Return what a check says; one that cannot be carried out is broken, with the reason."""
    try:
        return check()
    except UserError as error:
        return Check(name, "broken", str(error))


def check_files(folder: Path) -> Check:
    """Compare every file with the manifest."""
    if not (folder / MANIFEST_FILE).is_file():
        return Check("files", "not checked", f"there is no {MANIFEST_FILE}; `erasure audit report` writes one.")
    listed = read_manifest(folder).files
    present = {path.relative_to(folder).as_posix(): path for path in listed_files(folder)}
    changed = [name for name, digest in listed.items() if name in present and file_digest(present[name]) != digest]
    missing, added = sorted(listed.keys() - present.keys()), sorted(present.keys() - listed.keys())
    faults = [
        f"{word} {name_some(names)}" for word, names in (("changed:", changed), ("missing:", missing), ("not listed:", added)) if names
    ]
    if faults:
        return Check("files", "broken", f"{'; '.join(faults)}.")
    return Check("files", "ok", f"{len(listed):,} files are those of {MANIFEST_FILE}.")


def name_some(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    rest = len(names) - SHOWN_PATHS
    return ", ".join(names[:SHOWN_PATHS]) + (f" and {rest:,} more" if rest > 0 else "")


def check_rows(folder: Path, result: AuditResult) -> Check:
    """Compare samples.jsonl with the digest in the result, and with what every judge has stored."""
    rows = load_sample_rows(folder)
    for part, identity in result.judges.items():
        path = folder / "scores" / f"{part}-{hash_record(dict(identity))}.jsonl"
        if not path.is_file():
            return Check("rows", "broken", f"{path.name} is missing: the scores of the judge of {part}.")
        scores = load_scores(path, AlignmentScore if part == "clip" else LabelScore)
        for row in rows:
            if getattr(row.scores, part) != scores.get((str(row.model), row.file_name)):
                return Check("rows", "broken", f"{row.image} has another {part} in samples.jsonl than in {path.name}.")
    return Check("rows", "ok", f"{len(rows):,} rows are those that were counted, with the scores that {len(result.judges)} judges stored.")


def find_suite(result: AuditResult, named: str) -> Suite | str:
    """Return the suite of an audit, or in a sentence why it is not at hand."""
    name = named or result.suite_file or result.job.suite
    try:
        suite = load_suite(name)
    except UserError as error:
        return f"name the suite with --suite; {name} cannot be loaded: {error}"
    if suite_digest(suite) != result.job.suite_digest:
        return f"suite {name} here is not the one that the audit was made with (version {result.job.suite_version})."
    return suite


def check_figures(folder: Path, result: AuditResult, suite: Suite | str) -> Check:
    """Count every rate again from the rows."""
    if isinstance(suite, str):
        return Check("figures", "not checked", suite)
    counted, again = to_record(result), to_record(recount(folder, suite))
    if different := [key for key in again if again[key] != counted.get(key)]:
        return Check("figures", "broken", f"counted again from the rows, these differ: {', '.join(sorted(different))}.")
    rates = sum(len(figures.rates) for figures in result.models.values())
    return Check("figures", "ok", f"{rates} rates of {len(result.models)} models follow from the rows.")


def check_attacks(folder: Path, result: AuditResult) -> Check:
    """Count what attacks achieved again from their rows."""
    if not result.attacks:
        return Check("attacks", "ok", "there are none in this tier.")
    path = folder / "attacks" / "attacks.jsonl"
    rows, plain = read_attack_rows(path), load_sample_rows(folder)
    attacked = {row.image for row in rows if hasattr(row, "image")}
    shown: dict[str, dict[AuditedModel, bool]] = {}
    for row in plain:
        if row.file_name in attacked:
            shown.setdefault(row.file_name, {})[row.model] = row.is_as_prompted(result.axis)
    names = ("name", "paper", "threat", "control", "fields")
    infos = [AttackInfo(**{name: getattr(attack, name) for name in names}) for attack in result.attacks]
    if attacked != shown.keys() or [to_record(a) for a in count_attack_rates(rows, infos, shown)] != [to_record(a) for a in result.attacks]:
        return Check("attacks", "broken", "counted again from attacks.jsonl, the figures of attacks differ.")
    return Check("attacks", "ok", f"the figures of {len(result.attacks)} attacks follow from {len(rows):,} rows.")


def check_report(folder: Path, result: AuditResult) -> Check:
    """Make report.json again from the result and compare it."""
    if not read_report_head(folder).thresholds.from_suite:
        return Check("report", "not checked", "it was decided by thresholds from elsewhere, which are not in the folder.")
    recorded, again = read_json(folder / "report.json"), to_record(make_report(result, audit_gates(folder, result)))
    if different := sorted(key for key in recorded.keys() | again.keys() if recorded.get(key) != again.get(key)):
        return Check("report", "broken", f"report.json says something else about {', '.join(different)} than result.json.")
    return Check("report", "ok", "report.json follows from result.json.")


def check_edits(folder: Path, result: AuditResult, edits: Sequence[Path]) -> Check:
    """Compare the edits with those that the audit names."""
    if result.external_images:
        return Check("edits", "not checked", "the audit is of images that another tool generated.")
    paths = folders_of_edits(folder, edits)
    if not paths:
        return Check("edits", "not checked", "no edit lies above or beside the audit; name its folder with --edit.")
    digests = [Edit.load(path).digest() for path in paths]
    if digests != list(result.job.edits):
        return Check("edits", "broken", f"{', '.join(map(str, paths))}: {', '.join(digests)}; audited were {', '.join(result.job.edits)}.")
    return Check("edits", "ok", f"{', '.join(map(str, paths))}: what was audited.")


def check_judgments(folder: Path, result: AuditResult, suite: Suite | str) -> Check:
    """Let the judges read every image again, and measure the retained ones again."""
    if result.job.keep_images != "all":
        return Check(REJUDGED, "not checked", "the audit kept no images.")
    if isinstance(suite, str) or result.external_images:
        return Check(REJUDGED, "not checked", suite if isinstance(suite, str) else "the images lie elsewhere.")
    rows, (judges, missing) = load_sample_rows(folder), available_judges(suite)
    if lacking := [part for part in result.judges if part in missing]:
        return Check(REJUDGED, "not checked", missing[lacking[0]])
    names = [concept.name for edit in result.edits for concept in edit.concepts]
    plan = next(plan for plan in AuditPlan.for_concepts(names, suite, result.tier, only=result.job.only) if plan.axis == result.axis)
    by_image = {(str(row.model), row.file_name): row for row in rows}
    for model in result.models:
        samples = [sample for sample in plan.samples if (str(model), sample.file_name) in by_image]
        for group, images in load_batches(samples, folder / "images" / str(model)):
            for part, judge in judges.items():
                scores = judge.score(images, [sample.case.prompt for sample in group])
                for sample, score in zip(group, scores, strict=True):
                    row = by_image[str(model), sample.file_name]
                    if not is_same_score(getattr(row.scores, part), score):
                        return Check(REJUDGED, "broken", f"the judge of {part} reads {row.image} as {score}, not as the audit did.")
    return check_distance(folder, result, plan.retained_samples, len(by_image))


def check_distance(folder: Path, result: AuditResult, retained: Sequence[Sample], count: int) -> Check:
    """Measure the pixel distance of retained images again."""
    again = retained_distance(retained, folder / "images")
    if again != result.pixel_distance:
        return Check(REJUDGED, "broken", f"retained images differ from the base's by {again}, not by {result.pixel_distance}.")
    return Check(REJUDGED, "ok", f"the judges read {count:,} images as the audit did; retained images changed by as much.")


def is_same_score(recorded: LabelScore | AlignmentScore | None, again: object) -> bool:
    """Return whether a score is the recorded one, up to the rounding of another machine."""
    if isinstance(recorded, LabelScore) and isinstance(again, LabelScore):
        is_close_call = max(recorded.p, again.p) < 0.5 + LABEL_TOLERANCE
        return abs(recorded.p - again.p) <= LABEL_TOLERANCE and (recorded.label == again.label or is_close_call)
    if isinstance(recorded, AlignmentScore) and isinstance(again, AlignmentScore):
        return abs(recorded.cosine - again.cosine) <= COSINE_TOLERANCE
    return recorded is None and again is None
