"""`erasure export EDIT`: an erased diffusers folder or a LoRA file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from app.parsing import parse


@dataclass(frozen=True, kw_only=True)
class Options:
    """Turn an edit into something other programs load, with a model card and before/after pictures."""

    edit: Annotated[Path, tyro.conf.Positional]  # folder that `erasure erase` made
    form: Annotated[Literal["folder", "lora", "text-encoder"], tyro.conf.arg(name="as")] = (
        "lora"  # lora: for load_lora_weights; folder: a whole pipeline; text-encoder: that alone
    )
    out: Path | None = None  # default <edit>/<form>
    rank: int = 16  # of the LoRA; the error of the approximation is printed
    model: str = ""  # base model; default: the one the edit was made on
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    other_base: bool = False  # export onto a model the edit was not made on


def main(argv: list[str]) -> int:
    options = parse(Options, argv, "export")
    from erasure import export
    from erasure.edit import Edit
    from erasure.loading import load_model

    edit = Edit.load(options.edit)
    model = load_model(options.model or edit.info.base["source"], device=options.device)
    out = options.out or options.edit / options.form
    error = None
    if options.form == "lora":
        error = export.to_lora(model, edit, out, options.rank, options.other_base)
        print(f"rank {options.rank} keeps all but {100 * error:.1f} % of the edit (relative Frobenius error)")
    elif options.form == "text-encoder":
        export.to_text_encoder(model, edit, out, options.other_base)
    else:
        export.to_folder(model, edit, out, options.other_base)
    export.write_card(out, edit, export.before_after(model, edit, other_base=options.other_base), options.form, error)
    print(out)
    return 0
