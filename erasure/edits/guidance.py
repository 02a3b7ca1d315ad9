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
from erasure.families.supported_models import spec_of_pipeline
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
    """Make a pipeline sample with the guidance edits that are applied to it now, or without if there are none.

    It gets one hook on its denoiser; a DiffusionModel around it uses guidance edits itself, and the hook leaves its calls alone. However
    often this is called, and wherever it was interrupted before, there is one hook or none.

    Raises:
        UserError: guidance edits on a pipeline without classifier-free guidance, with a scheduler that has no alphas_cumprod, or with
            zero terminal SNR.
    """
    denoiser = getattr(pipe, "unet", getattr(pipe, "transformer", None))
    needs_hook = bool(sampling_of(pipe).guidance_edits)
    if needs_hook:
        _check_can_be_guided(pipe)
    if denoiser is None:
        return
    modules = [denoiser] if unwrap(denoiser) is denoiser else [denoiser, unwrap(denoiser)]
    # look for the hooks: an interruption could lose a handle from register_forward_hook
    own_hooks = [(module, key) for module in modules for key, hook in module._forward_hooks.items() if is_hook_of(hook, pipe)]
    for module, key in own_hooks[1:] if needs_hook else own_hooks:
        module._forward_hooks.pop(key, None)
        module._forward_hooks_with_kwargs.pop(key, None)
    if needs_hook and not own_hooks:
        denoiser.register_forward_hook(GuidanceHook(pipe), with_kwargs=True)


def _check_can_be_guided(pipe: Any) -> None:
    """Check that a plain pipeline samples with classifier-free guidance, in a way that the hook knows. Raises as `attach_guidance_hook`."""
    spec = spec_of_pipeline(pipe)
    if spec.family == "flux" or pipe.config.get("is_distilled", False):
        raise UserError(
            f"guidance edits steer classifier-free guidance, and this {type(pipe).__name__} is sampled without; use esd or uce."
        )
    if spec.schedule == "flow":
        return
    if not hasattr(pipe.scheduler, "alphas_cumprod"):
        raise UserError(f"guidance edits need a scheduler with alphas_cumprod, such as DDIM; {type(pipe.scheduler).__name__} has none.")
    # at zero terminal SNR the last noise predictions do not depend on the text
    if pipe.scheduler.config.get("rescale_betas_zero_snr", False):
        raise UserError("guidance edits do not work with zero terminal SNR (rescale_betas_zero_snr in this pipeline's scheduler).")


def is_hook_of(hook: Any, pipe: Any) -> bool:
    """Return whether a forward hook is ours and belongs to this pipeline, or to one that no longer exists."""
    return isinstance(hook, GuidanceHook) and hook.pipe() in (pipe, None)


