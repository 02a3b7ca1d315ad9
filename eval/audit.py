"""suite -> samples -> readings -> rates: how much of a concept is gone, and what else went with it."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from erasure.edits import Edit
from erasure.edits.overlap import overlap
from erasure.erasing import applied
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.storage.files import Damaged, tell
from erasure.storage.locks import check, held
from erasure.storage.run import Run, digest, remove, write_json
from eval.attack_runs.runner import Siege, attacks_of, besiege, label
from eval.generation import Attempt, attempts, draw
from eval.judges.base import MissingWeights
from eval.metrics.features import extractor_of
from eval.metrics.image_distances import kept_distance, picture_distances
from eval.retrained.divergences import divergences
from eval.retrained.gap import gaps
from eval.scoring.attack_rates import attack_rates, under_attack
from eval.scoring.counting import Row, counted
from eval.scoring.judge_scores import AXES, configured, errors_of, judge, judges_of, lines, readable, samples_digest
from eval.scoring.published import as_published
from eval.scoring.recount import recounted
from eval.suites.cases import PLAIN, Case, cases, listed
from eval.suites.fine_grained import cell_of, meant, within
from eval.suites.list_reader import Origin, Prompt
from eval.suites.prompt_list import crossing, lists
from eval.suites.sample_sizes import Sizes, sizes
from eval.suites.suite import Axis, Suite

Keep = Literal["all", "none"]
WHOLE = (0, 1)  # the only shard
PICTURES = ("images/*/*-[0-9][0-9]*.png", "images/*/drawn/*/*.png", "attacks/*/[0-9][0-9][0-9][0-9].png")
# all that an audit leaves in its folder, and all that --fresh removes there
WRITES = (
    *("report.html", "report.json", "junit.xml", "samples.jsonl", "timing.json"),
    *(f"readings/{part}-*.jsonl" for part in (*AXES, "clip")),
    *("attacks/judge.json", "attacks/attacks.jsonl", "attacks/*/curve.json", "attacks/*/before.safetensors", "attacks/*/known.safetensors"),
    *("attacks/*/[0-9][0-9][0-9][0-9].json", *PICTURES),
)


@dataclass(frozen=True)
class Audit:
    """What to audit and how."""

    suite: Suite
    tier: str
    axis: Axis
    targets: tuple[str, ...]
    gone: tuple[str, ...] = ()  # labels of the other axis that the same edits erase; their cells are left out
    replay: tuple[Prompt, ...] = ()  # prompts of others that are said to bring the concept back
    only: str = ""  # label of the other axis, if the targets were meant to be erased with it alone (eval.suites.fine_grained)
    replayed: Origin | None = None  # the file of those prompts

    @classmethod
    def of(
        cls,
        edits: Sequence[Edit],
        suite: Suite,
        tier: str,
        replay: Sequence[Prompt] = (),
        only: str = "",
        replayed: Origin | None = None,
    ) -> list["Audit"]:
        """The audits of everything a stack of edits claims to erase, one for styles and one for objects where it erases both.

        Raises:
            UserError: edits that name no concept; see `about`.
        """
        return cls.about([concept["name"] for edit in edits for concept in edit.info.concepts], suite, tier, replay, only, replayed)

    @classmethod
    def about(
        cls,
        names: Sequence[str],
        suite: Suite,
        tier: str,
        replay: Sequence[Prompt] = (),
        only: str = "",
        replayed: Origin | None = None,
    ) -> list["Audit"]:
        """The audits of concepts by name; nothing has to be erased yet.

        Raises:
            UserError: no name, a concept the suite does not have, a label for `only` that the other axis does not have, or a suite that
                asks for none of the concepts' pictures once those of the other axis are left out; see `buildable`.
        """
        buildable(suite)
        if not names:
            raise UserError(
                "there is nothing to audit: the list `concepts` in edit.json is empty, so the edit does not say what it erases."
            )
        found = list(dict.fromkeys(suite.find(name) for name in names))
        listed(suite, tier, 1)  # complains where there is no list
        labels = {axis: tuple(label for a, label in found if a == axis) for axis in AXES}
        cell = cell_of(suite, [axis for axis in AXES if labels[axis]], only)
        plans = [
            cls(suite, tier, axis, labels[axis], labels[AXES[1 - i]], tuple(replay), cell, replayed)
            for i, axis in enumerate(AXES)
            if labels[axis]
        ]
        for plan in plans:
            if not any(case.role in PLAIN and plan.meant(case) for case in plan.asked(tier)):
                raise UserError(
                    f"suite {suite.name} has no picture left that asks for {', '.join(plan.targets)}: every {crossing(plan.axis)} of it "
                    "is erased as well. Audit the edits one by one."
                )
        return plans

    def asked(self, tier: str) -> list[Case]:
        """What an audit of a tier asks for."""
        cross = crossing(self.axis)
        asked = cases(self.suite, [(self.axis, t) for t in self.targets], tier, self.replay)
        asked = within(asked, self.suite, self.axis, self.targets, self.only)
        return [case for case in asked if getattr(case, cross) not in self.gone]

    @property
    def todo(self) -> list[Attempt]:
        return attempts(self.suite, self.asked(self.tier))

    @property
    def sizes(self) -> Sizes:
        """Pictures behind every rate, in every tier of the suite."""
        return sizes(self.suite, self.axis, self.targets, self.only, {tier: self.asked(tier) for tier in self.suite.tiers})

    def asking(self, target: bool) -> list[Attempt]:
        """The suite's own pictures that ask for what should be gone, or those that do not: of the grid, or of captions without one."""
        roles = (*PLAIN, "benign") if self.suite.listed else PLAIN
        return [a for a in self.todo if a.case.role in roles and self.meant(a.case) == target]

    @property
    def staying(self) -> list[Attempt]:
        return [a for a in self.todo if not self.meant(a.case)]

    @property
    def attacked(self) -> list[Attempt]:
        """What attacks may start from: pictures that ask for a target where it was meant to be erased, and for no target at all."""
        return [a for a in self.todo if self.meant(a.case) or label(a.case, self.axis) not in self.targets]

    def meant(self, case: Case) -> bool:
        return meant(vars(case), self.axis, self.targets, self.only)


