"""An edit as a diffusers folder that is already erased, or as it is."""

from pathlib import Path

from erasure.edits import Edit, apply_edits
from erasure.errors import UserError
from erasure.export.transformers_compat import make_shareable, rename_text_encoder_keys, write_vocabulary_files
from erasure.families.base import DiffusionModel
from erasure.storage.files import is_empty
from erasure.training.one_step import OneStepPipeline


def to_folder(model: DiffusionModel, edit: Edit, out: Path, other_base: bool = False) -> None:
    """Save the edited pipeline as a diffusers folder; `model` is left as it was. A one-step generator becomes a OneStepPipeline.

    The safety checker is off in it, as in every measurement here; the card says so.
    """
    if edit.info.product == "guidance":
        raise UserError(f"{edit.name} is a guidance edit: a plain pipeline folder cannot hold how it samples. Keep the edit.")
    ensure_empty_folder(out)
    with apply_edits(model, [edit], other_base):
        pipe = model.pipe
        if edit.info.product == "one-step":
            pipe = OneStepPipeline(**pipe.components, requires_safety_checker=False, init_timestep=edit.info.fields["start"])
        pipe.save_pretrained(out, safe_serialization=True)
        rename_text_encoder_keys(out / "text_encoder")
        write_vocabulary_files(pipe.tokenizer, out / "tokenizer")
        make_shareable(out)


def to_edit(edit: Edit, out: Path) -> None:
    """Save the edit as it is, without the log and the job of its run."""
    ensure_empty_folder(out)
    edit.save(out)


def ensure_empty_folder(out: Path) -> None:
    if out.is_file() or (out.is_dir() and not is_empty(out)):
        raise UserError(f"{out} exists and is not empty; choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
