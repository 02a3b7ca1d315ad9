"""`erasure audit EDIT`: measure what an edit erased and what else it changed. Its other actions have modules of their own."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from app.commands.audit_compare import AuditCompareCommand, compare_audits
from app.commands.audit_evidence import AuditAttestCommand, AuditVerifyCommand, run_attest, run_verify
from app.commands.audit_images import AuditImagesCommand, audit_images
from app.commands.audit_leakage import AuditLeakageCommand, run_leakage
from app.commands.audit_report import AuditReportCommand, print_audit, rewrite_report
from app.commands.audit_sequence import AuditSequenceCommand, run_sequence
from app.jobs.child_processes import ShardProcesses, as_one_of, start_shard_processes
from app.model_options import load_with_options
from app.parsing import ModelSource, Switch, check_edits_exist, to_argv
from erasure.concept import ConceptKind
from erasure.config.choices import Attention, Offload, Precision, VaeMode
from erasure.errors import MAX_VALUE_CHARS, UserError

if TYPE_CHECKING:
    from eval import PreparedAudits

MAX_WORKERS = 4 * (os.cpu_count() or 1)
AuditAction = (
    Annotated[AuditReportCommand, tyro.conf.subcommand("report")]
    | Annotated[AuditImagesCommand, tyro.conf.subcommand("images")]
    | Annotated[AuditCompareCommand, tyro.conf.subcommand("compare")]
    | Annotated[AuditSequenceCommand, tyro.conf.subcommand("sequence")]
    | Annotated[AuditVerifyCommand, tyro.conf.subcommand("verify")]
    | Annotated[AuditAttestCommand, tyro.conf.subcommand("attest")]
    | Annotated[AuditLeakageCommand, tyro.conf.subcommand("leakage")]
)
ACTION_NAMES = ("report", "images", "compare", "sequence", "verify", "attest", "leakage")


@dataclass(frozen=True, kw_only=True)
class AuditCommand:
    """Generate a suite's images with the base and the edited model from the same noise, judge every image, count, and report.

    A word that is the name of an action, in place of an edit, runs that action instead.

    External erasures are read as well: a diffusers folder or hub id, a text-encoder folder, a LoRA, or a .safetensors file of UNet
    parameters; they need --concept, --kind, --model (their base) and --out.
    """

    words: ClassVar[str] = "audit"

    edits: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()  # edits of `erasure erase`; several are applied together, in this order
    suite: str = "pocket"  # name of a suite in prompts/, SUITE/CONCEPT for one concept of it, or a YAML file
    tier: Literal["smoke", "standard", "full"] = "standard"  # images per cell
    concept: str = ""  # what an external erasure claims to erase; several: "a; b"
    kind: ConceptKind = "style"  # of that concept: style, object, person, nsfw
    model: ModelSource = ""  # base model; default: the one the edit was made on
    out: Path | None = None  # audit folder; default <edit>/audit-<suite>-<tier>
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    dtype: Precision = "auto"  # compute precision
    attention: Attention = "auto"  # attention kernel of the denoiser
    offload: Offload = "auto"  # on a GPU, what waits in main memory: none, text (text encoders, VAE), or all that does not compute
    vae: VaeMode = "auto"  # images at once from the VAE: whole batch, sliced (one by one), or tiled, which changes large images a little
    resolution: int | None = None  # height and width of the images in pixels; default: the model's own
    images_at_once: int | None = None  # images sampled together; default: by their size, and less where a GPU has too little memory
    prompt_list: str = ""  # your copy of the list of a suite that ships none: a file, or hub:ORG/NAME/FILE of a Hugging Face dataset
    only: str = ""  # fine-grained erasure, meant for this label of the other axis only: a style on one object, an object in one style
    replay: str = ""  # prompts said to bring the concept back: CSV or JSON (FILE#COLUMN: another column), .txt, or hub:ORG/NAME/FILE
    retrained: tuple[str, ...] = ()  # models retrained without the concept: diffusers folders or .safetensors of their UNets
    keep_images: Literal["all", "none", "never"] = "all"  # none: delete them in the end, keep scores; never: do not write them at all
    workers: int = 1  # processes on this machine that share the work: one per GPU, or on a CPU about one per core
    shard: str = ""  # i/n: generate and attack only the i-th of n shards, in the same folder; afterwards run once without it
    strength: float = 1.0  # strength of the edits: 0 is the base, 1 the edit as trained; from -10 to 10
    other_base: Switch = False  # apply the edit to a model it was not made on
    fresh: Switch = False  # delete what an audit wrote in the folder, and start over; other files stay
    blur: Switch = False  # blur the report's images until the reader reveals them; always on where the concept's kind is nsfw
    action: AuditAction | None = None


def run_audit(command: AuditCommand) -> int:
    """Audit and report, or run another action. Return the exit code: 0 pass, 2 incomplete, 3 a gate failed, 4 inconclusive.

    Raises:
        UserError: What is asked for cannot be audited; what needs no model is checked before torch is imported.
    """
    if command.action is not None:
        check_nothing_before(command, command.action.words)
        return run_action(command.action)
    check_before_torch(command)
    with start_shard_processes(command.workers - 1) as others:
        prepared = prepare(command)
        return audit_shard(command, prepared) if command.shard else audit_all(command, prepared, others)


def check_nothing_before(command: AuditCommand, action: str) -> None:
    """Check that no edit and no option stands before an action, which takes its own behind its name.

    Raises:
        UserError: Something does.
    """
    if replace(command, action=None) != AuditCommand():
        raise UserError(f"erasure {action} takes its options behind its name; for an edit in a folder of that name write ./FOLDER.")


def run_action(action: AuditAction) -> int:
    """Run an action and return its exit code."""
    match action:
        case AuditReportCommand():
            return rewrite_report(action)
        case AuditImagesCommand():
            return audit_images(action)
        case AuditCompareCommand():
            return compare_audits(action)
        case AuditSequenceCommand():
            return run_sequence(action)
        case AuditVerifyCommand():
            return run_verify(action)
        case AuditAttestCommand():
            return run_attest(action)
        case AuditLeakageCommand():
            return run_leakage(action)


def check_before_torch(command: AuditCommand) -> None:
    """Check what needs no model.

    Raises:
        UserError: --workers, --shard or --strength is out of range, or two options cannot be given together; no edit is given, or one
            does not exist; or the suite or a list cannot be used.
    """
    from erasure.config.strength import check_strength
    from erasure.storage.run import check_output_folder
    from eval.requests import resolve_replay, resolve_suite, split_suite_name

    if not 1 <= command.workers <= MAX_WORKERS or (command.workers > 1 and command.shard):
        raise UserError(
            f"--workers must be from 1 to {MAX_WORKERS} on this machine, and cannot be given with --shard; got {command.workers}."
        )
    if command.keep_images == "never" and (command.workers > 1 or command.shard):
        raise UserError("processes cannot share images that are only in memory; leave out --workers and --shard with --keep-images never.")
    if command.shard:
        parse_shard(command.shard)
    if not command.edits:
        raise UserError("audit needs the folder of an edit: erasure audit runs/NAME.")
    if command.out:
        check_output_folder(command.out)
    check_strength(command.strength)
    if not command.concept and not split_suite_name(command.suite)[1]:  # with a concept it may be an external erasure on the hub
        check_edits(command.edits)
    resolve_suite(command.suite, command.prompt_list)
    resolve_replay(command.replay)


def check_edits(edits: Sequence[Path]) -> None:
    """Check that the edits exist.

    Raises:
        UserError: One does not; the message names an action if it is close to one.
    """
    try:
        check_edits_exist(edits)
    except UserError as error:
        if matches := get_close_matches(str(edits[0])[:MAX_VALUE_CHARS], ACTION_NAMES, n=1):
            raise UserError(f"{error} Did you mean `erasure audit {matches[0]}`?") from None
        raise


def parse_shard(text: str) -> tuple[int, int]:
    """Parse "i/n" into (i - 1, n).

    Raises:
        UserError: The text is not i/n with 1 <= i <= n.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f"--shard must be i/n with 1 <= i <= n, such as 1/2; got {text!r}.")
    return int(number) - 1, int(count)


