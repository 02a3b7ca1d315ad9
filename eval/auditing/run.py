"""Suite -> samples -> judge scores -> rates: how much of a concept was erased, and what else was lost with it."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from erasure.edits import Edit, apply_edits
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.storage.files import DamagedFile, print_message
from erasure.storage.locks import Shard, check_unlocked, lock_folder
from erasure.storage.run import remove_matching, write_json
from eval.attack_runs.runner import run_attacks
from eval.auditing.plan import AuditPlan
from eval.auditing.prepare import IMAGE_FILES, AuditOptions, PreparedAudit, prepare_audit
from eval.auditing.result import make_result
from eval.generation import generate_images
from eval.image_memory import keep_images_in_memory, memory_for
from eval.records.audit_result import AuditResult
from eval.records.convert import to_record
from eval.scoring.recount import recount

SINGLE_SHARD: Shard = (0, 1)  # shard 0 of 1: the whole audit


def audit_plan(
    model: DiffusionModel, edits: Sequence[Edit], plan: AuditPlan, out: Path, options: AuditOptions | None = None, *, fresh: bool = False
) -> AuditResult:
    """Prepare and run one audit.

    Raises:
        UserError, FolderLocked: see `prepare_audits` and `run_audit`.
    """
    return run_audit(prepare_audit(model, edits, plan, out, options, fresh=fresh))


def run_audit(prepared: PreparedAudit) -> AuditResult:
    """Generate, attack, judge and count; return the result that is also written to result.json of the audit's folder.

    The folder ends up with images/, attacks/, scores/, samples.jsonl, timing.json and result.json. An interrupted audit continues; scores
    of a new judge are added without generating an image.

    Raises:
        UserError: the folder holds another job.
        FolderLocked: another process is writing into the folder.
    """
    run = prepared.open_run()
    in_memory = prepared.options.keep_images == "never"
    with lock_folder(prepared.out, "erasure audit"), keep_images_in_memory(prepared.out) if in_memory else nullcontext():
        # a finished audit without its images still has their scores
        if prepared.options.keep_images != "all" and run.is_complete and (result := recount_finished(prepared.out, prepared.plan)):
            run.finish(to_record(result))
            remove_matching(prepared.out, IMAGE_FILES)
            return result
        started = time.monotonic()
        generated_counts = generate_and_attack(prepared)
        result = make_result(prepared)
        write_json(prepared.out / "timing.json", {"seconds": round(time.monotonic() - started, 1), "generated": generated_counts})
        run.finish(to_record(result))
        if prepared.options.keep_images == "none":
            remove_matching(prepared.out, IMAGE_FILES)
        return result


def recount_finished(out: Path, plan: AuditPlan) -> AuditResult | None:
    """Recount a finished audit from its rows on disk; return None, with a message, if they are damaged."""
    try:
        result = recount(out, plan.suite)
    except DamagedFile as error:
        print_message(f"{error} It will be made again.")
        return None
    return replace(result, gates=plan.suite.gates, suite_file=plan.suite.file, excluded_by_suite=None)


def generate_and_attack(prepared: PreparedAudit, shard: Shard = SINGLE_SHARD) -> dict[str, int]:
    """Do the slow part of an audit: the images of every model, and the attacks. Several processes can share the work.

    Args:
        shard: (i, n): every n-th batch of images and of attacked prompts, starting at the i-th.

    Returns:
        The number of newly generated images by model.

    Raises:
        UserError: the folder holds another job, or images that stay in memory were to be shared among processes.
        FolderLocked: another process is working on this shard; if the audit starts over, on any shard.
    """
    model, options, out, run = prepared.model, prepared.options, prepared.out, prepared.open_run()
    if options.keep_images == "never" and memory_for(out) is None:
        raise UserError("processes cannot share images that are only in memory; leave out --workers and --shard with --keep-images never.")
    with lock_folder(out, "erasure audit", None if shard == SINGLE_SHARD else shard):
        if prepared.fresh:
            check_unlocked(out)  # another shard at work there would lose its images
        if shard != SINGLE_SHARD and options.keep_images == "none" and run.is_complete and not prepared.fresh:
            return {}  # of the images that are gone there are scores
        run.begin()
        generated_counts = {}
        for turn, stack in enumerate(prepared.stacks):
            # a turn further for each model, or the first shard would get the odd batch of all of them
            share = ((shard[0] + turn) % shard[1], shard[1])
            with apply_edits(model, stack.edits, options.other_base, stack.strength):
                generated_counts[str(stack.model)] = generate_images(
                    model,
                    stack.weights_digest,
                    prepared.plan.suite,
                    prepared.plan.samples,
                    out / "images" / str(stack.model),
                    shard=share,
                    use_cache=options.keep_images == "all",
                )
        if prepared.attack_run is not None:
            run_attacks(
                model,
                prepared.edits,
                prepared.attack_run,
                out / "attacks",
                shard=shard,
                other_base=options.other_base,
                strength=options.strength,
            )
    return generated_counts
