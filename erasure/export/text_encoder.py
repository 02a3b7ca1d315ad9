"""Export an edit of the text encoder as the text encoder alone."""

from pathlib import Path

from erasure.edits import Edit, apply_edits
from erasure.errors import UserError
from erasure.export.folder import ensure_empty_folder
from erasure.export.transformers_compat import make_shareable, rename_text_encoder_keys
from erasure.families.base import DiffusionModel


def to_text_encoder(model: DiffusionModel, edit: Edit, out: Path, other_base: bool = False) -> None:
    """Save the edited text encoder alone, for `from_pretrained(base, text_encoder=CLIPTextModel.from_pretrained(out))`.

    Of families with two of them, each that is edited has its own folder in `out`, named as in the pipeline.

    Raises:
        UserError: an edit that does not change a text encoder, or that changes more; a folder that is not empty.
    """
    parts = sorted({name.partition(".")[0] for name in edit.moved_parameters()})
    if not parts or not all(part.startswith("text_encoder") for part in parts):
        raise UserError(f"{edit.name} does not live in the text encoder alone; export a diffusers folder with --format folder.")
    ensure_empty_folder(out)
    with apply_edits(model, [edit], other_base):
        for part in parts:
            folder, text_encoder = out if len(model.networks) == 2 else out / part, getattr(model.pipe, part)
            text_encoder.save_pretrained(folder, safe_serialization=True)
            if type(text_encoder).__name__ == "CLIPTextModel":
                rename_text_encoder_keys(folder)
        make_shareable(out)
