"""A short SalUn erasure that can be stopped, and the bytes that a continued run must share with an undisturbed one."""

from pathlib import Path

from erasure.concept import Concept
from erasure.edits import Edit
from erasure.erasing import prepare
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.base import Trained, TrainingContext
from erasure.methods.salun import SalUn

STEPS, STOP = 8, 6


class Stopped(Exception):
    pass


def run_salun(model: StableDiffusion, out: Path, stop: int = 0) -> Edit:
    """SalUn, which writes every kind of file: a teacher cache, a mask, checkpoints, a log. Raises Stopped in step `stop`."""
    method = SalUn(
        steps=STEPS,
        batch=2,
        trajectories=4,
        trajectory_steps=2,
        retain_prompts=("dog", "a dog"),
        retain_trajectories=2,
        retain_batch=2,
        lr=1e-3,
    )
    steps = []

    def on_step(_: Trained, __: TrainingContext) -> None:
        steps.append(1)
        if len(steps) == stop:
            raise Stopped

    return prepare(model, Concept(name="cat", kind="object", prompts=("{}", "a {}")), method, out=out).run(watch=on_step)


def reproducible_bytes(folder: Path) -> dict[str, bytes]:
    """Everything that two runs of one job share: all but times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("timing.json", "result.json", "report.html", "manifest.json")
    }