@dataclass(frozen=True, kw_only=True)
class How:
    """How an audit is run, as opposed to what it asks."""

    strength: float = 1.0  # of every edit
    other_base: bool = False
    oracles: tuple[Edit, ...] = ()  # each puts a model that never saw the concept in place of the base
    keep: Keep = "all"  # "none" leaves no picture behind, only what was read in it

    @property
    def placing(self) -> dict[str, Any]:
        return {"other_base": self.other_base, "strength": self.strength}


def audit(
    model: DiffusionModel, edits: Sequence[Edit], plan: Audit, out: Path, how: How | None = None, *, fresh: bool = False
) -> dict[str, Any]:
    """Draw, attack, judge and count; returns the result that is also in out/result.json.

    `out` ends with images/, attacks/, samples.jsonl, timing.json and result.json. Interrupted audits continue; readings of a new judge are
    added without drawing a picture.

    Args:
        edits: one, or several that are applied together, in this order.

    Raises:
        UserError: another job in `out`, an edit that does not fit the model.
        Busy: another process is writing into `out`.
    """
    how = how or How()
    run = Run(out, job_record(model, edits, plan, how), fresh, WRITES)
    with held(out, "erasure audit"):
        if how.keep == "none" and run.complete and (known := counted_again(out, plan)):  # its pictures are gone, its readings are not
            run.finish(known)
            return known
        return measured(model, edits, plan, out, how, fresh)


