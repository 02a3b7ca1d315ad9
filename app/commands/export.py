"""`erasure export EDIT`: write a LoRA file, an erased diffusers folder or a text encoder."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from app.parsing import ModelSource, Switch, check_edits_exist
from erasure.config.choices import LoraLayout
from erasure.errors import UserError
from erasure.storage.edit_folders import check_unoccupied

if TYPE_CHECKING:
    from erasure import Edit
    from erasure.export.lora import LoraReport

EXIT_INCOMPLETE = 2
FORMAT_HELP = (
    "lora: for ComfyUI, A1111, kohya, stable-diffusion.cpp and diffusers; checkpoint: the whole erased model as one file for the same, of "
    "Stable Diffusion and SDXL; folder: the whole model for diffusers; text-encoder: the text encoder alone; edit: the edit as it is"
)


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Export an edit for other programs, with a model card and before/after images."""

    words: ClassVar[str] = "export"

    edit: Annotated[Path, tyro.conf.Positional]  # folder that `erasure erase` made
    format: Annotated[Literal["folder", "checkpoint", "lora", "text-encoder", "edit"], tyro.conf.arg(help=FORMAT_HELP)] = "lora"
    out: Path | None = None  # default <edit>/<format>
    rank: int | None = None  # of the LoRA; default: the edit's own where it is low-rank (UCE), else 16
    layout: LoraLayout | None = None  # names in the LoRA, kohya or diffusers; default: what diffusers and ComfyUI read of this family
    accept_error: Switch = False  # exit with 0 even if the LoRA loses more of the edit than the bound in docs/results/exports.md
    model: ModelSource = ""  # base model; default: the one the edit was made on
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    other_base: Switch = False  # export onto a model the edit was not made on
    push_to_hub: str = ""  # also upload the folder to this repository of the Hugging Face Hub, org/name
    private: Switch = False  # make that repository private if it is new
    dry_run: Switch = False  # with --push-to-hub: show what would be uploaded, and upload nothing

    def folder(self) -> Path:
        """Return the folder to write."""
        return self.out or self.edit / self.format


def run_export(command: ExportCommand) -> int:
    """Export, and upload if that is asked for. Return 2 if a LoRA loses too much of the edit.

    Raises:
        UserError: The flags, the edit, the base or the folder cannot be used.
    """
    from erasure.storage.run import check_output_folder

    if command.out:
        check_output_folder(command.out)
    check_edits_exist([command.edit])
    check_flags(command)
    import erasure
    from erasure.export.hub import check_repo_name
    from erasure.storage.locks import lock_folder

    if command.push_to_hub:
        check_repo_name(command.push_to_hub)
    edit, out = erasure.Edit.load(command.edit), command.folder()
    base = edit.info.base
    model = erasure.load_model(command.model or base["source"], device=command.device, resolution=base.get("resolution"))
    with lock_folder(out, "erasure export"):
        if replaces_lora(command):
            remove_lora(out, edit)
        report = erasure.export_edit(
            model, edit, command.format, out, rank=command.rank, other_base=command.other_base, layout=command.layout
        )
    print(out)
    if report is not None and not accept_report(command, report):
        return EXIT_INCOMPLETE
    if command.push_to_hub:
        upload(command, out)
    return 0


def accept_report(command: ExportCommand, report: "LoraReport") -> bool:
    """Print what a LoRA holds of the edit, and return whether that is accepted."""
    for note in report.notes:
        print(note)
    if not report.is_faithful and not command.accept_error:
        suffix = " Nothing was sent." if command.push_to_hub else ""
        print(f"erasure: the LoRA {report.describe()}; --accept-error takes it as it is.{suffix}", file=sys.stderr)
        return False
    print(f"the LoRA {report.describe()}")
    return True


def upload(command: ExportCommand, out: Path) -> None:
    """Send a folder to the hub and print its address; with --dry-run only print what would be sent."""
    from erasure.export import hub

    if not command.dry_run:
        print(hub.push_to_hub(out, command.push_to_hub, command.private))
        return
    print(f"would send to https://huggingface.co/{command.push_to_hub}{' (private)' if command.private else ''}:")
    for name, size in hub.list_uploads(out):
        print(f"{size:>12,}  {name}")


def is_lora_folder(folder: Path) -> bool:
    """Return whether a folder holds only files with the names that a LoRA export writes."""
    from erasure.export.lora_file import LORA_FILE
    from erasure.storage.locks import LOCK_FILE

    names = {path.name for path in folder.iterdir() if not path.name.startswith(LOCK_FILE)}
    return LORA_FILE in names and all(
        name in (LORA_FILE, "README.md") or (name.startswith("before-after-") and name.endswith(".png")) for name in names
    )


def replaces_lora(command: ExportCommand) -> bool:
    """Return whether an export may take the folder of an earlier LoRA: where that one lost too much, or its error is accepted now."""
    out = command.folder()
    return command.format == "lora" and out.is_dir() and is_lora_folder(out) and (command.accept_error or lost_too_much(out))


def lost_too_much(folder: Path) -> bool:
    """Return whether the card of a LoRA says that its error is above the bound."""
    from erasure.export.lora import MAX_ERROR

    card = folder / "README.md"
    return card.is_file() and f"more than {MAX_ERROR}" in card.read_text(encoding="utf-8", errors="replace").replace("\\", "")


def remove_lora(folder: Path, edit: "Edit") -> None:
    """Remove the LoRA that an earlier run of the command wrote.

    Raises:
        UserError: The LoRA there is not of this edit.
    """
    from safetensors import SafetensorError, safe_open

    from erasure.export.lora_file import LORA_FILE, short_name_of
    from erasure.storage.locks import LOCK_FILE

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


def check_flags(command: ExportCommand) -> None:
    """Check flags before anything is loaded.

    Raises:
        UserError: LoRA flags are given with another format, the rank is below 1, the folder is not empty, or --push-to-hub is missing.
    """
    lora_flags = {"--rank": command.rank is not None, "--layout": command.layout is not None, "--accept-error": command.accept_error}
    if command.format != "lora" and any(lora_flags.values()):
        names = ", ".join(name for name, is_given in lora_flags.items() if is_given)
        raise UserError(f"{names}: only --format lora takes this; --format {command.format} is exact.")
    if command.rank is not None and command.rank < 1:
        raise UserError(f"--rank must be at least 1, got {command.rank}.")
    out = command.folder()
    if not replaces_lora(command):
        check_unoccupied(out)
    for flag, is_given in {"--private": command.private, "--dry-run": command.dry_run}.items():
        if is_given and not command.push_to_hub:
            raise UserError(f"{flag} needs --push-to-hub org/name.")
