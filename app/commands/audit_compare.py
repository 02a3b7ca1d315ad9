"""`erasure audit compare A B`: compare two finished audits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro


@dataclass(frozen=True, kw_only=True)
class AuditCompareCommand:
    """Compare two finished audits of the same suite, image by image from the same noise."""

    words: ClassVar[str] = "audit compare"

    first: Annotated[Path, tyro.conf.Positional]  # folder of an audit
    second: Annotated[Path, tyro.conf.Positional]  # folder of another


def compare_audits(command: AuditCompareCommand) -> int:
    """Print the comparison as a table.

    Raises:
        UserError: As `tabulate_comparison`.
    """
    from eval.comparison import tabulate_comparison

    for line in tabulate_comparison(command.first, command.second):
        print(line)
    return 0
