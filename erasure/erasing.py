"""From concepts to an edit: `prepare` checks everything and returns an Erasure, `Erasure.run` does the work in its run folder."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import Doc

from erasure.concept import Concept, ConceptKind, ConceptSource, resolve_concepts
from erasure.concept_check import WeaklyKnownConcept, check_concepts, concept_check_cost, describe_weakly_known
from erasure.concept_hints import find_hints
from erasure.config.arguments import check_arguments
from erasure.config.choices import Tracker
from erasure.config.launcher import is_main_process, process_count
from erasure.config.seeds import check_seed
from erasure.edits import Edit, EditSource, apply_edits, load_edits
from erasure.erasure_job import ErasureJob, make_job
from erasure.errors import UserError, to_one_line, truncate_middle
from erasure.export.model_card import sample_before_after, write_card
from erasure.families.base import DiffusionModel
from erasure.families.cost import Cost
from erasure.finished_edit import build_edit, load_finished_edit
from erasure.loading.loader import ModelOrSource, resolve_model
from erasure.methods.base import Method, Trained, TrainingContext, TrainingFree
from erasure.peak_memory import measure_peak_memory, reset_peak_memory
from erasure.recipes import choose_method, warn_unfit
from erasure.storage.locks import check_unlocked, lock_folder
from erasure.storage.run import Run, check_output_folder, check_tracker, run_folder_of, write_json
from erasure.training.data_parallel import follow_main, wait_for_all
from erasure.training.loop import TrainingOptions
from erasure.training.method_run import run_method
from erasure.training.optimizers import check_optimizer

# everything that an erasure writes into its folder, and that --fresh removes there
OUTPUT_FILES = (
    *("edit.safetensors", "edit.json", "README.md", "before-after-[0-9]*.png", "timing.json"),
    *("train.jsonl", "mask.safetensors", "checkpoint.pt", ".checkpoint.part"),
)
MethodOrName = Annotated[str | Method, Doc("the name of a method or an erasure.methods.base.Method")]
Watch = Callable[[Trained, TrainingContext], None]


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """An erasure that was checked and has not run; `prepare` makes it.

    Attributes:
        concepts: what is erased, with prompts and anchors from the recipe where none were given.
        changed_defaults: fields of the method that differ from the paper's defaults, by name.
        after: edits that are applied while this one is made; it builds on them and requires them when it is applied.
        mask: a saved saliency mask; only its entries are trained.
        out: the run folder.
        fresh: start over instead of continuing what `out` holds.
        report_to: an experiment tracker, or "none".
        job: what identifies the erasure, as job.json records it; its hash names the default run folder.
    """

    model: DiffusionModel
    concepts: tuple[Concept, ...]
    method: Method
    changed_defaults: dict[str, Any]
    seed: int
    after: tuple[Edit, ...]
    mask: Path | None
    out: Path
    fresh: bool
    report_to: Tracker
    gradient_checkpointing: bool
    job: ErasureJob

    def __repr__(self) -> str:
        names = truncate_middle("; ".join(concept.name for concept in self.concepts), 80)
        return f"Erasure({type(self.method).__name__}, {to_one_line(names)}, on {self.model.source}, into {self.out})"

    def hints(self) -> list[str]:
        """Return one sentence for everything unusual about the concepts' names; empty if there is nothing."""
        return find_hints(self.model, self.concepts)

    def forecast_cost(self) -> Cost:
        """Return the network passes per sample of an uninterrupted run with empty caches; a finished run counts the same."""
        return forecast_erasure(self.model, list(self.concepts), self.method)

    def preview(self) -> dict[str, Any]:
        """Return what a closed form says about its own solution, such as how far it moves other prompts; nothing is written.

        Raises:
            UserError: The method is not a closed form, or as `TrainingFree.solve`.
        """
        if not isinstance(self.method, TrainingFree):
            raise UserError(f"only closed forms such as uce have a preview; {type(self.method).__name__} is not one.")
        with apply_edits(self.model, self.after):
            return self.method.solve(self.model, list(self.concepts), self.seed).notes

    @check_arguments
    def run(self, watch: Watch | None = None) -> Edit:
        """Make the edit, or continue or load what `out` holds of it; the model stays unchanged.

        Under `accelerate launch` the processes share each batch of the training, and the main one writes.

        In the end `out` holds edit.safetensors, edit.json, README.md (a model card with images), timing.json, for trained methods
        train.jsonl and (if there is a mask) mask.safetensors, and finally result.json.

        Args:
            watch: called after every training step, such as erasure.training.preview.Preview; it must not change the model.

        Raises:
            UserError: The loss is NaN or Inf, or a closed form has no solution.
            NotFiniteError: The edit holds NaN or Inf.
            FolderLocked: Another process is writing into `out`.
        """
        run = Run(self.out, self.job.to_record(), self.fresh, OUTPUT_FILES)
        if process_count() > 1:
            return _run_together(self, run, watch)
        if edit := load_finished_edit(run, verbose=False):
            return edit
        with lock_folder(self.out, "erasure erase"):
            return load_finished_edit(run) or _make_edit(self, run, watch)


