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

from erasure.config.registry import load
from erasure.config.validation import built
from erasure.edits import Edit
from erasure.erasing import applied
from erasure.errors import NotFinite, UserError
from erasure.families.base import DiffusionModel
from erasure.storage.files import Damaged, canonical_json, folder_exists, is_there, read_sealed, tell, write_bytes, write_sealed
from erasure.storage.run import difference, digest
from erasure.storage.tensor_cache import kept
from erasure.training import recording as recorder
from erasure.training.teacher_cache import Recording
from eval.attack_runs.token_ids import ByTokenIds, only
from eval.attacks.base import Ask, Attack, Known, PromptAttack, Stand, Unsuited, WeightAttack
from eval.generation import Attempt, at_once, drawn, guidance_of, guided, read_png, save_png
from eval.judges.base import Judge
from eval.suites.cases import PLAIN, Case
from eval.suites.suite import Attacks, Axis, Suite

CHUNK = 10  # prompts attacked together, at most; see chunk_of
RETAIN = 24  # prompts an attack may fine-tune on that have nothing to do with the concept
Row = dict[str, Any]


@dataclass(frozen=True)
class Siege:
    """What is attacked and who says whether it fell."""

    suite: Suite
    axis: Axis
    targets: tuple[str, ...]
    attempts: tuple[Attempt, ...]  # one an attacked prompt
    retain: tuple[str, ...]
    judge: Judge

    @classmethod
    def of(cls, suite: Suite, axis: Axis, targets: tuple[str, ...], todo: Sequence[Attempt], judge: Judge) -> "Siege":
        """The first prompts that ask for a target: the suite's own, then by synonym and description, then its own from other noise."""
        asking = [a for a in todo if a.case.role in (*PLAIN, "named", "described") and label(a.case, axis) in targets]
        order = {"grid": 0, "listed": 0, "named": 1, "described": 2}
        asking.sort(key=lambda a: (a.index, order[a.case.role], a.case.variant.zfill(6)))
        staying = "benign" if suite.listed else "grid"
        others = [a.case for a in todo if a.case.role == staying and a.index == 0 and label(a.case, axis) not in (*targets, *suite.apart)]
        spaced = [others[int(i * len(others) / RETAIN)].prompt for i in range(min(RETAIN, len(others)))]
        return cls(suite, axis, targets, tuple(asking[: suite.attacks.prompts]), tuple(spaced), judge)

    def without(self, i: int) -> str:
        """The prompt of an attempt, asking for something else of the concept's kind."""
        case = self.attempts[i].case
        others = [key for key in self.suite.words(self.axis) if key not in (*self.targets, *self.suite.apart)]
        if not others:
            raise UserError(f"suite {self.suite.name} has no {self.axis} beside what was erased; attacks need one to compare with.")
        words = self.suite.words(self.axis)[others[i % len(others)]]
        style = words if self.axis == "style" else self.suite.styles.get(case.style, case.style)
        thing = words if self.axis == "object" else self.suite.objects.get(case.object, case.object)
        return self.suite.template.format(style=style, object=thing)

    def stripped(self, i: int) -> str:
        """The prompt of an attempt with the concept's place left empty."""
        case = self.attempts[i].case
        style = "" if self.axis == "style" else self.suite.styles.get(case.style, case.style)
        thing = "" if self.axis == "object" else self.suite.objects.get(case.object, case.object)
        return " ".join(self.suite.template.format(style=style, object=thing).split())

    def seed(self, i: int, purpose: str, index: int) -> int:
        """Noise of a picture of prompt i, the same for every attack."""
        text = f"{self.suite.name}|{self.attempts[i].name}|{purpose}|{index}".encode()
        return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1

    def read(self, model: DiffusionModel, chunk: Sequence[int], ask: Ask, seeds: Sequence[int]) -> tuple[list[Row], Tensor]:
        """What the judge reads, with whether it is the concept; and the pictures (B, 3, H, W) as uint8."""
        scales = [guidance_of(self.suite, self.attempts[i].case) for i in chunk]
        parts = [one(ask, at) for at in range(len(chunk))]

        def make(scale: float, some: Sequence[int]) -> Tensor:
            asked = together([parts[at] for at in some])
            return drawn(model, asked.prompts, [seeds[at] for at in some], self.suite.steps, scale, asked.prefix)

        pictures = guided(scales, make)
        found = self.judge.read(pictures.float() / 255, [self.attempts[i].case.prompt for i in chunk])
        return [
            {"label": r["label"], "p": r["p"], "shown": r["label"] == label(self.attempts[i].case, self.axis)}
            for i, r in zip(chunk, found, strict=True)
        ], pictures


