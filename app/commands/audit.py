"""`erasure audit EDIT`: measure what an edit erased and what else it changed."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from app.commands.audit_sequence import main as sequence
from app.jobs.audit_outcomes import worst_exit_code
from app.jobs.child_processes import run_shards
from app.parsing import check_edits_exist, parse_options
from erasure.concept import ConceptKind, parse_concepts
from erasure.config.choices import Attention, Precision
from erasure.errors import UserError
from erasure.storage.locks import lock_folder
from erasure.storage.run import check_output_folder, read_json
from eval.report.numbers import format_percent, format_percent_span
from eval.scoring.gates import Gate, exit_code_of

if TYPE_CHECKING:
    from erasure.edits import Edit
    from erasure.families.base import DiffusionModel
    from eval.auditing.plan import AuditPlan
    from eval.suites.formats import Suite


MAX_WORKERS = 4 * (os.cpu_count() or 1)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Generate a suite's images with the base and the edited model from the same noise, judge every image, count, and report.

    `erasure audit report|images|compare|sequence --help` describe the rest: report a finished audit again, audit images that another tool
    generated, compare two audits, apply edits one after another.

    External erasures are read as well: a diffusers folder or hub id, a text-encoder folder, a LoRA, or a .safetensors file of UNet
    parameters; they need --concept, --kind, --model (their base) and --out.
    """

    edits: Annotated[tuple[Path, ...], tyro.conf.Positional]  # edits made by `erasure erase`; several are applied together, in this order
    suite: str = "pocket"  # name of a suite in prompts/, SUITE/CONCEPT for one concept of it, or a YAML file
    tier: Literal["smoke", "standard", "full"] = "standard"  # images per cell
    concept: str = ""  # what an external erasure claims to erase; several: "a; b"
    kind: ConceptKind = "style"  # of that concept: style, object, person, nsfw
    model: str = ""  # base model; default: the one the edit was made on
    out: Path | None = None  # audit folder; default <edit>/audit-<suite>-<tier>
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    dtype: Precision = "auto"  # compute precision
    attention: Attention = "auto"  # attention kernel of the UNet
    prompt_list: str = ""  # your copy of the list of a suite that ships none: a file, or hub:ORG/NAME/FILE of a Hugging Face dataset
    only: str = ""  # fine-grained erasure, meant for this label of the other axis only: a style on one object, an object in one style
    replay: str = ""  # prompts claimed to bring the concept back: CSV or JSON (FILE#COLUMN: another column), .txt, or hub:ORG/NAME/FILE
    retrained: tuple[str, ...] = ()  # models retrained without the concept: diffusers folders or .safetensors of their UNets
    keep_images: Literal["all", "none"] = "all"  # none: store only judge scores, and cache no images
    workers: int = 1  # processes on this machine that share the work; on a CPU about one per core
    shard: str = ""  # i/n: generate and attack only the i-th of n shards, in the same folder; afterwards run once without it
    strength: float = 1.0  # strength of the edits: 0 is the base, 1 the edit as trained; from -10 to 10
    other_base: bool = False  # apply the edit to a model it was not made on
    fresh: bool = False  # delete what an audit wrote in the folder, and start over; other files stay
    blur: bool = False  # blur the report's images until the reader reveals them; always on where the concept's kind is nsfw


@dataclass(frozen=True, kw_only=True)
class ImagesOptions:
    """Audit images that another tool generated, named {style}_{object}_seed{seed}.jpg or .png, with a suite's judges, and report."""

    images: Annotated[Path, tyro.conf.Positional]  # folder of the erased model's images
    concept: str  # what the model claims to have erased: a label of the suite
    out: Path  # audit folder
    kind: ConceptKind = "style"  # of that concept: style, object, person, nsfw
    base: Path | None = None  # folder of the base's images with the same names; without it no drop is measured
    suite: str = "unlearncanvas"  # name of a suite with a grid, or a YAML file
    fresh: bool = False  # delete what an audit wrote in the folder, and start over; other files stay
    blur: bool = False  # blur the report's images until the reader reveals them


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write report.json, junit.xml and report.html of a finished audit again; other thresholds need no new images."""

    audit: Annotated[Path, tyro.conf.Positional]  # folder of the audit
    suite: str = ""  # suite whose gates decide, with the same judges; default: the gates the audit was made with
    blur: bool = False  # blur its images until the reader reveals them; always on where the concept's kind is nsfw


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Compare two finished audits of the same suite, image by image from the same noise."""

    first: Annotated[Path, tyro.conf.Positional]  # folder of an audit
    second: Annotated[Path, tyro.conf.Positional]  # folder of another


