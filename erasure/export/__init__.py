"""An edit for other programs: a folder or one checkpoint that is already erased, a LoRA file, a text encoder, each with a model card."""

from pathlib import Path

from erasure.edit import Edit
from erasure.errors import unknown
from erasure.export.checkpoint import to_checkpoint
from erasure.export.folder import to_edit, to_folder
from erasure.export.lora import to_lora
from erasure.export.model_card import before_after, write_card
from erasure.export.text_encoder import to_text_encoder
from erasure.families.base import DiffusionModel

FORMS = ("edit", "lora", "text-encoder", "folder", "checkpoint")


def to_form(model: DiffusionModel, edit: Edit, out: Path, form: str, rank: int = 16, other_base: bool = False) -> float | None:
    """Save an edit in one of the forms, with its card.

    Returns:
        The relative error of a LoRA (`to_lora`), None for the exact forms.

    Raises:
        UserError: an unknown form, or one that this edit cannot take.
    """
    error = None
    match form:
        case "edit":
            to_edit(edit, out)
        case "lora":
            error = to_lora(model, edit, out, rank, other_base)
        case "text-encoder":
            to_text_encoder(model, edit, out, other_base)
        case "folder":
            to_folder(model, edit, out, other_base)
        case "checkpoint":
            to_checkpoint(model, edit, out, other_base)
        case _:
            raise unknown("form", form, FORMS)
    write_card(out, edit, before_after(model, edit, other_base=other_base), form, error)
    return error
