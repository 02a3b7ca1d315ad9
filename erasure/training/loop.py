"""The training loop of all methods: accelerate, fp32 masters, seeds, checkpoints, resume, progress, cost. It knows no method by name."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from erasure.config.launcher import is_main_process
from erasure.config.seeds import derive_seed
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.conditioning import Conditioning, concatenate
from erasure.families.placement import bring
from erasure.methods.base import MethodResult, TrainableGroup, Trained, TrainingContext
from erasure.storage.files import DamagedFile, clear_path, is_path_taken, print_message, write_bytes
from erasure.storage.run import check_tracker
from erasure.storage.tensor_files import load_state, save_state
from erasure.training import saliency
from erasure.training.adapters import load_factors
from erasure.training.bounds import StepBounds, make_bounds
from erasure.training.data_parallel import average_gradients, shared_predictions, wait_for_all
from erasure.training.divergence import all_finite, explain_divergence
from erasure.training.lookahead import check_lookahead, collect_gradients
from erasure.training.optimizers import make_optimizer
from erasure.training.teacher_cache import TeacherCache


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How to run a training, as opposed to what to train."""

    folder: Path  # of checkpoint.pt and train.jsonl
    seed: int = 0
    checkpoint_every: int = 25  # iterations
    gradient_checkpointing: bool = False
    report_to: str = "none"  # none, tensorboard, wandb, trackio, mlflow
    mask: Path | None = None  # a saved saliency mask: only its entries are trained
    on_step: Callable[[Trained, TrainingContext], None] | None = None  # called after every iteration; must not change the model


def train(
    model: DiffusionModel, method: Trained, cache: TeacherCache, options: TrainingOptions, initial_values: dict[str, Tensor] | None = None
) -> MethodResult:
    """Train the method's groups and return the values of the saved ones (fp32); the model itself stays unchanged.

    Every random number of step k is a function of (seed, k), so a resumed run equals an uninterrupted one bit for bit.

    Args:
        initial_values: values to start from, by parameter name; other parameters start from what they hold.

    Raises:
        UserError: The loss is NaN or Inf (the message names the step and the likely cause, and the last checkpoint stays), the mask is
            not valid, the tracker cannot start, or the method's steps cannot be repeated where that is asked for.
    """
    check_lookahead(method, cache.query)
    model.set_attention(training=True)
    try:
        trains_text = any(name.startswith("text_encoder") for name in model.parameter_names(method.region))
        # before anything trains, and so stays on the device: a large text encoder may need its place
        encode = _make_encoder(model, None if trains_text else cache.query.all_prompts())
        with method.trainable(model) as groups:
            for network in model.networks.values():
                if any(p.requires_grad for p in network.parameters()):
                    bring(network)
            for group in groups.values():
                load_factors(group.parameters, initial_values or {})
            context = _run_steps(TrainingContext(model, cache, encode), method, options, groups)
            saved = {name: p for group in groups.values() if group.saved for name, p in group.parameters.items()}
            return MethodResult({name: p.detach().to("cpu", torch.float32, copy=True) for name, p in saved.items()}, context.notes)
    finally:
        model.set_attention(training=False)


