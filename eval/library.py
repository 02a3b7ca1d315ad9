"""The library's `audit`: everything that a request names is resolved and checked, then the audits run."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from erasure.concept import ConceptKind
from erasure.config.arguments import check_arguments
from erasure.config.strength import check_strength
from erasure.edits import Edit, EditSource
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.loading.loader import ModelOrSource, resolve_model
from erasure.storage.locks import Shard, lock_folder
from erasure.storage.run import check_output_folder
from eval.auditing.plan import AuditPlan, concept_names, make_plans, prompt_list_files
from eval.auditing.prepare import AuditOptions, PreparedAudit, prepare_audits
from eval.auditing.run import generate_and_attack, run_audit
from eval.finished_audits import Audit, FinishedRun, report_runs
from eval.records.audit_result import KeepImages
from eval.report.conclusions import describe_left_out
from eval.requests import default_audit_folder, external_target_of, resolve_edits, resolve_replay, resolve_suite, select_plans
from eval.retrained.divergences import load_retrained
from eval.scoring.judge_scores import build_judges, check_image_size
from eval.suites.formats import Suite
from eval.suites.list_reader import PromptList


@dataclass(frozen=True)
class PreparedAudits:
    """Audits of one request that are ready to run: one for styles, one for objects, or both. `prepare_audit` makes them."""

    audits: tuple[PreparedAudit, ...]
    blur: bool  # blur the reports' images until the reader reveals them

    @property
    def warnings(self) -> list[str]:
        """Sentences about prompt lists: rows that were left out, and what else is odd about a file."""
        plan = self.audits[0].plan
        lists = prompt_list_files(plan.suite, plan.replay_origin)
        return [text for entry in lists for text in (describe_left_out(entry), *entry.warnings) if text]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folders of all audits while the block runs.

        Raises:
            FolderLocked: another process is writing into one of them.
        """
        with ExitStack() as stack:
            for prepared in self.audits:
                stack.enter_context(lock_folder(prepared.out, "erasure audit"))
            yield

    def begin(self) -> "PreparedAudits":
        """Make the folders, emptied if the audits start over, and return the audits that continue in them: for several processes.

        Raises:
            UserError: a folder holds something else.
        """
        for prepared in self.audits:
            prepared.open_run().begin()
        return replace(self, audits=tuple(replace(prepared, fresh=False) for prepared in self.audits))

    def generate(self, shard: Shard) -> None:
        """Do one share of the slow part: images and attacks. When all shares are done, `run` does the rest.

        Args:
            shard: (i, n): the i-th of n shares, counted from 0.

        Raises:
            UserError, FolderLocked: see `generate_and_attack`.
        """
        for prepared in self.audits:
            generate_and_attack(prepared, shard)

    def run(self) -> Audit:
        """Run or continue the audits, and write their reports.

        Raises:
            UserError: a folder holds something else, or the model generates NaN or Inf.
            FolderLocked: another process is writing into a folder.
        """
        with self.lock():
            runs = [FinishedRun(prepared.out, run_audit(prepared), prepared.plan.suite.gates) for prepared in self.audits]
            return report_runs(runs, self.blur)


@check_arguments
def prepare_audit(
    model: ModelOrSource,
    edits: EditSource | Sequence[EditSource],
    suite: str | Path | Suite = "pocket",
    tier: str = "standard",
    *,
    target: str = "",
    concept: str = "",
    kind: ConceptKind = "style",
    prompt_list: str = "",
    replay: str | PromptList = "",
    only: str = "",
    retrained: EditSource | Sequence[EditSource] = (),
    strength: float = 1.0,
    other_base: bool = False,
    keep_images: KeepImages = "all",
    out: str | Path | None = None,
    edit_paths: Sequence[str | Path] = (),
    fresh: bool = False,
    blur: bool = False,
) -> PreparedAudits:
    """Check an audit and everything it needs without generating or writing anything, and return it.

    Args:
        model: the base, which stays unchanged; or its source, as `erasure.load_model` takes it.
        edits: an edit, the path of one, an erasure made elsewhere (a path or hub id), or several, applied together in this order.
        suite: the name of a shipped suite, "pocket/neon" for one concept of it, the path of a YAML file, or a suite.
        tier: smoke, standard or full.
        target: the only concept of the edits to audit; empty for all of them.
        concept, kind: what an erasure made elsewhere claims to erase; "a; b" are two concepts. By default it is `target`.
        prompt_list: your copy of the list of a suite that ships none: a path, or hub:ORG/NAME/FILE.
        replay: prompts that are said to bring the concept back: a list, its path, or hub:ORG/NAME/FILE (FILE#COLUMN: another column).
        only: label of the other axis on which alone the concepts should be erased, such as a style on one object.
        retrained: models retrained without the concept: edits, diffusers folders, or .safetensors files of their UNets.
        strength: of the edits: 0 is the base, 1 the edit as it was made; from -10 to 10.
        other_base: apply the edits to a model that they were not made on.
        keep_images: "none" keeps the judges' scores only, and caches no images; "never" writes no image at any time.
        out: the audit's folder, or with two axes the folder above; None for a folder below the path of the edit, or runs/<hash of the job>
            for edits without paths.
        edit_paths: where edits come from that are given loaded.
        fresh: start over instead of continuing what the folder holds.
        blur: blur the report's images until the reader reveals them; those of kind nsfw always are.

    Raises:
        UserError: a name, path or value that is unknown or cannot be used; an edit, judge or attack that does not fit the model; or a
            folder that holds something else.
    """
    model = resolve_model(model)
    chosen_suite, suite_concept = resolve_suite(suite, prompt_list)
    target = target or suite_concept
    replay_prompts, replay_origin = resolve_replay(replay) or ((), None)
    check_strength(strength)
    if out is not None:
        check_output_folder(Path(out))
    sources = _as_list(edits)
    loaded = _load_claimed(model, sources, concept, (kind, concept) if concept else _claim_of(chosen_suite, target))
    check_image_size(model, chosen_suite, build_judges(chosen_suite))  # before concepts, which a suite for another model does not have
    plans = make_plans(concept_names(loaded), chosen_suite, tier, replay_prompts, replay_origin, only=only)
    selected = select_plans(target, plans) if target else plans
    retrained_edits = _load_retrained(model, _as_list(retrained), [label for plan in selected for label in plan.targets])
    options = AuditOptions(strength=strength, other_base=other_base, keep_images=keep_images, retrained=retrained_edits)
    paths = [Path(path) for path in edit_paths or sources if not isinstance(path, Edit)]
    lists = {"prompt_list": prompt_list, "replay": replay if isinstance(replay, str) else ""}
    folders = [_folder_of(plan, out, paths, strength, has_both_axes=len(plans) > 1, **lists) for plan in selected]
    return PreparedAudits(prepare_audits(model, loaded, selected, folders, options, fresh=fresh), blur)


