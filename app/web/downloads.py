"""The finished edit of a job as one file to take away."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import gradio as gr

from app.web.studio import Studio
from erasure import export
from erasure.edit import Edit
from erasure.errors import UserError, unknown
from erasure.files import replacing
from erasure.locks import held


def prepare(studio: Studio) -> Callable[[str | None, str], Any]:
    """The handler of the download button."""

    def download(job: str | None, form: str) -> Any:
        """A zip of a finished job's edit, as an edit, a LoRA, a text encoder or a whole diffusers folder."""
        try:
            if not job:
                raise UserError("there is no job yet.")
            return gr.File(str(packed(studio, studio.job(job), form)), visible=True)
        except UserError as error:
            raise gr.Error(str(error), duration=12) from None

    return download


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
        with studio.lock:
            export.to_form(studio.model, edit, out, form)
        with replacing(file) as whole:
            pack(out, whole)
        shutil.rmtree(out)  # only the zip is taken away
    return file


def pack(folder: Path, file: BinaryIO) -> None:
    """A zip of what a folder holds."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(folder))