def main(argv: list[str]) -> int:
    match argv[:1]:
        case ["report"]:
            return rewrite_report(parse_options(ReportOptions, argv[1:], "audit report"))
        case ["images"]:
            return audit_images(parse_options(ImagesOptions, argv[1:], "audit images"))
        case ["compare"]:
            return compare_audits(parse_options(CompareOptions, argv[1:], "audit compare"))
        case ["sequence"]:
            return sequence(argv[1:])
        case _:
            return run_audit(parse_options(Options, argv, "audit"), argv)


def run_audit(options: Options, argv: Sequence[str]) -> int:
    """Audit and report. Return the exit code: 0 pass, 2 incomplete, 3 a gate failed, 4 inconclusive.

    Raises:
        UserError: --workers is out of range or given with --shard, or no edit is given.
    """
    if not 1 <= options.workers <= MAX_WORKERS or (options.workers > 1 and options.shard):
        raise UserError(
            f"--workers must be from 1 to {MAX_WORKERS} on this machine, and cannot be given with --shard; got {options.workers}."
        )
    if options.shard:
        parse_shard(options.shard)
    if not options.edits:
        raise UserError("audit needs the folder of an edit: erasure audit runs/NAME.")
    if options.out:
        check_output_folder(options.out)
    if not options.concept and not split_suite_name(options.suite)[1]:  # with a concept it may be an external erasure on the hub
        check_edits_exist(options.edits)
    from eval.suites.list_reader import load_prompt_list
    from eval.suites.suite import load_suite

    suite_name, concept = split_suite_name(options.suite)
    suite = load_suite(suite_name, options.prompt_list)
    replay_prompts, replay_list = load_prompt_list(options.replay) if options.replay else ((), None)
    from erasure.edits import check_strength  # imports torch
    from eval.auditing.plan import AuditPlan, prompt_list_records
    from eval.auditing.prepare import AuditOptions, prepare_audits
    from eval.auditing.run import generate_and_attack
    from eval.auditing.run import run_audit as run_prepared
    from eval.retrained.divergences import load_retrained

    check_strength(options.strength)
    model, edits = load_model_and_edits(options, external_target_of(suite, concept) if concept else None)
    warn_about_lists(prompt_list_records(suite, replay_list))
    plans = AuditPlan.for_edits(edits, suite, options.tier, replay_prompts, options.only, replay_list)
    has_both_axes = len(plans) > 1
    plans = select_plans(concept, plans) if concept else plans
    audit_options = AuditOptions(
        strength=options.strength,
        other_base=options.other_base,
        keep_images=options.keep_images,
        retrained=load_retrained(model, options.retrained, [target for plan in plans for target in plan.targets]),
    )
    out_folders = [audit_folder_of(options, suite.name, plan.axis if has_both_axes else "", plan.only) for plan in plans]
    prepared_audits = prepare_audits(model, edits, plans, out_folders, audit_options, fresh=options.fresh)  # fails before a lock is there
    if options.shard:
        for prepared in prepared_audits:
            generate_and_attack(prepared, parse_shard(options.shard))
            done = f"shard {options.shard} of {prepared.out} is done"
            print(f"{done}. That is not a verdict: when all are done, run the command without --shard.")
        return 0
    with ExitStack() as stack:
        for prepared in prepared_audits:
            stack.enter_context(lock_folder(prepared.out, "erasure audit"))
            if options.workers > 1 and options.fresh:
                prepared.open_run().begin()  # once, not once per worker
        if options.workers > 1:
            run_shards(argv, options.workers)
        codes = []
        for prepared in prepared_audits:
            result = run_prepared(prepared if options.workers == 1 else replace(prepared, fresh=False))
            for pair in result["edit_overlaps"]:
                print(f"{pair['first']} and {pair['second']} share {pair['shared']} tensors. {pair['warning']}", file=sys.stderr)
            codes.append(write_report(prepared.out, suite.gates, result, options.blur))
    return worst_exit_code(codes)


