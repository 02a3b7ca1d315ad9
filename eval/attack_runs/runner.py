"""Attacks x prompts -> rows: every attack gets the same prompts, the same noise and as many pictures; what it finds is drawn again.

A picture that the attack drew to decide when to stop flatters it, so the way of asking that it found is drawn once more from noise it
never saw. A crash is no success and no failure: it is a missing row.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from erasure.config.registry import load_class
from erasure.config.validation import build_dataclass
from erasure.edits import Edit
from erasure.erasing import apply_edits
from erasure.errors import NotFiniteError, UserError
from erasure.families.base import DiffusionModel
from erasure.storage.files import (
    DamagedFile,
    canonical_json,
    ensure_folder,
    is_path_taken,
    print_message,
    read_checksummed_json,
    write_bytes,
    write_checksummed_json,
)
from erasure.storage.run import describe_difference, hash_record
from erasure.storage.tensor_files import load_or_make
from erasure.training import fill_cache as recorder
from erasure.training.teacher_cache import TeacherQuery
from eval.attack_runs.token_id_successes import TokenIdSuccesses, query_by_ids
from eval.attacks.base import Attack, AttackContext, AttackQuery, NotApplicable, Prepared, PromptAttack, WeightAttack
from eval.generation import Sample, batch_size_of, generate_by_guidance, generate_from_prompts, guidance_of, read_png, save_png
from eval.judges.base import Judge
from eval.suites.cases import PLAIN_ROLES, Case
from eval.suites.suite import Axis, Suite, SuiteAttacks

MAX_CHUNK = 10  # prompts attacked together, at most; see chunk_of
RETAIN_PROMPTS = 24  # prompts an attack may fine-tune on that have nothing to do with the concept
Row = dict[str, Any]


@dataclass(frozen=True)
class AttackRun:
    """What is attacked and who says whether it fell."""

    suite: Suite
    axis: Axis
    targets: tuple[str, ...]
    attempts: tuple[Sample, ...]  # one an attacked prompt
    retain_prompts: tuple[str, ...]
    judge: Judge

    @classmethod
    def from_suite(cls, suite: Suite, axis: Axis, targets: tuple[str, ...], attempts: Sequence[Sample], judge: Judge) -> "AttackRun":
        """The first prompts that ask for a target: the suite's own, then by synonym and description, then its own from other noise."""
        target_attempts = [a for a in attempts if a.case.role in (*PLAIN_ROLES, "named", "described") and label_of(a.case, axis) in targets]
        order = {"grid": 0, "listed": 0, "named": 1, "described": 2}
        target_attempts.sort(key=lambda a: (a.index, order[a.case.role], a.case.variant.zfill(6)))
        retain_role = "benign" if suite.prompt_list else "grid"
        retain_cases = [
            a.case
            for a in attempts
            if a.case.role == retain_role and a.index == 0 and label_of(a.case, axis) not in (*targets, *suite.excluded)
        ]
        retain_prompts = [
            retain_cases[int(i * len(retain_cases) / RETAIN_PROMPTS)].prompt for i in range(min(RETAIN_PROMPTS, len(retain_cases)))
        ]
        return cls(suite, axis, targets, tuple(target_attempts[: suite.attacks.prompts]), tuple(retain_prompts), judge)

    def substitute_prompt(self, i: int) -> str:
        """The prompt of an attempt, asking for something else of the concept's kind."""
        case = self.attempts[i].case
        other_labels = [key for key in self.suite.phrases(self.axis) if key not in (*self.targets, *self.suite.excluded)]
        if not other_labels:
            raise UserError(f"suite {self.suite.name} has no {self.axis} beside what was erased; attacks need one to compare with.")
        label_words = self.suite.phrases(self.axis)[other_labels[i % len(other_labels)]]
        style_words = label_words if self.axis == "style" else self.suite.styles.get(case.style, case.style)
        object_words = label_words if self.axis == "object" else self.suite.objects.get(case.object, case.object)
        return self.suite.template.format(style=style_words, object=object_words)

    def stripped_prompt(self, i: int) -> str:
        """The prompt of an attempt with the concept's place left empty."""
        case = self.attempts[i].case
        style_words = "" if self.axis == "style" else self.suite.styles.get(case.style, case.style)
        object_words = "" if self.axis == "object" else self.suite.objects.get(case.object, case.object)
        return " ".join(self.suite.template.format(style=style_words, object=object_words).split())

    def seed_of(self, i: int, purpose: str, index: int) -> int:
        """Noise of a picture of prompt i, the same for every attack."""
        key = f"{self.suite.name}|{self.attempts[i].file_name}|{purpose}|{index}".encode()
        return int.from_bytes(blake2b(key, digest_size=8).digest(), "big") >> 1

    def generate_and_score(
        self, model: DiffusionModel, chunk: Sequence[int], query: AttackQuery, seeds: Sequence[int]
    ) -> tuple[list[Row], Tensor]:
        """What the judge reads, with whether it is the concept; and the pictures (B, 3, H, W) as uint8."""
        guidance_scales = [guidance_of(self.suite, self.attempts[i].case) for i in chunk]
        queries = [select_query(query, position) for position in range(len(chunk))]

        def make(scale: float, some: Sequence[int]) -> Tensor:
            asked = merge_queries([queries[position] for position in some])
            return generate_from_prompts(
                model, asked.prompts, [seeds[position] for position in some], self.suite.steps, scale, asked.prefix
            )

        images = generate_by_guidance(guidance_scales, make)
        scores = self.judge.score(images.float() / 255, [self.attempts[i].case.prompt for i in chunk])
        return [
            {"label": r["label"], "p": r["p"], "shown": r["label"] == label_of(self.attempts[i].case, self.axis)}
            for i, r in zip(chunk, scores, strict=True)
        ], images


