"""The finished edit of a job as one file to take away."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import gradio as gr

from app.web.studio import Studio
from erasure import export
from erasure.edits import Edit
from erasure.errors import UserError, unknown_value_error
from erasure.export.lora import read_lora_report
from erasure.storage.files import open_atomic
from erasure.storage.locks import lock_folder


def make_download_handler(studio: Studio) -> Callable[[str | None, str], Any]:
    """The handler of the download button."""

    def download(job: str | None, format: str) -> Any:
        """A zip of a finished job's edit, as an edit, a LoRA, a text encoder or a whole diffusers folder."""
        try:
            if not job:
                raise UserError("there is no job yet.")
            folder = studio.job_folder(job)
            file = make_zip(studio, folder, format)
        except UserError as error:
            raise gr.Error(str(error), duration=12) from None
        if loss_text := describe_loss(folder, format):
            gr.Warning(loss_text, duration=None)
        return gr.File(str(file), visible=True)

    return download


def describe_loss(job: Path, format: str) -> str:
    """What a LoRA that was packed loses of its edit, "" where that is within the bound or the form is exact."""
    if format != "lora":
        return ""
    report = read_lora_report(job / "downloads" / format)
    return "" if report.is_faithful else f"This LoRA {report.describe()}. The zip is ready; audit it before you rely on it."


def make_zip(studio: Studio, job: Path, format: str) -> Path:
    """The zip of one form, made once.

    Raises:
        UserError: an unknown form, a job without a finished edit, a form that this edit cannot take.
    """
    if format not in export.EXPORT_FORMATS:
        raise unknown_value_error("form", format, export.EXPORT_FORMATS)
    folder = job / "edit"
    if not (folder / "result.json").exists():
        raise UserError(f"{job.name} has no finished edit yet.")
    file = job / "downloads" / f"{job.name}-{format}.zip"
    with lock_folder(file.parent, "the studio's download"):
        if zipfile.is_zipfile(file):
            return file
        edit, out = Edit.load(folder), file.parent / format
        shutil.rmtree(out, ignore_errors=True)
        with studio.exclusive():
            export.export_edit(studio.model, edit, out, format)
        with open_atomic(file) as stream:
            write_zip(out, stream)
    return file


def write_zip(folder: Path, file: BinaryIO) -> None:
    """A zip of what a folder holds."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(folder))
