"""Guidance edits: rebuilt from their record, and hooked into a plain diffusers pipeline."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from erasure.concept import Concept
from erasure.discover import load
from erasure.errors import UserError
from erasure.families.base import Guidance
from erasure.methods.base import Guided


def guidance_of(method: str, fields: dict[str, Any], concepts: list[dict[str, Any]], strength: float) -> Guidance:
    """What a guidance edit adds to sampling; its strength scales what it adds."""
    guided = load("erasure.methods", method, Guided)(**fields)

    def guide(*answers: Any) -> Tensor:
        return strength * guided.guide(*answers)

    return Guidance(guided.text([Concept.from_record(c) for c in concepts]), guide)


def attach(pipe: Any, guides: Sequence[Guidance]) -> Callable[[], None]:
    """Make a plain StableDiffusionPipeline sample with guides; returns what takes them out again.

    The pipeline asks its UNet for (uncond, cond) and computes u + w (c - u) itself. The hook asks for the guides' texts too and adds
    their part to c, divided by w, so that the pipeline's own arithmetic ends with it.

    Raises:
        UserError: a schedule with zero terminal SNR, at whose end noise predictions do not depend on the text.
    """
    if pipe.scheduler.config.get("rescale_betas_zero_snr", False):
        raise UserError("guidance edits do not work with zero terminal SNR (rescale_betas_zero_snr in this pipeline's scheduler).")
    alphas = pipe.scheduler.alphas_cumprod
    velocity = pipe.scheduler.config.get("prediction_type", "epsilon") == "v_prediction"
    memories: list[dict[str, Tensor]] = [{} for _ in guides]
    last = {"t": -1.0}

    def hook(unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        if last.get("inside") or not pipe.do_classifier_free_guidance:
            return out
        x, t = args[0], torch.as_tensor(args[1]).flatten()[0].item()
        if t > last["t"]:  # a new walk has begun
            for memory in memories:
                memory.clear()
        last["t"] = t
        half = len(x) // 2
        a = alphas[int(t)].to(x.device, torch.float32)

        def eps(raw: Tensor) -> Tensor:
            return (1 - a).sqrt() * x[:half].float() + a.sqrt() * raw.float() if velocity else raw.float()

        raw_uncond, raw_cond = out[0].chunk(2)
        w, at = pipe.guidance_scale, 1 - (t + 1) / len(alphas)
        extra = torch.zeros_like(raw_cond, dtype=torch.float32)
        for guide, memory in zip(guides, memories, strict=True):
            asked = pipe.encode_prompt(guide.text, x.device, half, False)[0]
            last["inside"] = 1.0
            try:
                raw = unet(x[:half], args[1], encoder_hidden_states=asked, return_dict=False)[0]
            finally:
                last.pop("inside")
            extra += guide.guide(eps(raw_cond), eps(raw_uncond), eps(raw), w, at, memory)
        extra = extra / (a.sqrt() if velocity else 1.0) / w
        return (torch.cat((raw_uncond, raw_cond + extra.to(raw_cond.dtype))),)

    return pipe.unet.register_forward_hook(hook, with_kwargs=True).remove
