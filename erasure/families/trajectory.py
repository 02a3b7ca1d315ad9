"""Deterministic sampling, one step after another, with guidance and with the edits that steer it."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from erasure.errors import UserError
from erasure.families.conditioning import Conditioning, concatenate
from erasure.families.precision import DTYPES
from erasure.families.sampling import GuidanceEdit, TrajectoryStep

if TYPE_CHECKING:
    from erasure.families.base import DiffusionModel


@torch.no_grad()
def follow_trajectory(
    model: "DiffusionModel",
    x_T: Tensor,
    cond: Conditioning,
    uncond: Conditioning,
    steps: int,
    guidance: float,
    guidance_edits: Sequence[GuidanceEdit],
) -> Iterator[TrajectoryStep]:
    """Do the work of `DiffusionModel.trajectory`."""
    if not 1 <= steps <= model.num_timesteps:
        raise UserError(f"{model.source} can be sampled in 1 to {model.num_timesteps:,} steps, got {steps:,}.")
    if guidance_edits:
        check_supports_guidance(model)
    branches = [cond]
    if model.guidance_kind == "classifier-free":
        branches = [uncond, cond, *(model.encode([edit.prompt]).expand(len(cond)) for edit in guidance_edits)]
    conds, count = concatenate(branches), len(branches)
    schedule, sampler, x_t = model.schedule, model.schedule.sampler(steps), x_T
    states: list[dict[str, Tensor]] = [{} for _ in guidance_edits]
    for k, t in enumerate(sampler.times):
        timesteps = torch.full((len(conds),), t, device=model.device)
        natives = model.predict_native(torch.cat([x_t] * count), timesteps, conds, guidance).chunk(count)
        predictions = [schedule.to_prediction(native, x_t, timesteps[: len(x_t)]) for native in natives]
        guided, pred_uncond, pred_cond = natives[0], None, predictions[-1]
        if count > 1:
            pred_uncond, pred_cond = predictions[:2]
            guided = natives[0] + guidance * (natives[1] - natives[0])
            for edit, pred_concept, state in zip(guidance_edits, predictions[2:], states, strict=True):
                change = edit.guide(pred_cond, pred_uncond, pred_concept, guidance, k / steps, state)
                guided = guided + schedule.to_native_change(change, t)
        x_next = model.check_finite(sampler.advance(k, guided, x_t), f"its latents after timestep {t:g}")
        yield TrajectoryStep(x_t, t, pred_cond, pred_uncond, x_next)
        x_t = x_next


def check_supports_guidance(model: "DiffusionModel") -> None:
    """Check that guidance edits can steer a model.

    Raises:
        UserError: The model is sampled without classifier-free guidance, or its schedule has zero terminal SNR, at whose end the
            predicted noise is x_t whatever the text.
    """
    if model.guidance_kind != "classifier-free":
        reason = "reads the guidance scale as an input" if model.guidance_kind == "embedded" else "was distilled to need no guidance"
        raise UserError(f"guidance edits steer classifier-free guidance, and {model.source} {reason}; use esd or uce instead.")
    if model.schedule.zero_terminal_snr:
        raise UserError(f"guidance edits do not work with {model.source}: at zero terminal SNR its noise does not depend on the text.")


def explain_not_finite(model: "DiffusionModel", label: str) -> str:
    """Return a message on NaN or Inf in `label`, with the likely cause: weights, precision or schedule."""
    networks = {**model.networks, "vae": model.pipe.vae}
    non_finite = (
        f"{prefix}.{name}" for prefix, network in networks.items() for name, p in network.named_parameters() if not p.isfinite().all()
    )
    if name := next(non_finite, ""):
        return f"{model.source} gives NaN or Inf ({label}), because its weights hold them, such as {name}; download or convert it again."
    precision = next(name for name, dtype in DTYPES.items() if dtype is model.compute_dtype)
    reduced = model.compute_dtype is not torch.float32
    advice = "compute with --dtype fp32, or bf16 on a GPU" if reduced else "its schedule may be another model's"
    return f"{model.source} gives NaN or Inf ({label}) in {precision}; {advice}."
