"""Run a method on a model: train it (after its pretraining), solve it, or note how it guides."""

from dataclasses import asdict, replace

from torch import Tensor

from erasure.concept import Concept
from erasure.families.base import DiffusionModel
from erasure.families.placement import bring
from erasure.methods.base import Guided, Method, MethodResult, Trained, TrainingFree
from erasure.storage.locks import lock_folder
from erasure.storage.run import Run, cache_folder, hash_record
from erasure.storage.tensor_files import load_or_make
from erasure.training import fill_cache
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

    with lock_folder(folder, "erasure erase", wait=True):  # a second process waits and loads what the first one made
        run = Run(folder, job)
        run.begin()
        tensors = load_or_make(folder / "pretrained.safetensors", pretrain)
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        if not run.is_complete:
            run.finish({"tensors": len(tensors)})
    return tensors
