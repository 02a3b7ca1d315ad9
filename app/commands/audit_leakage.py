"""`erasure audit leakage EDIT`: guess what an edit erases from what it changes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from app.parsing import ModelSource, check_edits_exist

if TYPE_CHECKING:
    from eval.probes.leakage import LeakageReading


@dataclass(frozen=True, kw_only=True)
class AuditLeakageCommand:
    """Rank the name of what an edit erases among all words, by how far the edit moves each; a random edit of equal norm is the control.

    Whoever has the weights before and after can do the same. No image is made.
    """

    words: ClassVar[str] = "audit leakage"

    edit: Annotated[Path, tyro.conf.Positional]  # edit made by `erasure erase`
    word_list: Path | None = None  # file of words to rank among, one a line; default: the model's vocabulary
    seed: int = 0  # of the noise and of the control
    model: ModelSource = ""  # base model; default: the one the edit was made on
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    out: Path | None = None  # JSON file to write as well


def run_leakage(command: AuditLeakageCommand) -> int:
    """Print the ranks.

    Raises:
        UserError: the edit, its base or the list of words cannot be used.
    """
    check_edits_exist([command.edit])
    import erasure
    from erasure.config.seeds import check_seed
    from erasure.storage.files import write_json
    from eval.probes.leakage import measure_leakage, read_word_file
    from eval.records.convert import to_record

    words = read_word_file(command.word_list) if command.word_list else ()
    edit = erasure.Edit.load(command.edit)
    model = erasure.load_model(command.model or edit.info.base["source"], device=command.device)
    readings = measure_leakage(model, edit, words, check_seed(command.seed))
    print("\n".join(format_readings(readings)))
    if command.out:
        write_json(command.out, [to_record(reading) for reading in readings])
        print(command.out)
    return 0


def format_readings(readings: "tuple[LeakageReading, ...]") -> list[str]:
    """Format the ranks as a Markdown table; by chance a name stands in the middle."""
    lines = ["| edit | read from | concept | rank | words | moved most |", "|---|---|---|---|---|---|"]
    for reading in readings:
        for rank in reading.ranks:
            top = ", ".join(reading.top[:5])
            lines.append(f"| {reading.edit} | {reading.reading} | {rank.concept} | {rank.rank} | {reading.words} | {top} |")
    return lines