def prepare(command: AuditCommand) -> "PreparedAudits":
    """Load the base and the edits, and prepare the audits.

    Raises:
        UserError: As `eval.requests.load_model_and_edits` and `eval.prepare_audit`.
    """
    import erasure
    import eval
    from app.confirmation import print_warning, print_warnings
    from eval.requests import external_target_of, load_model_and_edits, resolve_suite

    def load_base(source: str) -> erasure.DiffusionModel:
        return load_with_options(source, command)

    suite, target = resolve_suite(command.suite, command.prompt_list)
    with print_warnings():
        model, edits = load_model_and_edits(
            command.edits,
            load_base,
            model=command.model,
            concept=command.concept,
            kind=command.kind,
            suite_target=external_target_of(suite, target) if target else None,
            out=command.out,
        )
    prepared = eval.prepare_audit(
        model,
        edits,
        command.suite,
        command.tier,
        prompt_list=command.prompt_list,
        replay=command.replay,
        only=command.only,
        retrained=command.retrained,
        strength=command.strength,
        other_base=command.other_base,
        keep_images=command.keep_images,
        out=command.out,
        edit_paths=command.edits,
        fresh=command.fresh,
        blur=command.blur,
    )
    for warning in prepared.warnings:
        print_warning(warning)
    return prepared


def audit_shard(command: AuditCommand, prepared: "PreparedAudits") -> int:
    """Do one shard of the slow part of every audit; there is no verdict yet."""
    prepared.generate(parse_shard(command.shard))
    for audit in prepared.audits:
        done = f"shard {command.shard} of {audit.out} is done"
        print(f"{done}. That is not a verdict: when all are done, run the command without --shard.")
    return 0


def audit_all(command: AuditCommand, prepared: "PreparedAudits", others: ShardProcesses) -> int:
    """Audit, with several processes for the slow part if they are asked for, and report. Return the exit code of the worst verdict."""
    with prepared.lock():
        if command.workers > 1:
            prepared = prepared.begin()
            share_work(command, prepared, others)
        audited = prepared.run()
    for result in audited.results:
        for pair in result.edit_overlaps:
            print(f"{pair.first} and {pair.second} share {pair.shared} tensors. {pair.warning}", file=sys.stderr)
    return print_audit(audited)


def share_work(command: AuditCommand, prepared: "PreparedAudits", others: ShardProcesses) -> None:
    """Do the first shard here and the rest in other processes, each on a GPU of its own where there are several.

    Raises:
        UserError: A process failed.
    """
    count = command.workers
    devices = worker_devices(command.device, count)
    shards = [replace(command, workers=1, fresh=False, shard=f"{i}/{count}", device=device) for i, device in enumerate(devices, 1)]
    others.begin([to_argv(shard) for shard in shards[1:]])
    with as_one_of(count):
        prepared.generate((0, count))
    others.wait()


def worker_devices(device: str, count: int) -> list[str]:
    """Return the device of each of several workers: the GPUs of this machine in turn, unless one device was asked for."""
    import torch

    gpus = torch.cuda.device_count()
    return [f"cuda:{i % gpus}" if gpus and device in ("auto", "cuda") else device for i in range(count)]