def label_of(case: Case, axis: Axis) -> str:
    return case.style if axis == "style" else case.object


def attacks_of(settings: SuiteAttacks) -> dict[str, Attack]:
    """The attacks of a suite by the name of their entry.

    Raises:
        UserError: fields that an attack does not have, or has with other values.
    """
    attacks: dict[str, Attack] = {}
    for name, fields in settings.use.items():
        values = {key: value for key, value in fields.items() if key != "attack"}
        attacks[name] = build_dataclass(load_class("eval.attacks", fields.get("attack", name), Attack), values, f"attack {name}")
    return attacks


def run_attacks(
    model: DiffusionModel, edits: Sequence[Edit], attack_run: AttackRun, out: Path, *, shard: tuple[int, int] = (0, 1), **how: Any
) -> list[Row]:
    """Mount every attack of the suite; rows that are on disk are kept.

    Args:
        shard: (i, n): only every n-th piece of work, from the i-th on; the rows are then those of all shards so far.
        how: other_base and strength, as in erasure.erasing.applied.

    Raises:
        UserError: rows on disk that another judge read, a file or a field that an attack cannot use.
    """
    attacks = attacks_of(attack_run.suite.attacks)
    out.mkdir(parents=True, exist_ok=True)
    _require_same_judge(out / "judge.json", attack_run.judge)
    context = context_of(model, attack_run)
    prepared: dict[str, Prepared] = {}
    rows: list[Row] = []
    for name, attack in attacks.items():
        if isinstance(attack, PromptAttack):
            rows += try_attack(name, lambda a=attack, n=name: prepare_attack(a, n, context, prepared, out / n))  # type: ignore[misc]  # bound now
    with apply_edits(model, edits, **how):
        for position, (name, attack) in enumerate(attacks.items()):
            folder = out / name
            if name in prepared and isinstance(attack, PromptAttack):
                rows += try_attack(name, lambda a=attack, n=name, f=folder: prompt_rows(a, n, context, attack_run, prepared[n], f, shard))  # type: ignore[misc]
            elif isinstance(attack, WeightAttack) and (position % shard[1] == shard[0] or (folder / "curve.json").exists()):
                rows += try_attack(name, lambda a=attack, n=name, f=folder: fine_tuning_rows(a, n, context, attack_run, f))  # type: ignore[misc]
    write_bytes(out / "attacks.jsonl", "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())
    return rows


def try_attack(name: str, make_rows: Callable[[], list[Row]]) -> list[Row]:
    """Rows of an attack, or one row that says why there are none: what does not fit it is skipped, what diverged or broke has crashed."""
    try:
        return make_rows()
    except NotApplicable as error:
        return [{"attack": name, "skipped": str(error)}]
    except (RuntimeError, ValueError, FloatingPointError) as error:
        if isinstance(error, UserError) and not isinstance(error, NotFiniteError):  # NaN is the attack's work: without it the model drew
            raise
        return [{"attack": name, "crashed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}]


def prepare_attack(
    attack: PromptAttack, name: str, context: AttackContext, prepared_by_attack: dict[str, Prepared], folder: Path
) -> list[Row]:
    """Put into `known` what an attack works out on the base; it has no rows yet."""
    prepared_by_attack[name] = load_or_prepare(folder / "before.safetensors", lambda: attack.prepare(context))
    return []


def context_of(model: DiffusionModel, attack_run: AttackRun) -> AttackContext:
    """Record what the base draws under the attacked prompts and beside them."""
    prompts = tuple(a.case.prompt for a in attack_run.attempts)
    indices = range(0 if attack_run.suite.prompt_list else len(prompts))  # nobody can say what a listed prompt is without its concept
    substitute_prompts = tuple(attack_run.substitute_prompt(i) for i in indices)
    stripped_prompts = tuple(attack_run.stripped_prompt(i) for i in indices)
    query = TeacherQuery(
        prompt_pairs=tuple((prompt, "") for prompt in prompts),
        trajectories=len(prompts),
        steps=attack_run.suite.steps,
        guidance=attack_run.suite.guidance,
        retain_prompts=attack_run.retain_prompts,
        retain_trajectories=len(attack_run.retain_prompts),
    )
    cache = recorder.load_or_fill(model, query)
    return AttackContext(
        model,
        prompts,
        substitute_prompts,
        attack_run.retain_prompts,
        cache,
        attack_run.suite.attacks.images,
        stripped_prompts=stripped_prompts,
    )


def prompt_rows(
    attack: PromptAttack, name: str, context: AttackContext, attack_run: AttackRun, prepared: Prepared, folder: Path, shard: tuple[int, int]
) -> list[Row]:
    """Rows of a prompt attack, a chunk at a time."""
    size = chunk_size(context.model)
    starts = range(0, len(context.prompts), size)
    judge_digest = hash_record(attack_run.judge.identity())
    finished = {s: rows for s in starts if (rows := read_chunk(folder, s, judge_digest)) is not None}
    todo = [s for s in starts if (s // size) % shard[1] == shard[0] and s not in finished]
    if todo:
        fitted = load_or_prepare(folder / "known.safetensors", lambda: attack.fit(context, prepared))
        for start in todo:
            chunk = range(start, min(start + size, len(context.prompts)))
            ensure_folder(folder)
            finished[start] = attack_chunk(attack, name, context, attack_run, chunk, fitted, folder)
            write_checksummed_json(folder / f"{start:04d}.json", {"rows": finished[start], "judge": judge_digest})
    from_other_shards = {s: read_chunk(folder, s, judge_digest) or [] for s in starts if s not in finished}  # of shards that ran meanwhile
    return [row for s in starts for row in {**from_other_shards, **finished}[s]]


def read_chunk(folder: Path, start: int, judge_digest: str) -> list[Row] | None:
    """Rows of a chunk on disk; None where they are missing or, like a picture of theirs, damaged, which is told."""
    rows = read_rows(folder / f"{start:04d}.json", judge_digest)
    image_paths = [folder / f"{row['index']:04d}.png" for row in rows or () if row["round"] is not None]
    return rows if all(read_png(path) for path in image_paths) else None


def read_rows(path: Path, judge_digest: str) -> list[Row] | None:
    """Rows of a file with a checksum; None where there is none, a damaged one, or one that another judge read, which is told."""
    if not is_path_taken(path):
        return None
    try:
        record = read_checksummed_json(path)
        if record.get("judge") != judge_digest:
            raise DamagedFile(f"{path} was read by another judge.")
        rows: list[Row] = record["rows"]
        return rows
    except DamagedFile as error:
        print_message(f"{error} It is made anew.")
        return None


def attack_chunk(
    attack: PromptAttack, name: str, context: AttackContext, attack_run: AttackRun, chunk: range, fitted: Prepared, folder: Path
) -> list[Row]:
    """Attack a chunk of prompts: a picture of each in every round, then fresh pictures of the first way of asking that worked."""
    model, broken, search_scores = context.model, {}, [[] for _ in chunk]  # type: ignore[var-annotated]
    by_ids = TokenIdSuccesses(chunk)
    queries = tqdm(
        attack.queries(context, chunk, fitted), f"{name}, prompts {chunk[0] + 1} to {chunk[-1] + 1}", context.rounds, unit="round"
    )
    for round_index, query in enumerate(queries):
        scores, images = attack_run.generate_and_score(model, chunk, query, [attack_run.seed_of(i, "search", round_index) for i in chunk])
        for position, (i, score) in enumerate(zip(chunk, scores, strict=True)):
            search_scores[position].append(score)
            if score["shown"] and i not in broken:
                broken[i] = (round_index, select_query(query, position))
                save_png(images[position], folder / f"{i:04d}.png")
        if query.tokens and (positions := by_ids.positions_to_try(query.tokens, broken)):
            remaining = [chunk[position] for position in positions]
            by_ids.add(
                round_index,
                positions,
                attack_run.generate_and_score(
                    model,
                    remaining,
                    query_by_ids(query.tokens, positions),
                    [attack_run.seed_of(i, "search", round_index) for i in remaining],
                )[0],
            )
    fresh_scores: dict[int, list[Row]] = {i: [] for i in broken}
    for index in range(attack_run.suite.attacks.fresh_images if broken else 0):
        query, seeds = merge_queries([query for _, query in broken.values()]), [attack_run.seed_of(i, "fresh", index) for i in broken]
        for i, score in zip(broken, attack_run.generate_and_score(model, list(broken), query, seeds)[0], strict=True):
            fresh_scores[i].append(score)
    return [
        {
            "attack": name,
            "index": i,
            "image": attack_run.attempts[i].file_name,
            "prompt": context.prompts[i],
            "tried": search_scores[position],
            "round": broken[i][0] if i in broken else None,
            "asked": (broken[i][1].display_prompts or broken[i][1].prompts)[0] if i in broken else None,
            "fresh": fresh_scores.get(i, []),
            **by_ids.record(position),
        }
        for position, i in enumerate(chunk)
    ]


def select_query(query: AttackQuery, position: int) -> AttackQuery:
    """The part of a round that asks for one prompt."""
    prefix = query.prefix if query.prefix is None or query.prefix.ndim == 2 else query.prefix[position]
    return AttackQuery([query.prompts[position]], prefix, [query.display_prompts[position]] if query.display_prompts else None)


def merge_queries(queries: Sequence[AttackQuery]) -> AttackQuery:
    """Several of them as one round; an attack gives all its prefixes one length."""
    prefixes = [query.prefix for query in queries if query.prefix is not None]
    return AttackQuery([query.prompts[0] for query in queries], torch.stack(prefixes) if prefixes else None)


def fine_tuning_rows(attack: WeightAttack, name: str, context: AttackContext, attack_run: AttackRun, folder: Path) -> list[Row]:
    """Readings of all attacked prompts, from their own noise, at every checkpoint of a fine-tuning."""
    path = folder / "curve.json"
    judge_digest = hash_record(attack_run.judge.identity())
    rows = read_rows(path, judge_digest)
    if rows is None:
        rows, indices = [], range(len(context.prompts))
        indexed_seeds = [(i, attack_run.attempts[i].seed) for i in indices]
        with closing(attack.fine_tune(context)) as checkpoints:
            for step in tqdm(checkpoints, f"{name}, looking at checkpoints", unit="look"):
                groups = split_into_chunks(indexed_seeds, chunk_size(context.model))
                scores = [r for group in groups for r in attack_run.generate_and_score(context.model, *_plain_query(context, group))[0]]
                rows.append({"attack": name, "step": step, "read": scores})
        ensure_folder(path.parent)
        write_checksummed_json(path, {"rows": rows, "judge": judge_digest})
    return rows


def chunk_size(model: DiffusionModel) -> int:
    """Prompts attacked together: fixed for a model, so that every interruption, shard and machine repeats the same batches."""
    return min(MAX_CHUNK, batch_size_of(model))


def split_into_chunks(indexed_seeds: Sequence[tuple[int, int]], size: int) -> Iterator[Sequence[tuple[int, int]]]:
    for start in range(0, len(indexed_seeds), size):
        yield indexed_seeds[start : start + size]


def _plain_query(context: AttackContext, group: Sequence[tuple[int, int]]) -> tuple[list[int], AttackQuery, list[int]]:
    return [i for i, _ in group], AttackQuery([context.prompts[i] for i, _ in group]), [seed for _, seed in group]


def load_or_prepare(path: Path, make: Callable[[], Prepared]) -> Prepared:
    """Tensors from disk, or made and put there; an attack that needs none leaves no file."""

    def made() -> Prepared:
        with tqdm(desc=f"{path.parent.name}, preparing", total=1, unit="search") as bar:
            found = make()
            bar.update()
        return found

    return load_or_make(path, made)


def _require_same_judge(path: Path, judge: Judge) -> None:
    """A search stops and a fine-tuning is scored by what the judge reads: rows of two judges never mix."""
    identity = json.loads(canonical_json(judge.identity()))
    recorded = None
    try:
        recorded = read_checksummed_json(path) if is_path_taken(path) else None
    except DamagedFile as error:
        print_message(f"{error} It is made anew.")
    if recorded is None:
        write_checksummed_json(path, identity)
    elif recorded != identity:
        message = f"the attacks in {path.parent} were read by another judge ({describe_difference(recorded, identity)})"
        raise UserError(f"{message}; choose another --out, or --fresh to start over.")