def text_arguments(pipe: Any, prompt: str, count: int, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments with which a pipeline calls its denoiser for `count` copies of a prompt.

    Args:
        kwargs: those of one of its own calls; the prompt gets as many tokens as there.
    """
    length = kwargs["encoder_hidden_states"].shape[1]
    options = {"device": kwargs["encoder_hidden_states"].device, "num_images_per_prompt": count}
    match spec_of_pipeline(pipe).models:
        case "SDXL":
            sequence, _, pooled, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False, **options)
            sizes = kwargs["added_cond_kwargs"]["time_ids"][-count:]
            return {"encoder_hidden_states": sequence, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
        case "Stable Diffusion 3.x":
            options["max_sequence_length"] = length - pipe.tokenizer_max_length  # of T5
            sequence, _, pooled, _ = pipe.encode_prompt(prompt, None, None, do_classifier_free_guidance=False, **options)
            return {"encoder_hidden_states": sequence, "pooled_projections": pooled}
        case "FLUX.2-klein":
            sequence, positions = pipe.encode_prompt(prompt, max_sequence_length=length, **options)
            return {"encoder_hidden_states": sequence, "txt_ids": positions}
        case _:
            return {"encoder_hidden_states": pipe.encode_prompt(prompt, do_classifier_free_guidance=False, **options)[0]}


class GuidanceHook:
    """A forward hook that adds guidance edits to a denoiser's predictions.

    Most pipelines run their denoiser once a step, for (uncond, cond), and compute u + w (c - u) themselves; FLUX.2's runs it for c and then
    for u. The hook also runs it for the prompts of the guidance edits, and changes what it returns so that the pipeline's own formula gives
    the guided result: in one batch c by change / w, in two calls u by change / (1 - w).
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = weakref.ref(pipe)  # a copy of the denoiser must not copy the pipeline
        self.sampling, self.is_running = SamplingOverrides(), False
        self.last_time, self.step = -1.0, -1
        self.states: list[dict[str, Tensor]] = []
        self.texts: dict[str, dict[str, Any]] = {}  # arguments of the prompts
        self.first_prediction: Tensor | None = None  # of a step in two calls

    def __call__(self, denoiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
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
        x, t = args[:2] if args else (kwargs["hidden_states"], kwargs["timestep"])
        self._follow(sampling, torch.as_tensor(t).flatten()[0].item())
        w, prediction = pipe.guidance_scale, out[0]
        if spec_of_pipeline(pipe).family == "flux2-klein":
            if self.first_prediction is None:
                self.first_prediction = prediction
                return out
            cond, self.first_prediction = self.first_prediction, None
            change = self._change(pipe, denoiser, (args, kwargs), x, prediction, cond)
            return (prediction + (change / (1 - w)).to(prediction.dtype),)
        uncond, cond = prediction.chunk(2)
        change = self._change(pipe, denoiser, (args, kwargs), x[: len(x) // 2], uncond, cond)
        return (torch.cat((uncond, cond + (change / w).to(cond.dtype))),)

    def _follow(self, sampling: SamplingOverrides, time: float) -> None:
        """Note the step, and start over where another trajectory begins."""
        if sampling is not self.sampling or time > self.last_time:
            self.sampling, self.states, self.texts = sampling, [{} for _ in sampling.guidance_edits], {}
            self.step, self.first_prediction = -1, None
            self.last_time = float("inf")
        self.step += time < self.last_time
        self.last_time = time

    def _change(self, pipe: Any, denoiser: Any, call: tuple[Any, Any], x: Tensor, uncond: Tensor, cond: Tensor) -> Tensor:
        """Return what the edits add to the guided prediction of latents x (B, ...), in the network's own space."""
        (args, kwargs), count = call, len(x)
        a = self._alpha_bar(pipe, args[1], x.device) if args else None

        def to_prediction(native: Tensor) -> Tensor:
            return native.float() if a is None else (1 - a).sqrt() * x.float() + a.sqrt() * native.float()

        change = torch.zeros_like(cond, dtype=torch.float32)
        for edit, state in zip(self.sampling.guidance_edits, self.states, strict=True):
            if edit.prompt not in self.texts:
                self.texts[edit.prompt] = text_arguments(pipe, edit.prompt, count, kwargs)
            own = {} if args else {"hidden_states": x, "timestep": kwargs["timestep"][-count:]}
            self.is_running = True
            try:
                concept = denoiser(*((x, args[1]) if args else ()), **{**kwargs, **own, **self.texts[edit.prompt], "return_dict": False})[0]
            finally:
                self.is_running = False
            predictions = (to_prediction(native) for native in (cond, uncond, concept))
            change += edit.guide(*predictions, pipe.guidance_scale, self.step / pipe.num_timesteps, state)
        return change if a is None else change / a.sqrt()

    @staticmethod
    def _alpha_bar(pipe: Any, t: Any, device: torch.device) -> Tensor | None:
        """Return abar of a timestep where the network predicts v; None where its prediction is noise already."""
        if pipe.scheduler.config.get("prediction_type", "epsilon") != "v_prediction":
            return None
        alpha_bar: Tensor = pipe.scheduler.alphas_cumprod[int(torch.as_tensor(t).flatten()[0])]
        return alpha_bar.to(device, torch.float32)
