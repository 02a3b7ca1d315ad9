"""Guidance edits: rebuilt from their record, and hooked into a plain diffusers pipeline."""

import weakref
from typing import Any

import torch
from torch import Tensor

from erasure.concept import Concept
from erasure.config.registry import load_class
from erasure.config.validation import build_dataclass
from erasure.errors import UserError
from erasure.families.parameters import unwrap
from erasure.families.sampling import GuidanceEdit, SamplingOverrides, is_own_network_call, sampling_of
from erasure.methods.base import Guided, Method


def rebuild_guidance(method: str, fields: dict[str, Any], concepts: list[dict[str, Any]], strength: float) -> GuidanceEdit:
    """Return what a guidance edit adds to sampling; its strength scales what it adds.

    Raises:
        UserError: an unknown method or one that does not guide sampling, unknown fields, or values of another type.
    """
    cls = load_class("erasure.methods", method, Method)
    if not issubclass(cls, Guided):
        raise UserError(f"the edit says that {method} guides sampling, but it is a method of another kind; make the edit again.")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}  # JSON has only lists
    method_instance = build_dataclass(cls, values, f"fields of the edit by {method}")

    def guide(*predictions: Any) -> Tensor:
        return strength * method_instance.guide(*predictions)

    return GuidanceEdit(method_instance.guidance_prompt([Concept.from_dict(c) for c in concepts]), guide)


def attach_guidance_hook(pipe: Any) -> None:
    """Make a StableDiffusionPipeline sample with the guidance edits that are applied to it now, or without if there are none.

    It gets one hook on its UNet; a DiffusionModel around it uses guidance edits itself, and the hook leaves its calls alone. However often
    this is called, and wherever it was interrupted before, there is one hook or none.

    Raises:
        UserError: guidance edits with a scheduler that has no alphas_cumprod, or zero terminal SNR.
    """
    needs_hook = bool(sampling_of(pipe).guidance_edits)
    if needs_hook and not hasattr(pipe.scheduler, "alphas_cumprod"):
        raise UserError(f"guidance edits need a scheduler with alphas_cumprod, such as DDIM; {type(pipe.scheduler).__name__} has none.")
    # at zero terminal SNR the last noise predictions do not depend on the text
    if needs_hook and pipe.scheduler.config.get("rescale_betas_zero_snr", False):
        raise UserError("guidance edits do not work with zero terminal SNR (rescale_betas_zero_snr in this pipeline's scheduler).")
    unet = getattr(pipe, "unet", None)
    if unet is None:
        return
    modules = [unet] if unwrap(unet) is unet else [unet, unwrap(unet)]
    # look for the hooks: an interruption could lose a handle from register_forward_hook
    own_hooks = [(module, key) for module in modules for key, hook in module._forward_hooks.items() if is_hook_of(hook, pipe)]
    for module, key in own_hooks[1:] if needs_hook else own_hooks:
        module._forward_hooks.pop(key, None)
        module._forward_hooks_with_kwargs.pop(key, None)
    if needs_hook and not own_hooks:
        unet.register_forward_hook(GuidanceHook(pipe), with_kwargs=True)


def is_hook_of(hook: Any, pipe: Any) -> bool:
    """Return whether a forward hook is ours and belongs to this pipeline, or to one that no longer exists."""
    return isinstance(hook, GuidanceHook) and hook.pipe() in (pipe, None)


class GuidanceHook:
    """A forward hook that adds guidance edits to the UNet's predictions.

    The pipeline runs its UNet for (uncond, cond) and computes u + w (c - u) itself. The hook also runs it for the prompts of the guidance
    edits, and adds their part to c, divided by w, so that the pipeline's own formula gives the guided result.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = weakref.ref(pipe)  # a copy of the UNet must not copy the pipeline
        self.sampling, self.last_timestep, self.is_running = SamplingOverrides(), -1.0, False
        self.states: list[dict[str, Tensor]] = []

    def __call__(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        pipe = self.pipe()
        if pipe is None or self.is_running or is_own_network_call():
            return out
        sampling = sampling_of(pipe)
        if not sampling.guidance_edits:
            return out
        if not pipe.do_classifier_free_guidance:
            raise UserError(
                f"guidance edits steer the guidance, and guidance_scale {pipe.guidance_scale:g} has none: the image would show the base. "
                "Use a guidance_scale above 1, or revert the edit."
            )
        x, t = args[0], torch.as_tensor(args[1]).flatten()[0].item()
        if sampling is not self.sampling or t > self.last_timestep:  # a new trajectory has begun
            self.sampling, self.states = sampling, [{} for _ in sampling.guidance_edits]
        self.last_timestep = t
        alphas = pipe.scheduler.alphas_cumprod
        velocity = pipe.scheduler.config.get("prediction_type", "epsilon") == "v_prediction"
        half = len(x) // 2
        a = alphas[int(t)].to(x.device, torch.float32)

        def eps(raw: Tensor) -> Tensor:
            return (1 - a).sqrt() * x[:half].float() + a.sqrt() * raw.float() if velocity else raw.float()

        raw_uncond, raw_cond = out[0].chunk(2)
        w, progress = pipe.guidance_scale, 1 - (t + 1) / len(alphas)
        extra = torch.zeros_like(raw_cond, dtype=torch.float32)
        for guidance_edit, state in zip(sampling.guidance_edits, self.states, strict=True):
            prompt_embeds = pipe.encode_prompt(guidance_edit.prompt, x.device, half, False)[0]
            self.is_running = True
            try:
                raw = unet(x[:half], args[1], encoder_hidden_states=prompt_embeds, return_dict=False)[0]
            finally:
                self.is_running = False
            extra += guidance_edit.guide(eps(raw_cond), eps(raw_uncond), eps(raw), w, progress, state)
        extra = extra / (a.sqrt() if velocity else 1.0) / w
        return (torch.cat((raw_uncond, raw_cond + extra.to(raw_cond.dtype))),)
