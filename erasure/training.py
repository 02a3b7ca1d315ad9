"""The one training loop: accelerate, fp32 masters, seeds, checkpoints, resume, progress, cost. It knows no method by name."""

import importlib.util
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from erasure.bank import Bank
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.methods.base import Play, Player, Trained


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How to run a training, as opposed to what to train."""

    folder: Path  # checkpoint.pt and train.jsonl
    seed: int = 0
    checkpoint_every: int = 25  # optimiser steps
    gradient_checkpointing: bool = False
    report_to: str = "none"  # none, tensorboard, wandb, trackio, mlflow


def train(model: DiffusionModel, method: Trained, bank: Bank, loop: Loop) -> dict[str, Tensor]:
    """Train a region and return its new values (fp32); the model itself is left as it was.

    Every random number of step k is a function of (seed, k), so a resumed run repeats a straight one bit for bit.

    Raises:
        UserError: the loss is no number; the step is named and the last checkpoint stays.
    """
    names = model.region(method.trains())
    parameters = {name: model.parameters()[name] for name in names}
    kept = {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
    try:
        for p in parameters.values():
            p.data = p.data.float()  # fp16 or bf16 weights lose updates near the learning rate
            p.requires_grad_(True)
        model.use_attention(training=True)
        _run(model, method, bank, loop, Player(parameters, method.lr))
        return {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
    finally:
        for name, p in parameters.items():
            p.requires_grad_(False)
            p.grad = None
            p.data = kept[name].to(model.device)
        model.use_attention(training=False)


def _run(model: DiffusionModel, method: Trained, bank: Bank, loop: Loop, player: Player) -> None:
    accelerator = _accelerator(model, loop)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[method.optimiser]
    optimiser = accelerator.prepare(kind(player.parameters.values(), lr=player.lr, betas=player.betas, weight_decay=player.weight_decay))
    play = Play(predict=_predictor(model, frozen_text=not any(name.startswith("text_encoder.") for name in player.parameters)))
    if loop.gradient_checkpointing:
        model.pipe.unet.enable_gradient_checkpointing()
    first = _resume(loop, player, optimiser, play)
    with (loop.folder / "train.jsonl").open("a") as log:
        bar = tqdm(range(first, method.steps), initial=first, total=method.steps, desc="erasing", unit="step")
        for step in bar:
            torch.manual_seed(loop.seed * 1_000_003 + step)
            batch = bank.batch(torch.randint(len(bank), (method.batch,)), model.device)
            losses = {}
            for update in method.step(play, batch):
                losses[update.player] = _finite(update.loss, step, loop)
                optimiser.zero_grad()
                accelerator.backward(update.loss)
                optimiser.step()
                model.cost.unet_backwards += method.batch
            log.write(json.dumps({"step": step, **losses}) + "\n")
            accelerator.log(losses, step=step)
            bar.set_postfix({k: f"{v:.5f}" for k, v in losses.items()}, refresh=False)
            if (step + 1) % loop.checkpoint_every == 0 and step + 1 < method.steps:
                log.flush()
                _save(loop, player, optimiser, play, step + 1)
    accelerator.end_training()
    if loop.gradient_checkpointing:
        model.pipe.unet.disable_gradient_checkpointing()


def _accelerator(model: DiffusionModel, loop: Loop) -> Accelerator:
    trackers = None if loop.report_to == "none" else loop.report_to
    if trackers and importlib.util.find_spec(trackers) is None:  # accelerate only warns, and then logs nothing
        raise UserError(f"--report-to {trackers} needs the package: pip install {trackers}, or use --report-to none.")
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


def _predictor(model: DiffusionModel, frozen_text: bool) -> Any:
    """predict(x_t, t, prompts) that encodes each distinct sentence once, as long as the text encoder is frozen."""
    known: dict[str, Tensor] = {}

    def predict(x_t: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
        if not frozen_text:
            return model.predict(x_t, t, model.encode(prompts))
        fresh = sorted({p for p in prompts if p not in known})
        if fresh:
            with torch.no_grad():
                known.update(zip(fresh, model.encode(fresh), strict=True))
        return model.predict(x_t, t, torch.stack([known[p] for p in prompts]))

    return predict


def _finite(loss: Tensor, step: int, loop: Loop) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise UserError(f"the loss is {value} at step {step}; lower --lr. The last good checkpoint is {loop.folder / 'checkpoint.pt'}.")
    return value


def _save(loop: Loop, player: Player, optimiser: Any, play: Play, step: int) -> None:
    state = {
        "step": step,
        "parameters": {name: p.detach() for name, p in player.parameters.items()},
        "optimiser": optimiser.state_dict(),
        "state": play.state,
    }
    draft = loop.folder / ".checkpoint.part"
    torch.save(state, draft)
    draft.replace(loop.folder / "checkpoint.pt")


def _resume(loop: Loop, player: Player, optimiser: Any, play: Play) -> int:
    """Load the last checkpoint, cut the log back to it, and return the next step."""
    log, checkpoint = loop.folder / "train.jsonl", loop.folder / "checkpoint.pt"
    if not checkpoint.exists():
        log.write_text("")
        return 0
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for name, p in player.parameters.items():
            p.copy_(state["parameters"][name])
    optimiser.load_state_dict(state["optimiser"])
    play.state.update(state["state"])
    log.write_text("".join(line + "\n" for line in log.read_text().splitlines()[: state["step"]]))
    return int(state["step"])
