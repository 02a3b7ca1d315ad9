"""`erasure audit images DIR`: audit images that another tool generated."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from app.commands.audit_report import write_and_print_report
from app.parsing import Switch
from erasure.concept import ConceptKind


@dataclass(frozen=True, kw_only=True)
class AuditImagesCommand:
    """Audit images that another tool generated, named {style}_{object}_seed{seed}.jpg or .png, with a suite's judges, and report."""

    words: ClassVar[str] = "audit images"

    images: Annotated[Path, tyro.conf.Positional]  # folder of the erased model's images
    concept: str  # what the model claims to have erased: a label of the suite
    out: Path  # audit folder
    kind: ConceptKind = "style"  # of that concept: style, object, person, nsfw
    base: Path | None = None  # folder of the base's images with the same names; without it no drop is measured
    suite: str = "unlearncanvas"  # name of a suite with a grid, or a YAML file
    fresh: Switch = False  # delete what an audit wrote in the folder, and start over; other files stay
    blur: Switch = False  # blur the report's images until the reader reveals them


def audit_images(command: AuditImagesCommand) -> int:
    """Judge, count and report the images of a folder. Return the exit code.

    Raises:
        UserError: As `audit_external_images`, or the suite does not exist.
    """
    from erasure.storage.locks import lock_folder
    from eval.external_images import audit_external_images
    from eval.suites.suite import load_suite

    suite, out = load_suite(command.suite), command.out
    with lock_folder(out, "erasure audit images"):
        result = audit_external_images(command.images, suite, command.concept, command.kind, out, command.base, command.fresh)
        return write_and_print_report(out, suite.gates, result, command.blur)