def split_suite_name(suite: str) -> tuple[str, str]:
    """Split "pocket/neon" into suite and concept. The concept is empty where none is named, and for a YAML file."""
    name, _, concept = suite.partition("/") if not suite.endswith((".yaml", ".yml")) else (suite, "", "")
    return name, concept


def external_target_of(suite: "Suite", concept: str) -> tuple[ConceptKind, str]:
    """Return kind and name of what an external erasure claims to erase, from SUITE/CONCEPT."""
    axis, label = suite.find_concept(concept)
    return (suite.kind, concept) if suite.format == "prompt_list" else (axis, label)


def select_plans(concept: str, plans: Sequence["AuditPlan"]) -> list["AuditPlan"]:
    """Return the plan for one concept among the plans for what the edits erase.

    Raises:
        UserError: The edits do not erase the concept, or not alone: all styles, or all objects, of the edits are counted together.
    """
    suite = plans[0].suite
    matching = [plan for plan in plans if (plan.axis, plan.targets) == (suite.find_concept(concept)[0], (suite.find_concept(concept)[1],))]
    if not matching:
        erased = ", ".join(target for plan in plans for target in plan.targets)
        raise UserError(f"--suite {suite.name}/{concept} selects {concept} alone, but the edits erase {erased}; give --suite {suite.name}.")
    return matching


