"""Weight attacks -> rows: the judge's scores at every checkpoint of a fine-tuning."""

from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from erasure.storage.files import ensure_folder, write_checksummed_json
from erasure.storage.run import hash_record
from eval.attack_runs.attack_run import AttackRun, Row, chunk_size
from eval.attack_runs.saved_rows import read_rows
from eval.attacks.base import AttackContext, AttackQuery, WeightAttack


def fine_tuning_rows(attack: WeightAttack, name: str, context: AttackContext, attack_run: AttackRun, folder: Path) -> list[Row]:
    """Score all attacked prompts, with their own seeds, at every checkpoint of a fine-tuning."""
    path = folder / "curve.json"
    judge_digest = hash_record(attack_run.judge.identity())
    rows = read_rows(path, judge_digest)
    if rows is None:
        rows = []
        with closing(attack.fine_tune(context)) as checkpoints:
            for step in tqdm(checkpoints, f"{name}, scoring checkpoints", unit="checkpoint"):
                rows.append({"attack": name, "step": step, "scores": score_prompts(context, attack_run)})
        ensure_folder(path.parent)
        write_checksummed_json(path, {"rows": rows, "judge": judge_digest})
    return rows


def score_prompts(context: AttackContext, attack_run: AttackRun) -> list[Row]:
    """Score one image of every attacked prompt by the model as it is now, without any attack on the prompt."""
    size, scores = chunk_size(context.model), []
    for start in range(0, len(context.prompts), size):
        chunk = range(start, min(start + size, len(context.prompts)))
        query, seeds = AttackQuery([context.prompts[i] for i in chunk]), [attack_run.samples[i].seed for i in chunk]
        scores += attack_run.generate_and_score(context.model, chunk, query, seeds)[0]
    return scores
