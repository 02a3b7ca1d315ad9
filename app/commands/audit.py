"""`erasure audit EDIT`: how much is gone, what else went with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from app.parsing import parse
from erasure.families.base import Attention, Precision


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draw a suite with the base and the edited model from the same noise, judge every picture, count, and report."""

    edit: Annotated[Path, tyro.conf.Positional]  # folder that `erasure erase` made
    suite: str = "pocket"  # name of a suite in prompts/, or a YAML file
    tier: Literal["smoke", "standard", "full"] = "standard"  # how many pictures a cell
    model: str = ""  # base model; default: the one the edit was made on
    out: Path | None = None  # audit folder; default <edit>/audit-<suite>-<tier>
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    dtype: Precision = "auto"  # what to compute in
    attention: Attention = "auto"  # attention kernel of the UNet
    other_base: bool = False  # apply the edit to a model it was not made on
    fresh: bool = False  # throw away what the folder holds


def main(argv: list[str]) -> int:
    options = parse(Options, argv, "audit")
    from erasure.edit import Edit
    from erasure.loading import load_model
    from eval.audit import Audit, audit
    from eval.cases import load_suite
    from eval.report.html import write

    edit, suite = Edit.load(options.edit), load_suite(options.suite)
    plan = Audit.of(edit, suite, options.tier)
    model = load_model(
        options.model or edit.info.base["source"], device=options.device, precision=options.dtype, attention=options.attention
    )
    out = options.out or options.edit / f"audit-{suite.name}-{options.tier}"
    result = audit(model, edit, plan, out, fresh=options.fresh, other_base=options.other_base)
    print(write(out))
    print(headline(result))
    return 0


def headline(result: dict) -> str:
    """UA, IRA and CRA in one line, with counts and the base beside them."""
    erased, base = (result["models"][m]["rates"] for m in ("erased", "base"))
    parts = [
        f"{name} {100 * erased[name]['estimate']:.1f} % ({erased[name]['k']}/{erased[name]['n']}, base {100 * base[name]['estimate']:.1f})"
        for name in ("UA", "IRA", "CRA")
    ]
    return ", ".join(parts)
