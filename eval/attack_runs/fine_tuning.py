"""Weight attacks -> rows: the judge's scores at every checkpoint of a fine-tuning."""

from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from erasure.storage.files import ensure_folder, write_checksummed_json
from erasure.storage.run import hash_record
from eval.attack_runs.attack_run import AttackRun, chunk_size
from eval.attack_runs.saved_rows import read_saved
from eval.attacks.base import AttackContext, AttackQuery, WeightAttack
from eval.records.convert import to_record
from eval.records.rows import AttackScore, FineTuningRow, SavedFineTuning


def fine_tuning_rows(
    attack: WeightAttack, name: str, context: AttackContext, attack_run: AttackRun, folder: Path
) -> tuple[FineTuningRow, ...]:
    """Score all attacked prompts, with their own seeds, at every checkpoint of a fine-tuning."""
    path = folder / "curve.json"
    judge_digest = hash_record(attack_run.judge.identity())
    saved = read_saved(path, SavedFineTuning, judge_digest)
    if saved is None:
        with closing(attack.fine_tune(context)) as checkpoints:
            rows = [
                FineTuningRow(attack=name, step=step, scores=score_prompts(context, attack_run))
                for step in tqdm(checkpoints, f"{name}, scoring checkpoints", unit="checkpoint")
            ]
        ensure_folder(path.parent)
        saved = SavedFineTuning(rows=tuple(rows), judge=judge_digest)
        write_checksummed_json(path, to_record(saved))
    return saved.rows


def score_prompts(context: AttackContext, attack_run: AttackRun) -> tuple[AttackScore, ...]:
    """Score one image of every attacked prompt by the model as it is now, without any attack on the prompt."""
    size = chunk_size(context.model)
    scores: list[AttackScore] = []
    for start in range(0, len(context.prompts), size):
        chunk = range(start, min(start + size, len(context.prompts)))
        query, seeds = AttackQuery([context.prompts[i] for i in chunk]), [attack_run.samples[i].seed for i in chunk]
        scores += attack_run.generate_and_score(context.model, chunk, query, seeds)[0]
    return tuple(scores)