def audit(
    model: ModelOrSource,
    edits: EditSource | Sequence[EditSource],
    suite: str | Path | Suite = "pocket",
    tier: str = "standard",
    *,
    target: str = "",
    concept: str = "",
    kind: ConceptKind = "style",
    prompt_list: str = "",
    replay: str | PromptList = "",
    only: str = "",
    retrained: EditSource | Sequence[EditSource] = (),
    strength: float = 1.0,
    other_base: bool = False,
    keep_images: KeepImages = "all",
    out: str | Path | None = None,
    edit_paths: Sequence[str | Path] = (),
    fresh: bool = False,
    blur: bool = False,
) -> Audit:
    """Measure what edits erased from a model and what else they changed: generate, judge, count, and write a report.

    An interrupted audit continues, and a finished one is counted again without generating. Arguments and errors are those of
    `prepare_audit` and `PreparedAudits.run`, which this calls one after the other.
    """
    return prepare_audit(
        model,
        edits,
        suite,
        tier,
        target=target,
        concept=concept,
        kind=kind,
        prompt_list=prompt_list,
        replay=replay,
        only=only,
        retrained=retrained,
        strength=strength,
        other_base=other_base,
        keep_images=keep_images,
        out=out,
        edit_paths=edit_paths,
        fresh=fresh,
        blur=blur,
    ).run()


def _as_list(edits: EditSource | Sequence[EditSource]) -> list[EditSource]:
    return [edits] if isinstance(edits, Edit | str | Path) else list(edits)


def _claim_of(suite: Suite, target: str) -> tuple[ConceptKind, str] | None:
    return external_target_of(suite, target) if target else None


def _load_claimed(
    model: DiffusionModel, sources: Sequence[EditSource], concept: str, claim: tuple[ConceptKind, str] | None
) -> tuple[Edit, ...]:
    """Return the edits; `concept` is what the user says of erasures made elsewhere, and no other edit takes it."""
    loaded = resolve_edits(model, sources, claim, may_be_remote=bool(concept))
    if concept and all(edit.info.method != "external" for edit in loaded):
        raise UserError("--concept is for erasures made elsewhere; this edit records what it erases. Leave it out.")
    return loaded


def _load_retrained(model: DiffusionModel, sources: Sequence[EditSource], targets: Sequence[str]) -> tuple[Edit, ...]:
    """Return retrained models as edits of `model`, loaded where a path is given."""
    return tuple(
        edit for source in sources for edit in ([source] if isinstance(source, Edit) else load_retrained(model, [str(source)], targets))
    )


def _folder_of(
    plan: AuditPlan,
    out: str | Path | None,
    edit_paths: Sequence[Path],
    strength: float,
    *,
    has_both_axes: bool,
    prompt_list: str,
    replay: str,
) -> Path | None:
    """Return the folder of an audit; None where neither `out` nor the path of an edit decides it."""
    axis = plan.axis if has_both_axes else ""
    if out is not None:
        return Path(out) / axis
    if not edit_paths:
        return None
    return default_audit_folder(
        edit_paths,
        plan.suite.name,
        plan.tier,
        prompt_list=prompt_list,
        replay=replay,
        strength=strength,
        only=plan.only,
        axis=axis,
    )