@check_arguments
def prepare(
    model: ModelOrSource,
    concepts: ConceptSource | Sequence[ConceptSource],
    method: MethodOrName = "esd",
    *,
    kind: ConceptKind = "style",
    anchor: str = "",
    prompts: str | Sequence[str] = (),
    seed: int = 0,
    after: EditSource | Sequence[EditSource] = (),
    mask: str | Path | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    report_to: Tracker = "none",
    gradient_checkpointing: bool = False,
    **fields: Any,
) -> Erasure:
    """Check an erasure without writing anything, and return it.

    Args:
        model: what `load_model` returns, or the source from which it is loaded, such as "pocket".
        concepts: "neon; sketch", a Concept, or several of either.
        method: the name of a method, which takes its recipe for the concepts' kind and the model's family; or a method itself, which
            is used as it is, without a recipe.
        kind, anchor, prompts: of concepts that are given as text; see Concept.
        seed: of every random number, from 0 to 2^63 - 1.
        after: edits, or paths of edits, that are applied while this one is made.
        mask: path of the saliency mask of a SalUn run; only its entries are trained.
        out: the run folder; None means runs/<hash of the job>.
        fresh: start over instead of continuing what `out` holds.
        report_to: an experiment tracker (tensorboard, wandb, trackio or mlflow), or "none".
        gradient_checkpointing: less memory for about a third more time.
        fields: options of the method by name; None means the recipe's value.

    Raises:
        UserError: An unknown method or field, a value of the wrong type or out of range, a concept or edit that cannot be used, a mask
            or gradient checkpointing that does not work with the method, or a folder that holds another job.
        FolderLocked: Another process is writing into `out`.
    """
    requested, model = resolve_concepts(concepts, kind=kind, prompts=prompts, anchor=anchor), resolve_model(model)
    overrides = {name: value for name, value in fields.items() if value is not None}
    method, chosen, changed_defaults = choose_method(method, requested, model.family, overrides)
    edits, mask = load_edits(after), Path(mask) if mask is not None else None
    check_seed(seed)
    _check_settings(model, method, mask, report_to, gradient_checkpointing)
    forecast_erasure(model, chosen, method)  # raises for a model that the method does not serve, or a pretraining that cannot run
    job = make_job(model, chosen, method, seed, edits, mask)
    folder = check_output_folder(Path(out)) if out is not None else run_folder_of(job.to_record())
    Run(folder, job.to_record(), fresh)  # raises if it holds another job
    check_unlocked(folder)
    return Erasure(
        model=model,
        concepts=tuple(chosen),
        method=method,
        changed_defaults=changed_defaults,
        seed=seed,
        after=edits,
        mask=mask,
        out=folder,
        fresh=fresh,
        report_to=report_to,
        gradient_checkpointing=gradient_checkpointing,
        job=job,
    )


