"""Export an edit of the text encoder as the text encoder alone."""

from pathlib import Path

from erasure.edits import Edit, apply_edits
from erasure.errors import UserError
from erasure.export.folder import ensure_empty_folder
from erasure.export.transformers_compat import make_shareable, rename_text_encoder_keys
from erasure.families.base import DiffusionModel


def to_text_encoder(model: DiffusionModel, edit: Edit, out: Path, other_base: bool = False) -> None:
    """Save the edited text encoder alone, for `from_pretrained(base, text_encoder=CLIPTextModel.from_pretrained(out))`.

    Raises:
        UserError: an edit that does not change the text encoder, or that changes more; a folder that is not empty.
    """
    if not edit.moved_parameters() or not all(name.startswith("text_encoder.") for name in edit.moved_parameters()):
        raise UserError(f"{edit.name} does not live in the text encoder alone; export a diffusers folder with --format folder.")
    ensure_empty_folder(out)
    with apply_edits(model, [edit], other_base):
        model.pipe.text_encoder.save_pretrained(out, safe_serialization=True)
        rename_text_encoder_keys(out)
        make_shareable(out)
