"""An edit for other programs: a diffusers folder that is already erased, a LoRA file, a text encoder, each with a model card."""

from pathlib import Path

from erasure.edit import Edit
from erasure.errors import unknown
from erasure.export.folder import make_empty, to_edit, to_folder
from erasure.export.lora import to_lora
from erasure.export.model_card import before_after, write_card
from erasure.export.text_encoder import to_text_encoder
from erasure.families.base import DiffusionModel
from erasure.files import filling

FORMS = ("edit", "lora", "text-encoder", "folder")


def to_form(model: DiffusionModel, edit: Edit, out: Path, form: str, rank: int = 16, other_base: bool = False) -> float | None:
    """Save an edit in one of the forms, with its card.

    Returns:
        The relative error of a LoRA (`to_lora`), None for the exact forms.

    Raises:
        UserError: an unknown form, or one that this edit cannot take.
    """
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    make_empty(out)
    with filling(out) as draft:
        return _written(model, edit, draft, form, rank, other_base)


def _written(model: DiffusionModel, edit: Edit, out: Path, form: str, rank: int, other_base: bool) -> float | None:
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
    write_card(out, edit, before_after(model, edit, other_base=other_base), form, error)
    return error
