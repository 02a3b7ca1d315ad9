"""Prompt attacks -> rows: rounds of queries, a chunk of prompts at a time, then fresh images of what each search found."""

from pathlib import Path

from tqdm import tqdm

from erasure.families.base import DiffusionModel
from erasure.storage.files import ensure_folder, write_checksummed_json
from erasure.storage.run import hash_record
from eval.attack_runs.attack_run import AttackRun, chunk_size, merge_queries, select_query
from eval.attack_runs.saved_rows import load_or_prepare, read_saved
from eval.attack_runs.token_id_successes import TokenIdSuccesses, query_by_ids
from eval.attacks.base import AttackContext, AttackQuery, Prepared, PromptAttack
from eval.generation import read_png, save_png
from eval.records.convert import to_record
from eval.records.rows import AttackScore, SavedSearch, SearchRow


def prompt_rows(
    attack: PromptAttack, name: str, context: AttackContext, attack_run: AttackRun, prepared: Prepared, folder: Path, shard: tuple[int, int]
) -> list[SearchRow]:
    """Attack all prompts, a chunk at a time, and return the rows of all shards so far.

    Args:
        prepared: what the attack computed on the base.
        shard: (i, n): only every n-th chunk, from the i-th on.
    """
    size = chunk_size(context.model)
    starts = range(0, len(context.prompts), size)
    judge_digest = hash_record(attack_run.judge.identity())
    finished = {s: rows for s in starts if (rows := read_chunk(folder, s, judge_digest)) is not None}
    todo = [s for s in starts if (s // size) % shard[1] == shard[0] and s not in finished]
    if todo:
        fitted = load_or_prepare(folder / "fitted.safetensors", lambda: attack.fit(context, prepared))
        for start in todo:
            chunk = range(start, min(start + size, len(context.prompts)))
            ensure_folder(folder)
            finished[start] = attack_chunk(attack, name, context, attack_run, chunk, fitted, folder)
            write_checksummed_json(folder / f"{start:04d}.json", to_record(SavedSearch(rows=finished[start], judge=judge_digest)))
    from_other_shards = {s: read_chunk(folder, s, judge_digest) or () for s in starts if s not in finished}  # finished meanwhile
    return [row for s in starts for row in {**from_other_shards, **finished}[s]]


def read_chunk(folder: Path, start: int, judge_digest: str) -> tuple[SearchRow, ...] | None:
    """Read the rows of a chunk from disk; None if they or one of their images are missing or damaged, which is reported."""
    saved = read_saved(folder / f"{start:04d}.json", SavedSearch, judge_digest)
    if saved is None or not all(read_png(folder / f"{row.index:04d}.png") for row in saved.rows if row.round is not None):
        return None
    return saved.rows


def attack_chunk(
    attack: PromptAttack, name: str, context: AttackContext, attack_run: AttackRun, chunk: range, fitted: Prepared, folder: Path
) -> tuple[SearchRow, ...]:
    """Attack a chunk of prompts: one image of each per round, then fresh images of the first query that succeeded."""
    model = context.model
    search_scores: list[list[AttackScore]] = [[] for _ in chunk]
    broken: dict[int, tuple[int, AttackQuery]] = {}
    id_successes = TokenIdSuccesses(chunk)
    queries = tqdm(
        attack.queries(context, chunk, fitted), f"{name}, prompts {chunk[0] + 1} to {chunk[-1] + 1}", context.rounds, unit="round"
    )
    for round_index, query in enumerate(queries):
        scores, images = attack_run.generate_and_score(model, chunk, query, [attack_run.seed_of(i, "search", round_index) for i in chunk])
        for position, (i, score) in enumerate(zip(chunk, scores, strict=True)):
            search_scores[position].append(score)
            if score.shows_concept and i not in broken:
                broken[i] = (round_index, select_query(query, position))
                save_png(images[position], folder / f"{i:04d}.png")
        if query.token_prefix and (positions := id_successes.positions_to_try(query.token_prefix, broken)):
            remaining = [chunk[position] for position in positions]
            id_query, seeds = query_by_ids(query.token_prefix, positions), [attack_run.seed_of(i, "search", round_index) for i in remaining]
            id_successes.add(round_index, positions, attack_run.generate_and_score(model, remaining, id_query, seeds)[0])
    fresh_scores = score_fresh_images(model, attack_run, {i: query for i, (_, query) in broken.items()})
    return tuple(
        SearchRow(
            attack=name,
            index=i,
            image=attack_run.samples[i].file_name,
            prompt=context.prompts[i],
            search_scores=tuple(search_scores[position]),
            round=broken[i][0] if i in broken else None,
            found_prompt=(broken[i][1].display_prompts or broken[i][1].prompts)[0] if i in broken else None,
            fresh_scores=tuple(fresh_scores.get(i, ())),
            token_ids=id_successes.outcome(position),
        )
        for position, i in enumerate(chunk)
    )


def score_fresh_images(
    model: DiffusionModel, attack_run: AttackRun, broken_queries: dict[int, AttackQuery]
) -> dict[int, list[AttackScore]]:
    """Score images from noise that the search never saw, for every prompt that it broke.

    Args:
        broken_queries: by index of the prompt, the query that succeeded.
    """
    fresh_scores: dict[int, list[AttackScore]] = {i: [] for i in broken_queries}
    for index in range(attack_run.suite.attacks.fresh_images if broken_queries else 0):
        query, seeds = merge_queries(list(broken_queries.values())), [attack_run.seed_of(i, "fresh", index) for i in broken_queries]
        scores = attack_run.generate_and_score(model, list(broken_queries), query, seeds)[0]
        for i, score in zip(broken_queries, scores, strict=True):
            fresh_scores[i].append(score)
    return fresh_scores
