"""Finished audits as the library returns them: typed results, one verdict, reports; read again, reported again, or compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from erasure.concept import ConceptKind
from erasure.config.arguments import check_arguments
from erasure.errors import UserError
from erasure.storage.locks import lock_folder
from eval.comparison import tabulate_comparison
from eval.external_images import audit_external_images
from eval.records.audit_result import AuditResult
from eval.records.axes import AXES
from eval.records.gates import Gate
from eval.records.result_files import audit_gates, read_result
from eval.report.html import write_report
from eval.requests import resolve_suite
from eval.scoring.gates import EXIT_INCOMPLETE, decide_verdict, exit_code_of
from eval.scoring.recount import recount
from eval.suites.formats import Suite

AuditVerdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "INCOMPLETE"]
VERDICTS_WORST_FIRST: tuple[AuditVerdict, ...] = ("FAIL", "INCOMPLETE", "INCONCLUSIVE", "PASS")


@dataclass(frozen=True)
class Audit:
    """Finished audits of the same edits: one for styles, one for objects, or both.

    Attributes:
        results: what each counted.
        verdict: the worst of them. INCOMPLETE: weights of a judge are missing, or an attack crashed.
        reports: the report.html of each; report.json and junit.xml are beside it.
    """

    results: tuple[AuditResult, ...]
    verdict: AuditVerdict
    reports: tuple[Path, ...]

    def __repr__(self) -> str:
        return f"Audit({', '.join([self.verdict, *map(str, self.reports)])})"

    @property
    def result(self) -> AuditResult:
        """The only result.

        Raises:
            UserError: there are two, since the edits erase styles and objects.
        """
        if len(self.results) != 1:
            axes = " and ".join(f"{result.axis}s" for result in self.results)
            raise UserError(f"this audit has {len(self.results)} results, for {axes}; read `results`.")
        return self.results[0]


class FinishedRun(NamedTuple):
    """The folder of a finished audit, what it counted, and the gates that decide."""

    folder: Path
    result: AuditResult
    gates: Sequence[Gate]
    gates_source: str = ""  # the suite or file of the gates, if not the audit's own


def report_runs(runs: Sequence[FinishedRun], blur: bool = False) -> Audit:
    """Write the report of every run, and return them as one audit.

    Args:
        blur: blur the reports' images until the reader reveals them.
    """
    reports = [write_report(run.folder, run.result, run.gates, blur=blur, gates_source=run.gates_source) for run in runs]
    return audit_of(runs, reports)


def audit_of(runs: Sequence[FinishedRun], reports: Sequence[Path]) -> Audit:
    """Return runs as one audit, whose verdict is the worst of theirs."""
    verdicts = [verdict_of(run.result, run.gates) for run in runs]
    worst = next(verdict for verdict in VERDICTS_WORST_FIRST if verdict in verdicts)
    return Audit(tuple(run.result for run in runs), worst, tuple(reports))


def verdict_of(result: AuditResult, gates: Sequence[Gate]) -> AuditVerdict:
    """Return the verdict of one result by these gates."""
    state = decide_verdict(gates, result).state
    return "INCOMPLETE" if exit_code_of(state, result) == EXIT_INCOMPLETE else state


@check_arguments
def load_audit(folder: str | Path) -> Audit:
    """Return a finished audit by the gates that it was made with; nothing is written.

    Args:
        folder: of an audit, or the one above the audits for styles and for objects.

    Raises:
        UserError: there is no finished audit, or it was changed after it was made.
    """
    runs = [_load_run(path) for path in _folders_below(Path(folder))]
    return audit_of(runs, [path for run in runs if (path := run.folder / "report.html").is_file()])


@check_arguments
def rewrite_report(folder: str | Path, suite: str | Path | Suite = "", *, blur: bool = False) -> Audit:
    """Write the reports of a finished audit again; other gates need no new images.

    Args:
        folder: of an audit, or the one above the audits for styles and for objects.
        suite: whose gates decide, with the same judges; empty for the gates that the audit was made with.
        blur: blur the reports' images until the reader reveals them.

    Raises:
        UserError: there is no finished audit; or the suite has another format, lacks a label of the audit, or has other judges.
        FolderLocked: another process is writing into the folder.
    """
    runs = []
    for path in _folders_below(Path(folder)):
        result = read_result(path)
        with lock_folder(path, "erasure audit report"):
            if not suite:
                run = FinishedRun(path, result, audit_gates(path, result))
            else:
                loaded, _ = resolve_suite(suite)
                run = FinishedRun(path, recount(path, loaded), loaded.gates, str(suite) if isinstance(suite, str | Path) else "")
            runs.append((run, report_runs([run], blur).reports[0]))
    return audit_of([run for run, _ in runs], [report for _, report in runs])


@check_arguments
def audit_images(
    folder: str | Path,
    concept: str,
    suite: str | Path | Suite = "unlearncanvas",
    *,
    out: str | Path,
    kind: ConceptKind = "style",
    base: str | Path | None = None,
    fresh: bool = False,
    blur: bool = False,
) -> Audit:
    """Audit images that another tool generated, named {style}_{object}_seed{seed}.jpg or .png.

    Args:
        folder: the erased model's images.
        concept: what it claims to have erased: a label of the suite or its phrase.
        suite: with a grid; see `eval.audit`.
        out: the audit's folder.
        kind: of the concept.
        base: folder of the base's images, with the same names; without it, no drop is measured.
        fresh: start over instead of continuing what `out` holds.
        blur: blur the report's images until the reader reveals them.

    Raises:
        UserError: the suite has no grid or lacks the concept; `out` holds something else; or the images do not fit the suite.
        FolderLocked: another process is writing into `out`.
    """
    chosen_suite, _ = resolve_suite(suite)
    base_folder = Path(base) if base is not None else None
    with lock_folder(Path(out), "erasure audit images"):
        result = audit_external_images(Path(folder), chosen_suite, concept, kind, Path(out), base_folder, fresh)
        return report_runs([FinishedRun(Path(out), result, chosen_suite.gates)], blur)


@check_arguments
def compare(first: str | Path, second: str | Path) -> str:
    """Return a Markdown table of two finished audits of one suite, image by image from the same noise.

    It has each rate of both erased models, their paired difference in points with its 95% interval, and McNemar's p after Holm.

    Raises:
        UserError: a folder has no finished audit, or nothing was counted in it; or the audits differ in what they ask, in their judges or
            in their images.
    """
    return "\n".join(tabulate_comparison(Path(first), Path(second)))


def _load_run(folder: Path) -> FinishedRun:
    result = read_result(folder)
    return FinishedRun(folder, result, audit_gates(folder, result))


def _folders_below(folder: Path) -> list[Path]:
    """Return the folder itself, or those of the audits for styles and for objects in it."""
    folders = [folder / axis for axis in AXES if (folder / axis / "result.json").is_file()]
    return [folder] if (folder / "result.json").is_file() or not folders else folders