def erase(
    model: ModelOrSource,
    concepts: ConceptSource | Sequence[ConceptSource],
    method: MethodOrName = "esd",
    *,
    kind: ConceptKind = "style",
    anchor: str = "",
    prompts: str | Sequence[str] = (),
    seed: int = 0,
    after: EditSource | Sequence[EditSource] = (),
    mask: str | Path | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    report_to: Tracker = "none",
    gradient_checkpointing: bool = False,
    **fields: Any,
) -> Edit:
    """Make an edit that erases concepts; a `model` that is given stays unchanged.

    Arguments and errors are those of `prepare` and `Erasure.run`, which this calls one after the other.
    """
    erasure = prepare(
        model,
        concepts,
        method,
        kind=kind,
        anchor=anchor,
        prompts=prompts,
        seed=seed,
        after=after,
        mask=mask,
        out=out,
        fresh=fresh,
        report_to=report_to,
        gradient_checkpointing=gradient_checkpointing,
        **fields,
    )
    return erasure.run()


def _check_settings(model: DiffusionModel, method: Method, mask: Path | None, report_to: str, gradient_checkpointing: bool) -> None:
    """Check what does not need the run folder."""
    check_tracker(report_to)
    if mask and not isinstance(method, Trained):
        raise UserError(f"--mask is for trained methods; {type(method).__name__} trains nothing.")
    if gradient_checkpointing and not getattr(method, "supports_gradient_checkpointing", True):
        raise UserError(f"--gradient-checkpointing does not work with {type(method).__name__}, which switches adapters between passes.")
    if isinstance(method, Trained):
        check_optimizer(method.optimizer)


def forecast_erasure(model: DiffusionModel, concepts: list[Concept], method: Method) -> Cost:
    """Return the cost of a whole erasure: the method's own and that of the concept check.

    Raises:
        UserError: The method does not serve the model.
    """
    method.check_model(model)
    return method.forecast_cost(model, concepts) + concept_check_cost(model, concepts)


def _run_together(erasure: Erasure, run: Run, watch: Watch | None) -> Edit:
    """Do the work of `Erasure.run` in processes that share the training; the main one writes, the others load what it wrote."""
    device = erasure.model.device
    is_finished = is_main_process() and load_finished_edit(run, verbose=False) is not None
    if not follow_main(is_finished, device):
        if is_main_process():
            with lock_folder(erasure.out, "erasure erase"):
                _make_edit(erasure, run, watch)
        else:
            with apply_edits(erasure.model, erasure.after):
                run_method(erasure.model, list(erasure.concepts), erasure.method, _training_options(erasure, None))
        wait_for_all(device)
    return Edit.load(erasure.out)


def _training_options(erasure: Erasure, watch: Watch | None) -> TrainingOptions:
    return TrainingOptions(
        folder=erasure.out,
        seed=erasure.seed,
        report_to=erasure.report_to,
        gradient_checkpointing=erasure.gradient_checkpointing,
        mask=erasure.mask,
        on_step=watch,
    )


def _make_edit(erasure: Erasure, run: Run, watch: Watch | None) -> Edit:
    """Do the work of `Erasure.run`, in a folder that this process has locked."""
    model, concepts, out, options = erasure.model, list(erasure.concepts), erasure.out, _training_options(erasure, watch)
    with apply_edits(model, erasure.after):
        run.begin()
        reset_peak_memory(model.device)
        started = time.monotonic()
        concept_checks = check_concepts(model, concepts)
        if weakly_known := [check for check in concept_checks if check.weakly_known]:
            warnings.warn(describe_weakly_known(weakly_known), WeaklyKnownConcept, stacklevel=2)
        warn_unfit(erasure.method, concepts)
        result = run_method(model, concepts, erasure.method, options)
        ended = time.monotonic()
        cost = erasure.forecast_cost()
    edit = build_edit(model, erasure.job, concept_checks, cost, result)
    edit.save(out)
    with apply_edits(model, erasure.after):
        write_card(out, edit, sample_before_after(model, edit), "edit")
    write_json(out / "timing.json", {"seconds": round(ended - started, 2), **measure_peak_memory(model.device)})
    (out / "checkpoint.pt").unlink(missing_ok=True)
    run.finish({"edit": edit.digest(), "cost": cost.to_dict(), "bytes": (out / "edit.safetensors").stat().st_size})
    return edit
