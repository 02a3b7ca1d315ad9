"""The one training loop: accelerate, fp32 masters, seeds, checkpoints, resume, progress, cost. It knows no method by name."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from erasure.config.seeds import stream
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.methods.base import Change, Play, Player, Trained, Update
from erasure.storage.files import Damaged, is_there, make_room, tell, write_bytes
from erasure.storage.run import check_tracker
from erasure.storage.tensor_cache import load_state, save_state
from erasure.training import saliency
from erasure.training.adapters import put
from erasure.training.diverged import advice, finite
from erasure.training.teacher_cache import Bank


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How to run a training, as opposed to what to train."""

    folder: Path  # checkpoint.pt and train.jsonl
    seed: int = 0
    checkpoint_every: int = 25  # optimiser steps
    gradient_checkpointing: bool = False
    report_to: str = "none"  # none, tensorboard, wandb, trackio, mlflow
    mask: Path | None = None  # a saved saliency mask: only its entries move
    watch: Callable[[Trained, Play], None] | None = None  # called after every step; it must leave the model as it is


def train(model: DiffusionModel, method: Trained, bank: Bank, loop: Loop, start: dict[str, Tensor] | None = None) -> Change:
    """Train what the method's players hold and return the kept ones' values (fp32); the model itself is left as it was.

    Args:
        start: values to begin with, by parameter; the others begin with what they have.

    Every random number of step k is a function of (seed, k), so a resumed run repeats a straight one bit for bit.

    Raises:
        UserError: the loss is NaN or Inf; the step and the likely cause are named, and the last checkpoint stays.
    """
    model.use_attention(training=True)
    try:
        with method.players(model) as players:
            for player in players.values():
                put(player.parameters, start or {})
            play = _run(model, method, bank, loop, players)
            kept = {name: p for player in players.values() if player.kept for name, p in player.parameters.items()}
            return Change({name: p.detach().to("cpu", torch.float32, copy=True) for name, p in kept.items()}, play.notes)
    finally:
        model.use_attention(training=False)


def _run(model: DiffusionModel, method: Trained, bank: Bank, loop: Loop, players: dict[str, Player]) -> Play:
    accelerator = _accelerator(model, loop)
    optimisers = {
        name: accelerator.prepare(torch.optim.Adam(player.parameters.values(), lr=player.lr, betas=player.betas, eps=player.eps))
        for name, player in players.items()
    }
    frozen_text = not any(name.startswith("text_encoder.") for player in players.values() for name in player.parameters)
    play = Play(model, bank, _encoder(model, bank.recording.texts() if frozen_text else None))
    if loop.gradient_checkpointing:
        model.pipe.unet.enable_gradient_checkpointing()
    torch.manual_seed(stream(loop.seed, -1))
    own_mask = loop.folder / "mask.safetensors"  # of an interrupted run
    if loop.mask or own_mask.exists():
        play.masks = _masks(loop.mask, own_mask, {name: p for player in players.values() for name, p in player.parameters.items()})
    method.prepare(play, players)
    if play.masks and not loop.mask:
        saliency.store(play.masks, own_mask)
    first = _resume(loop, players, optimisers, play)
    with (loop.folder / "train.jsonl").open("a", buffering=1) as log:
        bar = tqdm(range(first, method.steps), initial=first, total=method.steps, desc="erasing", unit="step")
        for step in bar:
            torch.manual_seed(stream(loop.seed, step))
            losses = {}
            for update in method.step(play):
                losses[update.player] = _finite(update.loss, step, loop, play, players)
                _apply(accelerator, optimisers[update.player], players[update.player], update, play)
            log.write(json.dumps({"step": step, **losses}) + "\n")
            accelerator.log(losses, step=step)
            if loop.watch:
                loop.watch(method, play)
            bar.set_postfix({k: f"{v:.5f}" for k, v in losses.items()}, refresh=False)
            if (step + 1) % loop.checkpoint_every == 0 and step + 1 < method.steps:
                _save(loop, players, optimisers, play, step + 1)
    accelerator.end_training()
    if loop.gradient_checkpointing:
        model.pipe.unet.disable_gradient_checkpointing()
    return play


