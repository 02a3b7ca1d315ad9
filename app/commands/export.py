"""`erasure export EDIT`: write a LoRA file, an erased diffusers folder or a text encoder."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from app.cli import INCOMPLETE
from app.parsing import check_edits_exist, parse_options
from erasure.config.choices import LoraLayout
from erasure.errors import UserError
from erasure.storage.locks import LOCK_FILE
from erasure.storage.run import check_output_folder

if TYPE_CHECKING:
    from erasure.edits import Edit

FORMAT_HELP = (
    "lora: for ComfyUI, A1111, kohya, stable-diffusion.cpp and diffusers; checkpoint: the whole erased model as one file for the same; "
    "folder: the whole model for diffusers; text-encoder: the text encoder alone; edit: the edit as it is"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Export an edit for other programs, with a model card and before/after images."""

    edit: Annotated[Path, tyro.conf.Positional]  # folder that `erasure erase` made
    format: Annotated[Literal["folder", "checkpoint", "lora", "text-encoder", "edit"], tyro.conf.arg(help=FORMAT_HELP)] = "lora"
    out: Path | None = None  # default <edit>/<format>
    rank: int | None = None  # of the LoRA; default: the edit's own where it is low-rank (UCE), else 16
    layout: LoraLayout | None = None  # names in the LoRA: kohya (default, read by all) or diffusers (read by diffusers and PEFT only)
    accept_error: bool = False  # exit with 0 even if the LoRA loses more of the edit than the bound in docs/results/exports.md
    model: str = ""  # base model; default: the one the edit was made on
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    other_base: bool = False  # export onto a model the edit was not made on
    push_to_hub: str = ""  # also upload the folder to this repository of the Hugging Face Hub, org/name
    private: bool = False  # make that repository private if it is new
    dry_run: bool = False  # with --push-to-hub: show what would be uploaded, and upload nothing


def main(argv: list[str]) -> int:
    options = parse_options(Options, argv, "export")
    if options.out:
        check_output_folder(options.out)
    check_edits_exist([options.edit])
    check_flags(options)
    from erasure import export
    from erasure.edits import Edit
    from erasure.export import hub
    from erasure.loading.loader import load_model
    from erasure.storage.locks import lock_folder

    if options.push_to_hub:
        hub.check_repo_name(options.push_to_hub)
    edit = Edit.load(options.edit)
    out = options.out or options.edit / options.format
    model = load_model(options.model or edit.info.base["source"], device=options.device)
    with lock_folder(out, "erasure export"):
        if options.accept_error:
            remove_lora(out, edit)
        report = export.export_edit(
            model, edit, options.format, out, rank=options.rank, other_base=options.other_base, layout=options.layout or "kohya"
        )
    print(out)
    if report is not None:
        for note in report.notes:
            print(note)
        if not report.is_faithful and not options.accept_error:
            suffix = " Nothing was sent." if options.push_to_hub else ""
            print(f"erasure: the LoRA {report.describe()}; --accept-error takes it as it is.{suffix}", file=sys.stderr)
            return INCOMPLETE
        print(f"the LoRA {report.describe()}")
    if options.push_to_hub and options.dry_run:
        print(f"would send to https://huggingface.co/{options.push_to_hub}{' (private)' if options.private else ''}:")
        for name, size in hub.list_uploads(out):
            print(f"{size:>12,}  {name}")
    elif options.push_to_hub:
        print(hub.push_to_hub(out, options.push_to_hub, options.private))
    return 0


def is_lora_folder(folder: Path) -> bool:
    """Return whether a folder holds only files with the names that a LoRA export writes."""
    from erasure.export.lora_file import LORA_FILE

    names = {path.name for path in folder.iterdir() if not path.name.startswith(LOCK_FILE)}
    return LORA_FILE in names and all(
        name in (LORA_FILE, "README.md") or (name.startswith("before-after-") and name.endswith(".png")) for name in names
    )


def remove_lora(folder: Path, edit: "Edit") -> None:
    """Remove the LoRA that an earlier run of the command wrote, because its error is accepted now.

    Raises:
        UserError: The LoRA there is not of this edit.
    """
    from safetensors import SafetensorError, safe_open

    from erasure.export.lora_file import LORA_FILE, short_name_of

    if not (folder / LORA_FILE).is_file():
        return
    try:
        with safe_open(folder / LORA_FILE, "pt") as file:
            is_same_edit = (file.metadata() or {}).get("ss_output_name") == short_name_of(edit)
    except (OSError, SafetensorError):
        is_same_edit = False
    if not is_same_edit:
        raise UserError(f"{folder} holds a LoRA of something else; choose another --out.")
    for path in folder.iterdir():
        if not path.name.startswith(LOCK_FILE):
            path.unlink()


def check_flags(options: Options) -> None:
    """Check flags before anything is loaded.

    Raises:
        UserError: LoRA flags are given with another format, the rank is below 1, the folder is not empty, or --push-to-hub is missing.
    """
    lora_flags = {"--rank": options.rank is not None, "--layout": options.layout is not None, "--accept-error": options.accept_error}
    if options.format != "lora" and any(lora_flags.values()):
        names = ", ".join(name for name, is_given in lora_flags.items() if is_given)
        raise UserError(f"{names}: only --format lora takes this; --format {options.format} is exact.")
    if options.rank is not None and options.rank < 1:
        raise UserError(f"--rank must be at least 1, got {options.rank}.")
    out = options.out or options.edit / options.format
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (options.accept_error and is_lora_folder(out))):
        raise UserError(f"{out} exists and is not empty; choose another --out.")
    for flag, is_given in {"--private": options.private, "--dry-run": options.dry_run}.items():
        if is_given and not options.push_to_hub:
            raise UserError(f"{flag} needs --push-to-hub org/name.")
