"""Attacks x prompts -> rows: every attack gets the same prompts, the same noise and the same number of images.

An image that decides when an attack stops flatters the attack. So the query it found generates images again, from noise that the search has
not seen. A crash is neither a success nor a failure: it is a missing row.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from erasure.edits import Edit, apply_edits
from erasure.errors import NotFiniteError, UserError
from erasure.families.base import DiffusionModel
from erasure.storage.files import write_bytes
from erasure.training import fill_cache
from erasure.training.teacher_cache import TeacherQuery
from eval.attack_runs.attack_run import AttackRun, Row
from eval.attack_runs.fine_tuning import fine_tuning_rows
from eval.attack_runs.prompt_search import prompt_rows
from eval.attack_runs.saved_rows import load_or_prepare, require_same_judge
from eval.attacks.base import AttackContext, NotApplicable, Prepared, PromptAttack, WeightAttack


def run_attacks(
    model: DiffusionModel,
    edits: Sequence[Edit],
    attack_run: AttackRun,
    out: Path,
    *,
    shard: tuple[int, int] = (0, 1),
    other_base: bool = False,
    strength: float = 1.0,
) -> list[Row]:
    """Run every attack of the suite; rows that are on disk are reused.

    Args:
        shard: (i, n): only every n-th piece of work, from the i-th on; the rows are then those of all shards so far.
        other_base, strength: as in erasure.edits.apply_edits.

    Raises:
        UserError: another judge scored the rows on disk, or an attack cannot use a file or a field.
    """
    out.mkdir(parents=True, exist_ok=True)
    require_same_judge(out / "judge.json", attack_run.judge)
    context = context_of(model, attack_run)
    prepared: dict[str, Prepared] = {}
    rows: list[Row] = []
    for name, attack in attack_run.attacks.items():
        if isinstance(attack, PromptAttack):
            rows += try_attack(name, lambda a=attack, n=name: prepare_attack(a, n, context, prepared, out / n))  # type: ignore[misc]  # bound now
    with apply_edits(model, edits, other_base, strength):
        for position, (name, attack) in enumerate(attack_run.attacks.items()):
            folder = out / name
            if name in prepared and isinstance(attack, PromptAttack):
                rows += try_attack(name, lambda a=attack, n=name, f=folder: prompt_rows(a, n, context, attack_run, prepared[n], f, shard))  # type: ignore[misc]
            elif isinstance(attack, WeightAttack) and (position % shard[1] == shard[0] or (folder / "curve.json").exists()):
                rows += try_attack(name, lambda a=attack, n=name, f=folder: fine_tuning_rows(a, n, context, attack_run, f))  # type: ignore[misc]
    write_bytes(out / "attacks.jsonl", "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())
    return rows


def try_attack(name: str, make_rows: Callable[[], list[Row]]) -> list[Row]:
    """Return the rows of an attack, or one row that says why there are none.

    An attack that does not fit the model or suite is skipped; one that diverges or fails has crashed.
    """
    try:
        return make_rows()
    except NotApplicable as error:
        return [{"attack": name, "skipped": str(error)}]
    except (RuntimeError, ValueError, FloatingPointError) as error:
        # NaN is the attack's doing: without the attack the model generated images
        if isinstance(error, UserError) and not isinstance(error, NotFiniteError):
            raise
        return [{"attack": name, "crashed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}]


def prepare_attack(
    attack: PromptAttack, name: str, context: AttackContext, prepared_by_attack: dict[str, Prepared], folder: Path
) -> list[Row]:
    """Add to `prepared_by_attack` what an attack computes on the base; there are no rows yet."""
    prepared_by_attack[name] = load_or_prepare(folder / "prepared.safetensors", lambda: attack.prepare(context))
    return []


def context_of(model: DiffusionModel, attack_run: AttackRun) -> AttackContext:
    """Load or record what the base generates for the attacked prompts and for those to retain."""
    prompts = tuple(a.case.prompt for a in attack_run.samples)
    query = TeacherQuery(
        prompt_pairs=tuple((prompt, "") for prompt in prompts),
        trajectories=len(prompts),
        steps=attack_run.suite.steps,
        guidance=attack_run.suite.guidance,
        retain_prompts=attack_run.retain_prompts,
        retain_trajectories=len(attack_run.retain_prompts),
    )
    cache = fill_cache.load_or_fill(model, query)
    return AttackContext(
        model,
        prompts,
        attack_run.substitute_prompts,
        attack_run.retain_prompts,
        cache,
        attack_run.suite.attacks.images,
        stripped_prompts=attack_run.stripped_prompts,
    )
