"""An audit as an evaluation log that Inspect reads: one sample an image, one score a judge, one metric a rate.

(https://inspect.aisi.org.uk/eval-logs.html, log format version 2)
"""

from pathlib import Path
from typing import Any

from eval.evidence.manifest import read_manifest
from eval.records.audit_result import AuditResult
from eval.records.models import ERASED
from eval.records.result_files import read_result
from eval.records.rows import SampleRow
from eval.scoring.recount import load_sample_rows

LOG_VERSION = 2


def make_log(folder: Path) -> dict[str, Any]:
    """Return the log (JSON values) of the erased model's images.

    Raises:
        UserError: no finished audit, or no manifest.
        DamagedFile: the result or its rows were changed.
    """
    result, manifest = read_result(folder), read_manifest(folder)
    rows = [row for row in load_sample_rows(folder) if row.model == ERASED]
    date = manifest.date.replace(" UTC", ":00+00:00").replace(" ", "T")
    name = f"{result.job.suite}-{result.tier}"
    return {
        "version": LOG_VERSION,
        "status": "success",
        "eval": {
            "created": date,
            "task": name,
            "dataset": {"name": name, "samples": len(rows)},
            "model": f"{result.edits[0].base.source} with {' + '.join(edit.method for edit in result.edits)}",
            "config": {},
            "packages": dict(manifest.software),
            "metadata": {"base": result.job.base, "edits": list(result.job.edits), "suite_digest": result.job.suite_digest},
        },
        "results": {"total_samples": len(rows), "completed_samples": len(rows), "scores": [rate_scores(result)]},
        "samples": [sample_record(number, row) for number, row in enumerate(rows, 1)],
    }


def rate_scores(result: AuditResult) -> dict[str, Any]:
    """Return every rate of the erased model as a metric, with its counts and interval."""
    rates = result.erased.rates if result.erased else {}
    metrics = {
        str(name): {
            "name": str(name),
            "value": rate.estimate,
            "metadata": {"k": rate.k, "n": rate.n, "low": rate.low, "high": rate.high, "interval": "95%, Clopper-Pearson"},
        }
        for name, rate in rates.items()
    }
    return {"name": "rates", "scorer": "erasure-studio", "metrics": metrics}


def sample_record(number: int, row: SampleRow) -> dict[str, Any]:
    """Return one image: its prompt, the labels that it asks for, and what the judges read."""
    scores: dict[str, Any] = {}
    for axis in ("style", "object"):
        score = getattr(row.scores, axis)
        if score is not None:
            scores[axis] = {"value": score.label, "answer": score.label, "explanation": f"p = {score.p:.3f}"}
    if row.scores.clip is not None:
        scores["clip"] = {"value": row.scores.clip.cosine}
    return {
        "id": number,
        "epoch": 1,
        "input": row.prompt,
        "target": [row.style, row.object],
        "scores": scores,
        "metadata": {"image": row.image, "seed": str(row.seed), "role": str(row.role), "variant": row.variant},
    }