def _masks(given: Path | None, own: Path, parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """The mask that was asked for, or the one of an interrupted run; if that is damaged it is named, and made anew by the method."""
    if given:
        return saliency.load(given, parameters)
    try:
        return saliency.load(own, parameters)
    except UserError as error:
        tell(f"{error} It is made anew.")
        return {}


def _apply(accelerator: Accelerator, optimiser: Any, player: Player, update: Update, play: Play) -> None:
    """One optimiser step; entries outside a mask keep a gradient of zero, so Adam never moves them."""
    for group in optimiser.param_groups:
        group["lr"] = update.lr or player.lr
    optimiser.zero_grad()
    accelerator.backward(update.loss, inputs=list(player.parameters.values()))
    for name in player.parameters.keys() & play.masks.keys():
        if (gradient := player.parameters[name].grad) is not None:
            gradient.mul_(play.masks[name])
    if player.clip:
        accelerator.clip_grad_norm_(player.parameters.values(), player.clip)
    optimiser.step()
    play.model.cost.unet_backwards += update.samples
    play.model.cost.sample_gradients += update.samples


def _accelerator(model: DiffusionModel, loop: Loop) -> Accelerator:
    trackers = None if loop.report_to == "none" else loop.report_to
    check_tracker(loop.report_to)
    try:
        accelerator = Accelerator(
            cpu=model.device.type == "cpu",
            mixed_precision="fp16" if model.compute is torch.float16 else "no",
            log_with=trackers,
            project_dir=str(loop.folder),
        )
        if trackers:
            accelerator.init_trackers("erasure-studio", config={"seed": loop.seed})
    except (ImportError, ValueError) as error:
        raise UserError(f"--report-to {loop.report_to}: {error}") from error
    return accelerator


def _encoder(model: DiffusionModel, texts: list[str] | None) -> Callable[[list[str]], Tensor]:
    """Conditioning of prompts; with a frozen text encoder its texts are encoded once, all together, so that an interrupted run finds the
    same bits again."""
    if texts is None:
        return model.encode
    with torch.no_grad():
        known = dict(zip(texts, model.encode(texts), strict=True))
    return lambda prompts: torch.stack([known[p] for p in prompts])


def _finite(loss: Tensor, step: int, loop: Loop, play: Play, players: dict[str, Player]) -> float:
    value = loss.item()
    if not math.isfinite(value):
        checkpoint = loop.folder / "checkpoint.pt"
        kept = f" {checkpoint} holds the training as it was before." if checkpoint.is_file() else ""
        raise UserError(f"the loss is {value} at step {step}: {_cause(step, play, players)}.{kept}")
    return value


def _cause(step: int, play: Play, players: dict[str, Player]) -> str:
    """Why a loss is not finite, as far as the tensors tell: the record it trains from, the trained weights, the precision, the rate."""
    bank, compute = play.bank, play.model.compute
    if not finite(bank.x_t, bank.eps_cond, bank.eps_uncond, bank.x_0):
        where = "the frozen model's own recorded answers hold NaN or Inf"
        return f"{where}; {advice(compute, 0, '--lr')}"
    if step and not finite(*(p for player in players.values() for p in player.parameters.values())):
        return "the trained weights hold NaN or Inf after the last update, so lower --lr"
    return advice(compute, step, "--lr")


def _save(loop: Loop, players: dict[str, Player], optimisers: dict[str, Any], play: Play, step: int) -> None:
    state = {
        "step": step,
        "players": {name: {n: p.detach() for n, p in player.parameters.items()} for name, player in players.items()},
        "optimisers": {name: optimiser.state_dict() for name, optimiser in optimisers.items()},
        "state": play.state,
        "log": (loop.folder / "train.jsonl").read_text(encoding="utf-8"),
    }
    save_state(loop.folder / "checkpoint.pt", state)


def _resume(loop: Loop, players: dict[str, Player], optimisers: dict[str, Any], play: Play) -> int:
    """Load the last checkpoint, set the log back to it, and return the next step."""
    state = _checkpoint(loop.folder / "checkpoint.pt", players)
    write_bytes(loop.folder / "train.jsonl", state["log"].encode() if state else b"")
    if state is None:
        return 0
    with torch.no_grad():
        for name, player in players.items():
            for n, p in player.parameters.items():
                p.copy_(state["players"][name][n])
            optimisers[name].load_state_dict(state["optimisers"][name])
    play.state.update({key: value.to(play.model.device) for key, value in state["state"].items()})
    return int(state["step"])


def _checkpoint(path: Path, players: dict[str, Player]) -> dict[str, Any] | None:
    """The last checkpoint; None where there is none, or a damaged or foreign one, which is named and given up."""
    if not is_there(path):
        return None
    try:
        state = load_state(path)
        for name, player in players.items():
            here, there = ({n: tuple(p.shape) for n, p in values.items()} for values in (player.parameters, state["players"].get(name, {})))
            if here != there:
                raise Damaged(f"{path} holds other parameters than {name} trains.")
        return state
    except Damaged as error:
        tell(f"{error} Training starts over from its first step.")
        make_room(path)
        return None
