"""Run a method on a model: train it (after its pretraining), solve it, or note how it guides."""

from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from erasure.concept import Concept
from erasure.config.launcher import is_main_process
from erasure.families.base import DiffusionModel
from erasure.families.placement import bring
from erasure.methods.base import Guided, Method, MethodResult, Trained, TrainingFree
from erasure.storage.files import DamagedFile, is_path_taken
from erasure.storage.locks import lock_folder
from erasure.storage.run import Run, cache_folder, hash_record
from erasure.storage.tensor_files import load_or_make, load_tensors
from erasure.training import fill_cache
from erasure.training.data_parallel import follow_main, wait_for_all
from erasure.training.loop import TrainingOptions, train


def run_method(model: DiffusionModel, concepts: list[Concept], method: Method, options: TrainingOptions) -> MethodResult:
    """Run the method, which has one of the three shapes of erasure.methods.base; `model` stays unchanged.

    Raises:
        UserError: as `train` and `TrainingFree.solve`.
        TypeError: the method has none of the shapes.
    """
    bring(model.denoiser)  # methods read its weights before it computes
    match method:
        case Trained():
            return train(
                model,
                method,
                fill_cache.load_or_fill(model, method.query(concepts, options.seed)),
                options,
                load_or_pretrain(model, method, options),
            )
        case TrainingFree():
            return method.solve(model, concepts, options.seed)
        case Guided():
            return MethodResult({}, {"prompt": method.guidance_prompt(concepts)})
        case _:
            raise TypeError(f"{type(method).__name__} has none of the shapes of erasure.methods.base")


def load_or_pretrain(model: DiffusionModel, method: Trained, options: TrainingOptions) -> dict[str, Tensor]:
    """Return the tensors of the method's pretraining, from the cache or trained now; an interrupted pretraining is resumed."""
    pretraining = method.pretraining()
    if pretraining is None:
        return {}
    job = {
        "task": "pretrain",
        "base": model.fingerprint(),
        "method": type(pretraining).__name__,
        "fields": asdict(pretraining),
        "compute": str(model.compute_dtype),
    }
    folder = cache_folder() / "pretraining" / hash_record(job)

    def pretrain() -> dict[str, Tensor]:
        cache = fill_cache.load_or_fill(model, pretraining.query([], 0))
        return train(model, pretraining, cache, replace(options, folder=folder, seed=0, mask=None)).tensors

    path = folder / "pretrained.safetensors"
    if not is_main_process():
        if follow_main(False, model.device):
            pretrain()
        wait_for_all(model.device)
        return load_tensors(path)
    with lock_folder(folder, "erasure erase", wait=True):  # a second run waits and loads what the first one made
        run = Run(folder, job)
        run.begin()
        tensors = _load_undamaged(path)
        if follow_main(tensors is None, model.device) or tensors is None:
            tensors = load_or_make(path, pretrain)
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        if not run.is_complete:
            run.finish({"tensors": len(tensors)})
    wait_for_all(model.device)
    return tensors


def _load_undamaged(path: Path) -> dict[str, Tensor] | None:
    """Return the tensors of a file; None where there is none, or a damaged one."""
    try:
        return load_tensors(path) if is_path_taken(path) else None
    except DamagedFile:
        return None
