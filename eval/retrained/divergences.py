"""Denoiser divergence in an audit: how far the erasure drifted, and how far it is from models retrained without the concept."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from erasure.edits import Edit
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.storage.files import ensure_folder, is_path_taken, print_message, read_checksummed_json, write_checksummed_json
from erasure.storage.run import cache_folder, hash_record
from eval.generation import Sample
from eval.metrics.denoiser_divergence import DirectedDivergence, divergence_between
from eval.records.convert import parse_record, to_record
from eval.records.distances import DenoiserDivergence, DivergenceDirections, DivergenceFigures
from eval.records.fields import ImagePart
from eval.records.models import BASE, ERASED, AuditedModel
from eval.retrained.retrain_gap import model_pairs
from eval.stats.intervals import Interval

PROMPTS = 20  # of each part, at most, evenly spaced


def load_retrained(model: DiffusionModel, sources: Sequence[str], targets: Sequence[str]) -> tuple[Edit, ...]:
    """Load models that were retrained without the concept, each as an edit of `model`.

    Args:
        sources: whatever `load_external` reads.
        targets: labels that the audit asks about.

    Raises:
        UserError: a source cannot be read, or its header says that it was trained without something else.
    """
    for source in sources:
        if (left_out := read_trained_without(source)) and {left_out} != set(targets):
            raise UserError(
                f"{source} was trained without {left_out}, this audit asks about {', '.join(targets)}; give models retrained without that."
            )
    if not sources:
        return ()
    from erasure.edits.external.external_edit import load_external

    return tuple(load_external(model, source, []) for source in sources)


def read_trained_without(source: str) -> str:
    """Return what scripts/train_retrained.py left out, from the header of its file; empty for all other files and folders."""
    if not (source.endswith(".safetensors") and Path(source).is_file()):
        return ""
    try:
        with safe_open(source, "pt") as file:
            return str((file.metadata() or {}).get("without", ""))
    except SafetensorError:  # `load_external` says what is wrong with it
        return ""


def measure_divergences(
    model: DiffusionModel,
    fingerprint: str,
    edits_by_model: Mapping[AuditedModel, Sequence[Edit]],
    target_samples: Sequence[Sample],
    retained_samples: Sequence[Sample],
) -> tuple[DenoiserDivergence, ...]:
    """Return one record for each pair of models worth comparing, on prompts for the concept and on others.

    Finished comparisons are cached by content: those of base and retrained models are the same for every erasure of the concept.

    Args:
        fingerprint: the model's, without any edit.
        edits_by_model: the edits that make each model: base, erased, and any retrained models.
        target_samples, retained_samples: samples that ask for the concept and that do not; their prompts and seeds are used.
    """
    pairs = [(BASE, ERASED), *model_pairs(tuple(edits_by_model))]
    records: list[DenoiserDivergence] = []
    identity = {"base": fingerprint, **model.compute_key()}
    samples_by_part: dict[ImagePart, Sequence[Sample]] = {"target": target_samples, "retained": retained_samples}
    for part, samples in ((part, spread_over_prompts(part_samples)) for part, part_samples in samples_by_part.items()):
        for first, second in pairs if samples else []:
            prompts_and_seeds = [(a.case.prompt, a.seed) for a in samples]
            model_digests = [[edit.digest() for edit in edits_by_model[name]] for name in (first, second)]
            key = hash_record({**identity, "models": model_digests, "prompts_and_seeds": prompts_and_seeds})
            path = cache_folder() / "divergence" / f"{key}.json"
            figures = read_cached_figures(path)
            if figures is None:
                figures = compare_models(model, edits_by_model[first], edits_by_model[second], prompts_and_seeds)
                ensure_folder(path.parent)
                write_checksummed_json(path, to_record(figures))
            n = len(prompts_and_seeds)
            records.append(DenoiserDivergence(part=part, first=first, second=second, n=n, **vars(figures)))
    return tuple(records)


def read_cached_figures(path: Path) -> DivergenceFigures | None:
    """Return what `compare_models` measured before; None if it is not in the cache, or damaged, which is reported."""
    if not is_path_taken(path):
        return None
    try:
        return parse_record(read_checksummed_json(path), DivergenceFigures, str(path))
    except UserError as error:
        print_message(f"{error} It will be made again.")
        return None


def compare_models(
    model: DiffusionModel, first: Sequence[Edit], second: Sequence[Edit], prompts_and_seeds: Sequence[tuple[str, int]]
) -> DivergenceFigures:
    """Return both measures of the divergence with their intervals, or why there are none."""
    try:
        prompts, seeds = zip(*prompts_and_seeds, strict=True)
        divergences = divergence_between(model, first, second, prompts, seeds)
    except UserError as error:
        return DivergenceFigures(skipped=str(error))
    return DivergenceFigures(nats=_rounded(divergences.nats), mean_squared_error=_rounded(divergences.mean_squared_error))


def _rounded(divergence: DirectedDivergence) -> DivergenceDirections:
    """Round to six significant digits, so that a number prints the same whatever the order of summation."""
    forward, backward, mean = (Interval(*(float(f"{value:.6g}") for value in interval)) for interval in divergence)
    return DivergenceDirections(forward=forward, backward=backward, mean=mean)


def spread_over_prompts(samples: Sequence[Sample]) -> list[Sample]:
    """Select PROMPTS samples with different prompts, evenly spaced; all of them if there are not more."""
    one_per_prompt = list({a.case.prompt: a for a in reversed(samples)}.values())[::-1]
    if len(one_per_prompt) <= PROMPTS:
        return one_per_prompt
    return [one_per_prompt[int(i * len(one_per_prompt) / PROMPTS)] for i in range(PROMPTS)]