def _run_steps(context: TrainingContext, method: Trained, options: TrainingOptions, groups: dict[str, TrainableGroup]) -> TrainingContext:
    model = context.model
    accelerator = _make_accelerator(model, options)
    optimizers = {name: accelerator.prepare(make_optimizer(method.optimizer, group)) for name, group in groups.items()}
    if options.gradient_checkpointing:
        model.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]  # a method of diffusers' networks
    torch.manual_seed(derive_seed(options.seed, -1))
    trained = {name: p for group in groups.values() for name, p in group.parameters.items()}
    saved_mask = options.folder / "mask.safetensors"  # from an interrupted run
    if options.mask or saved_mask.exists():
        context.masks = _load_masks(options.mask, saved_mask, trained)
    context.groups = groups
    method.prepare(context, groups)
    wait_for_all(model.device)  # before one writes what another reads
    writes = is_main_process()
    if context.masks and not options.mask and writes:
        saliency.save_mask(context.masks, saved_mask)
    if method.protect and context.masks:
        raise UserError("--protect and a mask cannot be used together: what is projected leaves the mask.")
    bounds = make_bounds(model, method, {name: p for group in groups.values() if group.saved for name, p in group.parameters.items()})
    first_step = _resume(options, groups, optimizers, context)
    wait_for_all(model.device)
    with (options.folder / "train.jsonl" if writes else Path(os.devnull)).open("a", buffering=1) as log:
        steps = range(first_step, method.steps)
        progress = tqdm(steps, initial=first_step, total=method.steps, desc="erasing", unit="step", disable=not writes)
        for step in progress:
            losses = _run_step(step, context, method, options, groups, optimizers, accelerator, bounds)
            log.write(json.dumps({"step": step, **losses}) + "\n")
            accelerator.log(losses, step=step)
            if options.on_step and writes:
                options.on_step(method, context)
            progress.set_postfix({k: f"{v:.5f}" for k, v in losses.items()}, refresh=False)
            if (step + 1) % options.checkpoint_every == 0 and step + 1 < method.steps and writes:
                _save_checkpoint(options, groups, optimizers, context, step + 1)
    for tracker in accelerator.trackers:  # not end_training, which would also part the processes
        tracker.finish()
    if options.gradient_checkpointing:
        model.denoiser.disable_gradient_checkpointing()  # type: ignore[operator]
    return context


def _run_step(
    step: int,
    context: TrainingContext,
    method: Trained,
    options: TrainingOptions,
    groups: dict[str, TrainableGroup],
    optimizers: dict[str, Any],
    accelerator: Accelerator,
    bounds: StepBounds,
) -> dict[str, float]:
    """Take the optimizer steps of one iteration, and return their losses by group."""
    losses, seed = {}, derive_seed(options.seed, step)
    torch.manual_seed(seed)
    with shared_predictions(context.model):
        for optimizer_step in method.step(context):
            group, optimizer = groups[optimizer_step.group], optimizers[optimizer_step.group]
            losses[optimizer_step.group] = _check_loss(optimizer_step.loss, step, options, context, groups)
            for param_group in optimizer.param_groups:
                param_group["lr"] = optimizer_step.lr or group.lr
            optimizer.zero_grad()
            backward = partial(_add_gradients, accelerator, group, context)
            collect_gradients(method, context, group.parameters, seed, backward, optimizer_step.loss)
            if method.drift and group.saved:
                backward(bounds.drift_loss(group.parameters))
            if group.max_grad_norm:
                accelerator.clip_grad_norm_(group.parameters.values(), group.max_grad_norm)
            before = bounds.remember(group.parameters)
            optimizer.step()
            if group.saved:
                bounds.limit(group.parameters, before)
    return losses


