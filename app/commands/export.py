"""`erasure export EDIT`: an erased diffusers folder or a LoRA file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from app.parsing import existing, parse
from erasure.run import usable


@dataclass(frozen=True, kw_only=True)
class Options:
    """Turn an edit into something other programs load, with a model card and before/after pictures."""

    edit: Annotated[Path, tyro.conf.Positional]  # folder that `erasure erase` made
    form: Annotated[Literal["folder", "lora", "text-encoder", "edit"], tyro.conf.arg(name="as")] = (
        "lora"  # lora: for load_lora_weights; folder: a whole pipeline; text-encoder: that alone; edit: as it is
    )
    out: Path | None = None  # default <edit>/<form>
    rank: int = 16  # of the LoRA; the error of the approximation is printed
    model: str = ""  # base model; default: the one the edit was made on
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    other_base: bool = False  # export onto a model the edit was not made on
    push_to_hub: str = ""  # also send the folder to this repository of the Hugging Face Hub, org/name
    private: bool = False  # make that repository private if it is new
    dry_run: bool = False  # with --push-to-hub: show what would be sent, and send nothing


def main(argv: list[str]) -> int:
    options = parse(Options, argv, "export")
    if options.out:
        usable(options.out)
    existing([options.edit])
    from erasure import export
    from erasure.edit import Edit
    from erasure.export import hub
    from erasure.loading import load_model

    if options.push_to_hub:
        hub.checked(options.push_to_hub)
    edit = Edit.load(options.edit)
    model = load_model(options.model or edit.info.base["source"], device=options.device)
    out = options.out or options.edit / options.form
    error = export.to_form(model, edit, out, options.form, options.rank, options.other_base)
    if error is not None:
        print(f"rank {options.rank} keeps all but {100 * error:.1f} % of the edit (relative Frobenius error)")
    print(out)
    if options.push_to_hub and options.dry_run:
        print(f"would send to https://huggingface.co/{options.push_to_hub}{' (private)' if options.private else ''}:")
        for name, size in hub.contents(out):
            print(f"{size:>12,}  {name}")
    elif options.push_to_hub:
        print(hub.push(out, options.push_to_hub, options.private))
    return 0