def parse_shard(text: str) -> tuple[int, int]:
    """Parse "i/n" into (i - 1, n).

    Raises:
        UserError: The text is not i/n with 1 <= i <= n.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f"--shard must be i/n with 1 <= i <= n, such as 1/2; got {text!r}.")
    return int(number) - 1, int(count)


def load_model_and_edits(options: Options, target: tuple[ConceptKind, str] | None = None) -> tuple["DiffusionModel", list["Edit"]]:
    """Load the base model and the edits on it. An external erasure claims to erase `target` if --concept is not given.

    Raises:
        UserError: An external erasure lacks the flags to audit it, or --concept is given for edits that record their concepts.
    """
    from app.commands.erase import plain_warnings
    from erasure.edits import Edit, check_distinct
    from erasure.edits.external.external_edit import is_edit_path, load_external
    from erasure.loading.loader import load_model

    def load_base(source: str) -> "DiffusionModel":
        return load_model(source, device=options.device, dtype=options.dtype, attention=options.attention)

    kind, concept = (options.kind, options.concept) if options.concept or target is None else target
    external_paths = [path for path in options.edits if not is_edit_path(str(path))]
    is_external = options.concept or (target and options.model and options.out)  # otherwise a missing path is a mistyped edit
    if not external_paths or not (is_external or any(path.exists() for path in external_paths)):
        edits = list(check_distinct([Edit.load(path) for path in options.edits]))
        if options.concept:
            raise UserError("--concept is for erasures made elsewhere; this edit records what it erases. Leave it out.")
        return load_base(options.model or edits[0].info.base["source"]), edits
    needed = {"concept": concept, "model": options.model, "out": options.out}
    if missing := [f"--{name}" for name, value in needed.items() if not value]:
        raise UserError(f"{external_paths[0]} was not made by `erasure erase`; to audit it give {', '.join(missing)} as well.")
    model, concepts = load_base(options.model), parse_concepts(concept, kind=kind)
    with plain_warnings():
        edits = [Edit.load(path) if is_edit_path(str(path)) else load_external(model, str(path), concepts) for path in options.edits]
    return model, list(check_distinct(edits))


def write_report(out: Path, gates: Sequence[Gate], result: dict[str, Any], blur: bool = False, gates_from: str = "") -> int:
    """Write the report, print its path, the rates and the verdict, and return the exit code."""
    from eval.report.html import write_report

    print(write_report(out, result, gates, blur=blur, gates_source=gates_from))
    if result["models"]:
        print(format_headline(result))
    report = read_json(out / "report.json")
    for reason in [*report["verdict"]["reasons"], *report["conclusions"][1:]]:
        print(f"  {reason}")
    for part, reason in result["missing"].items():
        print(f"  INCOMPLETE, judge of {part}: {reason}", file=sys.stderr)
    if not report["thresholds"]["from_suite"]:
        source = f"{report['thresholds']['file'] or 'another suite'} (gates {report['thresholds']['digest']})"
        print(f"  decided by the thresholds of {source}, not by those that the audit was made with")
    print(report["verdict"]["state"])
    return exit_code_of(report["verdict"]["state"], result)


def rewrite_report(options: ReportOptions) -> int:
    from eval.scoring.recount import audit_gates, load_finished_audit, recount
    from eval.suites.suite import load_suite

    result = load_finished_audit(options.audit)
    with lock_folder(options.audit, "erasure audit report"):
        if not options.suite:
            return write_report(options.audit, audit_gates(options.audit, result), result, options.blur)
        suite = load_suite(options.suite)
        return write_report(options.audit, suite.gates, recount(options.audit, suite), options.blur, options.suite)


def audit_images(options: ImagesOptions) -> int:
    from eval.external_images import audit_external_images
    from eval.suites.suite import load_suite

    suite = load_suite(options.suite)
    with lock_folder(options.out, "erasure audit images"):
        result = audit_external_images(options.images, suite, options.concept, options.kind, options.out, options.base, options.fresh)
        return write_report(options.out, suite.gates, result, options.blur)


def compare_audits(options: CompareOptions) -> int:
    from eval.comparison import tabulate_comparison

    for line in tabulate_comparison(options.first, options.second):
        print(line)
    return 0


def audit_folder_of(options: Options, suite: str, axis: str, only: str = "") -> Path:
    """Return the audit folder: --out, or below the edit. A stack of edits has its own folder, and so has each axis if both are erased."""
    prompts, replay = (
        f"{label}-{slug_of_list(source)}" if source else "" for label, source in (("of", options.prompt_list), ("replay", options.replay))
    )
    strength = f"strength-{options.strength:g}" if options.strength != 1 else ""
    name = "-".join(part for part in ("audit", suite, options.tier, prompts, strength, f"only-{only}" if only else "", replay) if part)
    first, *others = options.edits
    if options.out:
        return options.out / axis if axis else options.out
    parent = first if not others else first.parent / "+".join(path.name for path in options.edits)
    return parent / (f"{name}-{axis}" if axis else name)


def slug_of_list(address: str) -> str:
    """Return the name of a prompt list for use in a folder name."""
    from eval.suites.list_reader import split_column

    file, column = split_column(address)
    return "-".join(part for part in (Path(file).stem, re.sub(r"[^\w.-]+", "-", column)) if part)


def warn_about_lists(lists: Sequence[Mapping[str, Any]]) -> None:
    """Print what was left out of prompt lists, and their other warnings, before anything is generated."""
    from eval.report.conclusions import describe_left_out

    for list_record in lists:
        for line in (describe_left_out(dict(list_record)), *list_record["warnings"]):
            if line:
                print(f"erasure: warning: {line}", file=sys.stderr)


def format_headline(result: dict[str, Any]) -> str:
    """Format the headline rates in one line, with interval, counts and the base's rate: UA, then the others."""
    erased, base = result["models"]["erased"]["rates"], result["models"].get("base", {"rates": {}})["rates"]
    parts = []
    for name in (n for n in ("UA", "UA_shown", "FR", "IRA", "CRA") if n in erased):
        base_part = f", base {format_percent(base[name]['estimate'])}" if name in base and name != "UA_shown" else ""
        rate = erased[name]
        bounds = format_percent_span(rate["low"], rate["high"])
        parts.append(f"{name} {format_percent(rate['estimate'])} % ({bounds}; {rate['k']}/{rate['n']}{base_part})")
    return ", ".join(parts)
