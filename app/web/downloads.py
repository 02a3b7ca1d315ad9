"""Download the finished edit of a job as one zip file."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import gradio as gr

from app.jobs import queue
from app.web.messages import for_page, page_error
from app.web.studio import Studio
from erasure import export
from erasure.edits import Edit
from erasure.errors import UserError, unknown_value_error
from erasure.export.lora import read_lora_report
from erasure.storage.files import open_atomic
from erasure.storage.locks import lock_folder


def make_download_handler(studio: Studio) -> Callable[[str | None, str], Any]:
    """Return the handler of the download button."""

    def download(job: str | None, format: str) -> Any:
        """Make a zip of a finished job's edit in one of the export formats."""
        try:
            if not job:
                raise UserError("there is no job yet.")
            folder = studio.jobs.folder(job)
            file = make_zip(studio, folder, format)
        except UserError as error:
            raise page_error(error) from None
        if loss_text := describe_loss(folder, format):
            gr.Warning(for_page(loss_text), duration=None)
        return gr.File(str(file), visible=True)

    return download


def describe_loss(job: Path, format: str) -> str:
    """Describe what an exported LoRA loses of its edit; empty where that is within the bound or the format is exact."""
    if format != "lora":
        return ""
    report = read_lora_report(job / "downloads" / format)
    return "" if report.is_faithful else f"This LoRA {report.describe()}. The zip is ready; audit it before you rely on it."


def make_zip(studio: Studio, job: Path, format: str) -> Path:
    """Return the zip of a job's edit in one format. It is made only once.

    Raises:
        UserError: The format is unknown or does not fit this edit, or the job has no finished edit.
    """
    if format not in export.EXPORT_FORMATS:
        raise unknown_value_error("format", format, export.EXPORT_FORMATS)
    folder, spec = job / "edit", queue.spec_of(job)
    if spec is None or not (folder / "result.json").exists():
        raise UserError(f"{job.name} has no finished edit yet.")
    file = job / "downloads" / f"{job.name}-{format}.zip"
    with lock_folder(file.parent, "the studio's download"):
        if zipfile.is_zipfile(file):
            return file
        edit, out = Edit.load(folder), file.parent / format
        shutil.rmtree(out, ignore_errors=True)
        model = studio.models.get(spec.model)
        with studio.sampler.exclusive(model):
            export.export_edit(model.model, edit, format, out)
        with open_atomic(file) as stream:
            write_zip(out, stream)
    return file


def write_zip(folder: Path, file: BinaryIO) -> None:
    """Write the files of a folder into a zip."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(folder))
