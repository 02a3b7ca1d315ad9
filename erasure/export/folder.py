"""Export an edit as an erased diffusers folder, or as an edit folder."""

from pathlib import Path

from transformers import CLIPTokenizer

from erasure.edits import Edit, apply_edits
from erasure.errors import UserError
from erasure.export.transformers_compat import make_shareable, rename_text_encoder_keys, write_vocabulary_files
from erasure.families.base import DiffusionModel
from erasure.families.stable_diffusion_3 import StableDiffusion3
from erasure.pocket.null_t5 import with_null_t5
from erasure.storage.edit_folders import check_unoccupied
from erasure.training.one_step import OneStepPipeline


def to_folder(model: DiffusionModel, edit: Edit, out: Path, other_base: bool = False) -> None:
    """Save the edited pipeline as a diffusers folder; `model` is not changed. A one-step generator becomes a OneStepPipeline.

    SD3 without T5 gets a T5 that gives zeros, so that a plain `from_pretrained` loads the folder.

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
        if isinstance(model, StableDiffusion3) and pipe.text_encoder_3 is None:
            pipe = with_null_t5(pipe)
        pipe.save_pretrained(out, safe_serialization=True)
        for part, component in pipe.components.items():
            if type(component).__name__ == "CLIPTextModel":
                rename_text_encoder_keys(out / part)
            elif isinstance(component, CLIPTokenizer):
                write_vocabulary_files(component, out / part)
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