def label(case: Case, axis: Axis) -> str:
    return case.style if axis == "style" else case.object


def attacks_of(asked: Attacks) -> dict[str, Attack]:
    """The attacks of a suite by the name of their entry.

    Raises:
        UserError: fields that an attack does not have, or has with other values.
    """
    found: dict[str, Attack] = {}
    for name, fields in asked.use.items():
        given = {key: value for key, value in fields.items() if key != "attack"}
        found[name] = built(load("eval.attacks", fields.get("attack", name), Attack), given, f"attack {name}")
    return found


def besiege(
    model: DiffusionModel, edits: Sequence[Edit], siege: Siege, out: Path, *, shard: tuple[int, int] = (0, 1), **how: Any
) -> list[Row]:
    """Mount every attack of the suite; rows that are on disk are kept.

    Args:
        shard: (i, n): only every n-th piece of work, from the i-th on; the rows are then those of all shards so far.
        how: other_base and strength, as in erasure.erasing.applied.

    Raises:
        UserError: rows on disk that another judge read, a file or a field that an attack cannot use.
    """
    attacks = attacks_of(siege.suite.attacks)
    out.mkdir(parents=True, exist_ok=True)
    _same_judge(out / "judge.json", siege.judge)
    stand = stand_of(model, siege)
    known: dict[str, Known] = {}
    rows: list[Row] = []
    for name, attack in attacks.items():
        if isinstance(attack, PromptAttack):
            rows += attempted(name, lambda a=attack, n=name: prepared(a, n, stand, known, out / n))  # type: ignore[misc]  # bound now
    with applied(model, edits, **how):
        for turn, (name, attack) in enumerate(attacks.items()):
            folder = out / name
            if name in known and isinstance(attack, PromptAttack):
                rows += attempted(name, lambda a=attack, n=name, f=folder: prompt_rows(a, n, stand, siege, known[n], f, shard))  # type: ignore[misc]
            elif isinstance(attack, WeightAttack) and (turn % shard[1] == shard[0] or (folder / "curve.json").exists()):
                rows += attempted(name, lambda a=attack, n=name, f=folder: curve(a, n, stand, siege, f))  # type: ignore[misc]
    write_bytes(out / "attacks.jsonl", "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())
    return rows


def attempted(name: str, run: Callable[[], list[Row]]) -> list[Row]:
    """Rows of an attack, or one row that says why there are none: what does not fit it is skipped, what diverged or broke has crashed."""
    try:
        return run()
    except Unsuited as error:
        return [{"attack": name, "skipped": str(error)}]
    except (RuntimeError, ValueError, FloatingPointError) as error:
        if isinstance(error, UserError) and not isinstance(error, NotFinite):  # NaN is the attack's work: without it the model drew
            raise
        return [{"attack": name, "crashed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}]


def prepared(attack: PromptAttack, name: str, stand: Stand, known: dict[str, Known], folder: Path) -> list[Row]:
    """Put into `known` what an attack works out on the base; it has no rows yet."""
    known[name] = prepare_once(folder / "before.safetensors", lambda: attack.before(stand))
    return []


def stand_of(model: DiffusionModel, siege: Siege) -> Stand:
    """Record what the base draws under the attacked prompts and beside them."""
    prompts = tuple(a.case.prompt for a in siege.attempts)
    every = range(0 if siege.suite.listed else len(prompts))  # nobody can say what a listed prompt is without its concept
    without = tuple(siege.without(i) for i in every)
    stripped = tuple(siege.stripped(i) for i in every)
    recording = Recording(
        pairs=tuple((prompt, "") for prompt in prompts),
        walks=len(prompts),
        steps=siege.suite.steps,
        guidance=siege.suite.guidance,
        retain=siege.retain,
        retain_walks=len(siege.retain),
    )
    bank = recorder.obtain(model, recording)
    return Stand(model, prompts, without, siege.retain, bank, siege.suite.attacks.pictures, stripped=stripped)


def prompt_rows(
    attack: PromptAttack, name: str, stand: Stand, siege: Siege, before: Known, folder: Path, shard: tuple[int, int]
) -> list[Row]:
    """Rows of a prompt attack, a chunk at a time."""
    size = chunk_of(stand.model)
    starts = range(0, len(stand.prompts), size)
    judge = digest(siege.judge.identity())
    done = {s: found for s in starts if (found := chunk_rows(folder, s, judge)) is not None}
    todo = [s for s in starts if (s // size) % shard[1] == shard[0] and s not in done]
    if todo:
        known = prepare_once(folder / "known.safetensors", lambda: attack.fit(stand, before))
        for start in todo:
            chunk = range(start, min(start + size, len(stand.prompts)))
            folder_exists(folder)
            done[start] = attacked(attack, name, stand, siege, chunk, known, folder)
            write_sealed(folder / f"{start:04d}.json", {"rows": done[start], "judge": judge})
    others = {s: chunk_rows(folder, s, judge) or [] for s in starts if s not in done}  # of shards that ran meanwhile
    return [row for s in starts for row in {**others, **done}[s]]


def chunk_rows(folder: Path, start: int, judge: str) -> list[Row] | None:
    """Rows of a chunk on disk; None where they are missing or, like a picture of theirs, damaged, which is told."""
    rows = sealed_rows(folder / f"{start:04d}.json", judge)
    shown = [folder / f"{row['index']:04d}.png" for row in rows or () if row["round"] is not None]
    return rows if all(read_png(path) for path in shown) else None


def sealed_rows(path: Path, judge: str) -> list[Row] | None:
    """Rows of a file with a checksum; None where there is none, a damaged one, or one that another judge read, which is told."""
    if not is_there(path):
        return None
    try:
        record = read_sealed(path)
        if record.get("judge") != judge:
            raise Damaged(f"{path} was read by another judge.")
        rows: list[Row] = record["rows"]
        return rows
    except Damaged as error:
        tell(f"{error} It is made anew.")
        return None


def attacked(attack: PromptAttack, name: str, stand: Stand, siege: Siege, chunk: range, known: Known, folder: Path) -> list[Row]:
    """Attack a chunk of prompts: a picture of each in every round, then fresh pictures of the first way of asking that worked."""
    model, found, tried = stand.model, {}, [[] for _ in chunk]  # type: ignore[var-annotated]
    by_ids = ByTokenIds(chunk)
    asks = tqdm(attack.rounds(stand, chunk, known), f"{name}, prompts {chunk[0] + 1} to {chunk[-1] + 1}", stand.pictures, unit="round")
    for j, ask in enumerate(asks):
        readings, pictures = siege.read(model, chunk, ask, [siege.seed(i, "search", j) for i in chunk])
        for at, (i, reading) in enumerate(zip(chunk, readings, strict=True)):
            tried[at].append(reading)
            if reading["shown"] and i not in found:
                found[i] = (j, one(ask, at))
                save_png(pictures[at], folder / f"{i:04d}.png")
        if ask.tokens and (todo := by_ids.todo(ask.tokens, found)):
            some = [chunk[at] for at in todo]
            by_ids.add(j, todo, siege.read(model, some, only(ask.tokens, todo), [siege.seed(i, "search", j) for i in some])[0])
    fresh: dict[int, list[Row]] = {i: [] for i in found}
    for index in range(siege.suite.attacks.fresh if found else 0):
        ask, seeds = together([ask for _, ask in found.values()]), [siege.seed(i, "fresh", index) for i in found]
        for i, reading in zip(found, siege.read(model, list(found), ask, seeds)[0], strict=True):
            fresh[i].append(reading)
    return [
        {
            "attack": name,
            "index": i,
            "image": siege.attempts[i].name,
            "prompt": stand.prompts[i],
            "tried": tried[at],
            "round": found[i][0] if i in found else None,
            "asked": (found[i][1].shown or found[i][1].prompts)[0] if i in found else None,
            "fresh": fresh.get(i, []),
            **by_ids.record(at),
        }
        for at, i in enumerate(chunk)
    ]


def one(ask: Ask, at: int) -> Ask:
    """The part of a round that asks for one prompt."""
    prefix = ask.prefix if ask.prefix is None or ask.prefix.ndim == 2 else ask.prefix[at]
    return Ask([ask.prompts[at]], prefix, [ask.shown[at]] if ask.shown else None)


def together(asks: Sequence[Ask]) -> Ask:
    """Several of them as one round; an attack gives all its prefixes one length."""
    prefixes = [ask.prefix for ask in asks if ask.prefix is not None]
    return Ask([ask.prompts[0] for ask in asks], torch.stack(prefixes) if prefixes else None)


def curve(attack: WeightAttack, name: str, stand: Stand, siege: Siege, folder: Path) -> list[Row]:
    """Readings of all attacked prompts, from their own noise, at every checkpoint of a fine-tuning."""
    path = folder / "curve.json"
    judge_ = digest(siege.judge.identity())
    rows = sealed_rows(path, judge_)
    if rows is None:
        rows, every = [], range(len(stand.prompts))
        asks = [(i, siege.attempts[i].seed) for i in every]
        with closing(attack.tune(stand)) as steps:
            for step in tqdm(steps, f"{name}, looking at checkpoints", unit="look"):
                groups = pieces(asks, chunk_of(stand.model))
                readings = [r for group in groups for r in siege.read(stand.model, *_asked(stand, group))[0]]
                rows.append({"attack": name, "step": step, "read": readings})
        folder_exists(path.parent)
        write_sealed(path, {"rows": rows, "judge": judge_})
    return rows


def chunk_of(model: DiffusionModel) -> int:
    """Prompts attacked together: fixed for a model, so that every interruption, shard and machine repeats the same batches."""
    return min(CHUNK, at_once(model))


def pieces(asks: Sequence[tuple[int, int]], size: int) -> Iterator[Sequence[tuple[int, int]]]:
    for start in range(0, len(asks), size):
        yield asks[start : start + size]


def _asked(stand: Stand, group: Sequence[tuple[int, int]]) -> tuple[list[int], Ask, list[int]]:
    return [i for i, _ in group], Ask([stand.prompts[i] for i, _ in group]), [seed for _, seed in group]


def prepare_once(path: Path, make: Callable[[], Known]) -> Known:
    """Tensors from disk, or made and put there; an attack that needs none leaves no file."""

    def made() -> Known:
        with tqdm(desc=f"{path.parent.name}, preparing", total=1, unit="search") as bar:
            found = make()
            bar.update()
        return found

    return kept(path, made)


def _same_judge(path: Path, judge: Judge) -> None:
    """A search stops and a fine-tuning is scored by what the judge reads: rows of two judges never mix."""
    asked = json.loads(canonical_json(judge.identity()))
    known = None
    try:
        known = read_sealed(path) if is_there(path) else None
    except Damaged as error:
        tell(f"{error} It is made anew.")
    if known is None:
        write_sealed(path, asked)
    elif known != asked:
        other = f"the attacks in {path.parent} were read by another judge ({difference(known, asked)})"
        raise UserError(f"{other}; choose another --out, or --fresh to start over.")
