"""Export edits for other programs: as an erased folder or checkpoint, a LoRA file or a text encoder, each with a model card."""

import stat
from pathlib import Path

from erasure.config.arguments import check_arguments
from erasure.config.choices import LoraLayout
from erasure.edits import EditSource, load_edits
from erasure.errors import unknown_value_error
from erasure.export.checkpoint import to_checkpoint
from erasure.export.folder import ensure_empty_folder, to_edit, to_folder
from erasure.export.lora import LoraReport, to_lora
from erasure.export.lora_names import default_layout
from erasure.export.model_card import sample_before_after, write_card
from erasure.export.text_encoder import to_text_encoder
from erasure.loading.loader import ModelOrSource, resolve_model
from erasure.storage.files import open_draft_folder
from erasure.storage.run import check_output_folder

EXPORT_FORMATS = ("edit", "lora", "text-encoder", "folder", "checkpoint")


@check_arguments
def export_edit(
    model: ModelOrSource,
    edit: EditSource,
    format: str,
    out: str | Path,
    *,
    rank: int | None = None,
    other_base: bool = False,
    layout: LoraLayout | None = None,
) -> LoraReport | None:
    """Save an edit in one of `EXPORT_FORMATS`, with its model card: completely, or not at all.

    Args:
        model: the base, without edits: what `load_model` returns, or the source from which it is loaded.
        edit: an edit, or the path of its folder.
        out: the folder to write, new or empty.
        rank, layout: only for a LoRA (`to_lora`).
        other_base: export onto a model the edit was not made on.

    Returns:
        What a LoRA holds of the edit; None for the exact formats.

    Raises:
        UserError: a value of the wrong type, an unknown format, or one that cannot hold this edit; a folder that is not empty or cannot
            be written.
    """
    if format not in EXPORT_FORMATS:
        raise unknown_value_error("format", format, EXPORT_FORMATS)
    (edit,), out = load_edits(edit), check_output_folder(Path(out))
    ensure_empty_folder(out)
    model = resolve_model(model)
    layout = layout or default_layout(model.family)
    with open_draft_folder(out) as draft:
        report = None
        match format:
            case "edit":
                to_edit(edit, draft)
            case "lora":
                report = to_lora(model, edit, draft, rank, layout, other_base)
            case "text-encoder":
                to_text_encoder(model, edit, draft, other_base)
            case "folder":
                to_folder(model, edit, draft, other_base)
            case "checkpoint":
                to_checkpoint(model, edit, draft, other_base)
        write_card(draft, edit, sample_before_after(model, edit, other_base=other_base), format, report, layout)
        copy_card_mode(draft)
    return report


def copy_card_mode(out: Path) -> None:
    """Give every file the mode of the model card, which follows the user's umask; safetensors writes files that only the owner can read."""
    mode = stat.S_IMODE((out / "README.md").stat().st_mode)
    for path in out.rglob("*"):
        if path.is_file():
            path.chmod(mode)