def _load_masks(requested: Path | None, saved: Path, parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """Return the requested masks, or those of an interrupted run; if these are damaged, a message says so and the method makes new ones."""
    if requested:
        return saliency.load_mask(requested, parameters)
    try:
        return saliency.load_mask(saved, parameters)
    except UserError as error:
        print_message(f"{error} It is made anew.")
        return {}


def _add_gradients(accelerator: Accelerator, group: TrainableGroup, context: TrainingContext, loss: Tensor) -> None:
    """Add the gradients of a loss; entries outside a mask get a gradient of zero, so Adam never moves them."""
    cost = context.model.cost
    backwards_before = cost.unet_backwards
    accelerator.backward(loss, inputs=list(group.parameters.values()))
    cost.sample_gradients += cost.unet_backwards - backwards_before
    average_gradients(group.parameters.values())
    for name in group.parameters.keys() & context.masks.keys():
        if (gradient := group.parameters[name].grad) is not None:
            gradient.mul_(context.masks[name])


def _make_accelerator(model: DiffusionModel, options: TrainingOptions) -> Accelerator:
    trackers = None if options.report_to == "none" else options.report_to
    check_tracker(options.report_to)
    try:
        accelerator = Accelerator(
            cpu=model.device.type == "cpu",
            mixed_precision="fp16" if model.compute_dtype is torch.float16 else "no",
            log_with=trackers,
            project_dir=str(options.folder),
        )
        if trackers:
            accelerator.init_trackers("erasure-studio", config={"seed": options.seed})
    except (ImportError, ValueError) as error:
        raise UserError(f"--report-to {options.report_to}: {error}") from error
    return accelerator


def _make_encoder(model: DiffusionModel, all_prompts: list[str] | None) -> Callable[[list[str]], Conditioning]:
    """Return a function from prompts to their conditioning.

    Args:
        all_prompts: with a frozen text encoder, every prompt that the training may encode. They are encoded once, all together, so that a
            resumed run gets the same bits.
    """
    if all_prompts is None:
        return model.encode_for_guidance
    with torch.no_grad():
        cached = dict(zip(all_prompts, model.encode_for_guidance(all_prompts), strict=True))
    return lambda prompts: concatenate([cached[p] for p in prompts])


def _check_loss(loss: Tensor, step: int, options: TrainingOptions, context: TrainingContext, groups: dict[str, TrainableGroup]) -> float:
    """Return the loss as a number, or raise a UserError with the likely cause if it is NaN or Inf."""
    value = loss.item()
    if not math.isfinite(value):
        checkpoint = options.folder / "checkpoint.pt"
        hint = f" {checkpoint} holds the training as it was before." if checkpoint.is_file() else ""
        raise UserError(f"the loss is {value} at step {step}: {_divergence_cause(step, context, groups)}.{hint}")
    return value


def _divergence_cause(step: int, context: TrainingContext, groups: dict[str, TrainableGroup]) -> str:
    """Return why a loss is NaN or Inf, as far as the tensors tell: the teacher cache, the trained weights, precision, learning rate."""
    cache, dtype = context.cache, context.model.compute_dtype
    if not all_finite(cache.x_t, cache.pred_cond, cache.pred_neutral, cache.x_0):
        reason = "the frozen model's own predictions hold NaN or Inf"
        return f"{reason}; {explain_divergence(dtype, 0, '--lr')}"
    if step and not all_finite(*(p for group in groups.values() for p in group.parameters.values())):
        return "the trained weights hold NaN or Inf after the last update, so lower --lr"
    return explain_divergence(dtype, step, "--lr")


def _save_checkpoint(
    options: TrainingOptions, groups: dict[str, TrainableGroup], optimizers: dict[str, Any], context: TrainingContext, step: int
) -> None:
    state = {
        "step": step,
        "groups": {name: {n: p.detach() for n, p in group.parameters.items()} for name, group in groups.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        "state": context.state,
        "log": (options.folder / "train.jsonl").read_text(encoding="utf-8"),
    }
    save_state(options.folder / "checkpoint.pt", state)


def _resume(options: TrainingOptions, groups: dict[str, TrainableGroup], optimizers: dict[str, Any], context: TrainingContext) -> int:
    """Load the last checkpoint, cut the log back to it, and return the next step."""
    state = _load_checkpoint(options.folder / "checkpoint.pt", groups)
    if is_main_process():
        write_bytes(options.folder / "train.jsonl", state["log"].encode() if state else b"")
    if state is None:
        return 0
    with torch.no_grad():
        for name, group in groups.items():
            for n, p in group.parameters.items():
                p.copy_(state["groups"][name][n])
            optimizers[name].load_state_dict(state["optimizers"][name])
    context.state.update({key: value.to(context.model.device) for key, value in state["state"].items()})
    return int(state["step"])


def _load_checkpoint(path: Path, groups: dict[str, TrainableGroup]) -> dict[str, Any] | None:
    """Return the last checkpoint; None if there is none. One that is damaged or does not fit is reported and deleted."""
    if not is_path_taken(path):
        return None
    try:
        state = load_state(path)
        for name, group in groups.items():
            expected, stored = (
                {n: tuple(p.shape) for n, p in values.items()} for values in (group.parameters, state["groups"].get(name, {}))
            )
            if expected != stored:
                raise DamagedFile(f"{path} holds different parameters than {name} trains.")
        return state
    except DamagedFile as error:
        print_message(f"{error} Training starts over from its first step.")
        clear_path(path)
        return None