def counted_again(out: Path, plan: Audit) -> dict[str, Any] | None:
    """The result by the rows on disk; None where they are damaged, which is told."""
    try:
        found = recounted(out, plan.suite)
    except Damaged as error:
        tell(f"{error} It is made anew.")
        return None
    own = {"gates": [asdict(gate) for gate in plan.suite.gates], **({"suite_file": plan.suite.file} if plan.suite.file else {})}
    return {**{key: value for key, value in found.items() if key not in ("suite_file", "apart_by_suite")}, **own}


def measured(model: DiffusionModel, edits: Sequence[Edit], plan: Audit, out: Path, how: How, fresh: bool) -> dict[str, Any]:
    """The work of `audit`, in a folder that is this process's own."""
    begun = time.monotonic()
    run, drawn = work(model, edits, plan, out, how, fresh=fresh)
    judges, missing = judges_of(plan.suite)
    rows = judge(plan.todo, models_of(how), judges, out)
    attacks = attacks_in(out, plan, rows)
    parts = {"kept": plan.asking(False), "target": plan.asking(True)}
    try:
        apart = picture_distances(parts, models_of(how), plan.suite.features, out / "images")
    except MissingWeights as error:
        apart, missing["features"] = {}, str(error)
    result = {
        "tier": plan.tier,
        **under_attack(counted(rows, plan.suite, plan.axis, plan.targets, plan.only), attacks),
        **({"gaps": gaps(rows, plan.axis, plan.targets, plan.suite.apart, plan.only)} if how.oracles and plan.axis in judges else {}),
        "job": run.job,
        "samples_sha256": samples_digest(out),
        "lists": lists(plan.suite.listed, plan.replayed),
        "attacks": attacks,
        "distance": kept_distance(plan.staying, out / "images"),
        "distances": apart,
        "divergence": divergent(model, edits, plan, how),
        "judges": {name: j.identity() for name, j in judges.items()},
        "gates": [asdict(gate) for gate in plan.suite.gates],
        **({"suite_file": plan.suite.file} if plan.suite.file else {}),
        "missing": missing,
        "errors": errors_of(plan.suite, plan.axis, plan.targets, judges[plan.axis]) if plan.axis in judges else None,
        "edits": [edit_record(edit) for edit in edits],
        "overlap": overlap(model, edits),
        "sizes": plan.sizes,
    }
    write_json(out / "timing.json", {"seconds": round(time.monotonic() - begun, 1), "drawn": drawn})
    result["published"] = as_published(plan.suite, rows, result)
    run.finish(result)
    if how.keep == "none":
        remove(out, PICTURES)
    return result


def work(
    model: DiffusionModel,
    edits: Sequence[Edit],
    plan: Audit,
    out: Path,
    how: How,
    *,
    shard: tuple[int, int] = WHOLE,
    fresh: bool = False,
) -> tuple[Run, dict[str, int]]:
    """Everything of an audit that takes long: pictures of every model, and attacks. Several processes can share it.

    Args:
        shard: (i, n): every n-th batch of pictures and of attacked prompts, from the i-th on.
    """
    run = Run(out, job_record(model, edits, plan, how), fresh, WRITES)
    with applied(model, edits, **how.placing):  # complains before anything is written
        pass
    readable(model, plan.suite)  # before anything is drawn
    siege = siege_of(plan)
    with held(out, "erasure audit", None if shard == WHOLE else shard):
        if fresh:
            check(out)  # another share that works there would lose what it draws
        run.begin()
        base, drawn = run.job["base"], {}
        stacks = stacks_of(how, edits)
        for name, stack in stacks.items():
            placing = how.placing if name == "erased" else {"other_base": how.other_base}
            with applied(model, stack, **placing):
                weights = digest([base, placing.get("strength", 1.0), *(e.digest() for e in stack)]) if stack else base
                drawn[name] = draw(model, weights, plan.suite, plan.todo, out / "images" / name, shard=shard, cached=how.keep == "all")
        if siege is not None:
            besiege(model, edits, siege, out / "attacks", shard=shard, **how.placing)
    return run, drawn


