"""Export an edit as an erased diffusers folder, or as an edit folder."""

from pathlib import Path

from erasure.edits import Edit, apply_edits
from erasure.errors import UserError
from erasure.export.transformers_compat import make_shareable, rename_text_encoder_keys, write_vocabulary_files
from erasure.families.base import DiffusionModel
from erasure.storage.edit_folders import check_unoccupied
from erasure.training.one_step import OneStepPipeline


def to_folder(model: DiffusionModel, edit: Edit, out: Path, other_base: bool = False) -> None:
    """Save the edited pipeline as a diffusers folder; `model` is not changed. A one-step generator becomes a OneStepPipeline.

    The safety checker is off in it, as in every measurement here; the model card says so.

    Raises:
        UserError: a guidance edit, or a folder that is not empty.
    """
    if edit.info.product == "guidance":
        raise UserError(f"{edit.name} is a guidance edit: a plain pipeline folder cannot hold how it samples. Use the edit itself.")
    ensure_empty_folder(out)
    with apply_edits(model, [edit], other_base):
        pipe = model.pipe
        if edit.info.product == "one-step":
            pipe = OneStepPipeline(**pipe.components, requires_safety_checker=False, init_timestep=edit.info.fields["init_timestep"])
        pipe.save_pretrained(out, safe_serialization=True)
        rename_text_encoder_keys(out / "text_encoder")
        write_vocabulary_files(pipe.tokenizer, out / "tokenizer")
        make_shareable(out)


def to_edit(edit: Edit, out: Path) -> None:
    """Save the edit as an edit folder, without the log and the job of its run."""
    ensure_empty_folder(out)
    edit.save(out)


def ensure_empty_folder(out: Path) -> None:
    """Make a folder, if it does not exist.

    Raises:
        UserError: a file, or a folder that is not empty.
    """
    check_unoccupied(out)
    out.mkdir(parents=True, exist_ok=True)
