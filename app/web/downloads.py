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
from erasure.errors import UserError, unknown
from erasure.export.lora import read_report
from erasure.storage.files import replacing
from erasure.storage.locks import held


def prepare(studio: Studio) -> Callable[[str | None, str], Any]:
    """The handler of the download button."""

    def download(job: str | None, form: str) -> Any:
        """A zip of a finished job's edit, as an edit, a LoRA, a text encoder or a whole diffusers folder."""
        try:
            if not job:
                raise UserError("there is no job yet.")
            folder = studio.job(job)
            file = packed(studio, folder, form)
        except UserError as error:
            raise gr.Error(str(error), duration=12) from None
        if lost := loss(folder, form):
            gr.Warning(lost, duration=None)
        return gr.File(str(file), visible=True)

    return download


def loss(job: Path, form: str) -> str:
    """What a LoRA that was packed loses of its edit, "" where that is within the bound or the form is exact."""
    if form != "lora":
        return ""
    report = read_report(job / "downloads" / form)
    return "" if report.faithful else f"This LoRA {report.sentence()}. The zip is ready; audit it before you rely on it."


def packed(studio: Studio, job: Path, form: str) -> Path:
    """The zip of one form, made once.

    Raises:
        UserError: an unknown form, a job without a finished edit, a form that this edit cannot take.
    """
    if form not in export.FORMS:
        raise unknown("form", form, export.FORMS)
    folder = job / "edit"
    if not (folder / "result.json").exists():
        raise UserError(f"{job.name} has no finished edit yet.")
    file = job / "downloads" / f"{job.name}-{form}.zip"
    with held(file.parent, "the studio's download"):
        if zipfile.is_zipfile(file):
            return file
        edit, out = Edit.load(folder), file.parent / form
        shutil.rmtree(out, ignore_errors=True)
        with studio.exclusive():
            export.to_form(studio.model, edit, out, form)
        with replacing(file) as whole:
            pack(out, whole)
    return file


def pack(folder: Path, file: BinaryIO) -> None:
    """A zip of what a folder holds."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(folder))