def stacks_of(how: How, edits: Sequence[Edit]) -> dict[str, Sequence[Edit]]:
    """The models of an audit and the edits that make them of the base."""
    oracles = {f"oracle-{i}" if i > 1 else "oracle": [oracle] for i, oracle in enumerate(how.oracles, 1)}
    return {"base": [], "erased": edits, **oracles}


def models_of(how: How) -> tuple[str, ...]:
    return tuple(stacks_of(how, ()))


def divergent(model: DiffusionModel, edits: Sequence[Edit], plan: Audit, how: How) -> list[dict[str, Any]]:
    """Denoiser divergences, in tier full and where there is an oracle; of edits in full strength on their own base."""
    if how.placing != How().placing or not (how.oracles or plan.tier == "full"):
        return []
    return divergences(model, stacks_of(how, edits), plan.asking(True), plan.asking(False))


def siege_of(plan: Audit) -> Siege | None:
    """The attacks of an audit; None where its tier has none, or the judge that would decide has no weights."""
    judges, _ = judges_of(plan.suite)
    if plan.tier not in plan.suite.attacks.tiers or plan.axis not in judges:
        return None
    return Siege.of(plan.suite, plan.axis, plan.targets, plan.attacked, judges[plan.axis])


def attacks_in(out: Path, plan: Audit, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What the attacks found, counted from the rows on disk."""
    siege = siege_of(plan)
    if siege is None:
        return []
    about = {
        name: {"paper": a.paper, "threat": a.threat, "control": a.control, "fields": asdict(a)}  # type: ignore[call-overload]  # dataclasses
        for name, a in attacks_of(plan.suite.attacks).items()
    }
    names = {a.name for a in siege.attempts}
    first: dict[str, dict[str, bool]] = {name: {} for name in names}
    for row in rows:
        name = Path(row["image"]).name
        if name in names:
            first[name][row["model"]] = row["read"][plan.axis]["label"] == row[plan.axis]
    return attack_rates(lines(out / "attacks" / "attacks.jsonl"), about, first)


def buildable(suite: Suite) -> None:
    """Complain, before anything is drawn, about fields that a suite's judges, attacks or extractor do not have; no weights are loaded."""
    configured(suite)
    attacks_of(suite.attacks)
    if suite.features:
        extractor_of(suite.features)


def job_record(model: DiffusionModel, edits: Sequence[Edit], plan: Audit, how: How) -> dict[str, Any]:
    """What identifies an audit."""
    return {
        "task": "audit",
        "base": model.fingerprint(),
        "edits": [edit.digest() for edit in edits],
        "suite": plan.suite.name,
        "suite_version": plan.suite.version,
        "suite_asks": asks(plan.suite),
        "axis": plan.axis,
        "tier": plan.tier,
        "strength": how.strength,
        "compute": str(model.compute).removeprefix("torch."),
        **({"replay": digest([prompt.record() for prompt in plan.replay])} if plan.replay else {}),
        **({"only": plan.only} if plan.only else {}),
        **({"oracles": [oracle.digest() for oracle in how.oracles]} if how.oracles else {}),
        **({"keep": how.keep} if how.keep != "all" else {}),
    }


def asks(suite: Suite) -> str:
    """Digest of what decides a suite's pictures. A key that suites did not always have counts only where it says something."""
    left_out = {"gates", "apart", "judges", "published", "file", *(key for key in ("seeds", "listed") if not getattr(suite, key))}
    asked = {key: value for key, value in asdict(suite).items() if key not in left_out}
    if "listed" in asked:  # the prompts count, and not the name of their file
        asked["listed"] = {key: value for key, value in asked["listed"].items() if key != "origin"}
    return digest(asked)


def edit_record(edit: Edit) -> dict[str, Any]:
    info = edit.info
    return {
        "method": info.method,
        "fields": info.fields,
        "concepts": info.concepts,
        "seed": info.seed,
        "cost": info.cost,
        "base": info.base,
        "versions": info.versions,
        "known": info.known,
        "notes": info.notes,
        "product": info.product,
    }
