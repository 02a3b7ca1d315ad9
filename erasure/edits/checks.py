"""Checks before an edit is applied or reverted: does it fit, is this its base, and do the weights still hold what the edits put there?"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from erasure.edits import deltas
from erasure.edits.rounding import find_cast_dtype, find_changed, holds_value
from erasure.edits.stacking import EditStack, apply_stack, stack_of
from erasure.errors import UserError
from erasure.families.parameters import fingerprint, named_parameters, unwrap, unwrapped_parameters
from erasure.families.pipelines import FAMILY_PIPELINES, PIPELINES
from erasure.families.supported_models import spec_of_pipeline

if TYPE_CHECKING:
    from erasure.edits.edit import Edit

DENOISERS, TEXT_ENCODERS = ("unet", "transformer"), ("text_encoder", "text_encoder_2")  # components of pipelines
OFFLOADED_MESSAGE = "Weights are not in memory, since sequential offloading keeps them elsewhere: call pipe.remove_all_hooks() first."
CHANGED_MESSAGE = (
    "Something else changed them since: training, or LoRAs that were fused and unfused and left more than rounding explains. "
    "Load the pipeline again."
)


def networks_of(pipe: Any) -> dict[str, nn.Module]:
    """Return the networks that edits can change, by the names of their components, as far as the pipeline has them.

    Large language models that serve as text encoders (T5, Qwen) are not among them: no method trains them.
    """
    modules = {part: getattr(pipe, part, None) for part in (*DENOISERS, *TEXT_ENCODERS)}
    return {
        part: network for part, network in modules.items() if isinstance(network, nn.Module) and (part in DENOISERS or _is_clip(network))
    }


def _is_clip(network: nn.Module) -> bool:
    return any(base.__name__.startswith("CLIPText") for base in type(unwrap(network)).__mro__)


def parameters_of(pipe: Any) -> dict[str, nn.Parameter]:
    """Return every parameter that an edit may name, by "<component>.<name>", also of wrapped and compiled layers."""
    return named_parameters(networks_of(pipe))


def check_edit_fits(edit: "Edit", pipe: Any) -> None:
    """Check that a pipeline has the parameters of an edit, in the same shapes and in memory.

    Raises:
        UserError: no pipeline with a denoiser and a text encoder, weights that are not in memory, parameters of other names or shapes,
            or, for a one-step generator, a schedule without its timestep.
    """
    networks = networks_of(pipe)
    components = {
        "unet or transformer": any(part in networks for part in DENOISERS),
        "text_encoder": getattr(pipe, "text_encoder", None) is not None,
    }
    if missing := [name for name, is_there in components.items() if not is_there]:
        hint = "; give its pipe" if hasattr(pipe, "pipe") else ""  # a DiffusionModel
        parts = " and no ".join(missing)
        raise UserError(f"an edit goes into a diffusers pipeline; this {type(pipe).__name__} has no {parts}{hint}.")
    spec, made_on = spec_of_pipeline(pipe), FAMILY_PIPELINES.get(edit.info.base["family"])
    if made_on and PIPELINES[made_on] != spec:
        raise UserError(
            f"{edit.name} was made on a {PIPELINES[made_on].models} model ({edit.info.base['source']}); this {type(pipe).__name__} is one "
            f"of {spec.models}. On the command line --model {edit.info.base['source']} is its model. Two models' edits do not combine."
        )
    pipe_parameters = named_parameters(networks)
    if any(p.is_meta for p in pipe_parameters.values()):
        raise UserError(f"{edit.name} cannot be applied. {OFFLOADED_MESSAGE}")
    for name in sorted(edit.moved_parameters()):
        shape = tuple(pipe_parameters[name].shape) if name in pipe_parameters else None
        if shape is None or not deltas.fits_shape(edit.tensors, name, shape):
            hints = " ".join(find_obstacles(pipe))
            raise UserError(
                f"{edit.name} does not fit this model: {name} is {shape or 'missing'} here and has another size in the edit "
                f"(made on {edit.info.base['source']}).{' ' if hints else ''}{hints}"
            )
    if edit.info.product == "one-step":
        _check_timestep(edit, pipe)


def _check_timestep(edit: "Edit", pipe: Any) -> None:
    """Check that the schedule of a pipeline has the timestep of a one-step generator."""
    init_timestep = int(edit.info.fields["init_timestep"])
    num_timesteps = getattr(getattr(pipe, "scheduler", None), "config", {}).get("num_train_timesteps", 0)
    if init_timestep >= num_timesteps:
        raise UserError(
            f"{edit.name} generates at timestep {init_timestep} (init_timestep in its edit.json); the schedule of this pipeline "
            f"has {num_timesteps}, counted from 0."
        )


def check_base(edit: "Edit", pipe: Any, other_base: bool) -> None:
    """Check that a pipeline holds the base of an edit, and the edits on top of which it was made.

    Raises:
        UserError: an edit underneath is missing; another base, unless `other_base`.
    """
    stack = stack_of(pipe)
    applied_digests = {other.digest() for other, strength in stack.edits if strength == 1.0}
    if missing := [digest for digest in edit.after if digest not in applied_digests]:
        raise UserError(f"{edit.name} was made on top of edit {', '.join(missing)}; apply that one first, at strength 1.")
    if other_base:
        return
    base, actual = edit.info.base, fingerprint(networks_of(pipe), stack.originals)
    if actual != base["fingerprint"]:
        hints = " ".join(
            ["", *(find_obstacles(pipe) or ["Training, or a LoRA fused and unfused, makes another base too: load it again then."])]
        )
        raise UserError(
            f"{edit.name} was made on another base ({base['source']}, {base['fingerprint'][:12]}; this one is {actual[:12]}).{hints} "
            "--other-base, in Python other_base=True, applies it all the same."
        )


@torch.no_grad()
def check_weights_unchanged(edit: "Edit", pipe: Any) -> None:
    """Check that the weights that `edit` moves still hold what the applied edits put there.

    Raises:
        UserError: something else has changed them since; the message names the cause, if it can be seen, and the remedy.
    """
    stack, pipe_parameters = stack_of(pipe), parameters_of(pipe)
    names = sorted(edit.moved_parameters() & stack.originals.keys())
    unavailable = [
        name
        for name in names
        if name not in pipe_parameters or pipe_parameters[name].shape != stack.originals[name].shape or pipe_parameters[name].is_meta
    ]
    # diffusers counts a LoRA as fused until it is unfused, even if it was unloaded meanwhile
    fused = find_fused_parameters(pipe) if not getattr(pipe, "num_fused_loras", 0) else set(names)
    changed = unavailable or [name for name in names if not holds_value(pipe_parameters[name], expected_value(stack, name), name in fused)]
    expected_values = {name: expected_value(stack, name) for name in changed} or find_changed(pipe_parameters, stack.unmoved)
    if not unavailable and (cast_dtype := find_cast_dtype(pipe_parameters, expected_values)):
        raise UserError(
            f"{edit.name} cannot be applied or reverted: the pipeline was cast to {cast_dtype} and back, which dropped digits of "
            f"weights that no edit has a copy of. Cast it to {cast_dtype} again first, then the base comes back in {cast_dtype}; "
            "or load it again."
        )
    if not changed:
        return
    hints = find_obstacles(pipe, stack) or [CHANGED_MESSAGE]
    raise UserError(
        f"{edit.name} cannot be applied or reverted: {len(changed)} of {len(names)} weights, such as {changed[0]}, no longer hold the "
        f"values that the applied edits gave them. {' '.join(hints)}"
    )


def expected_value(stack: EditStack, name: str) -> Tensor:
    """Return the value that the edits in a stack give to a parameter, in its shape."""
    return apply_stack(name, stack.originals[name], stack.edits)


def find_fused_parameters(pipe: Any) -> set[str]:
    """Return the names of the parameters into which a loaded LoRA is fused now."""
    fused_names: set[str] = set()
    for part, network in networks_of(pipe).items():
        names_by_id = {id(p): name for name, p in named_parameters({part: network}).items()}
        for layer in unwrap(network).modules():
            if getattr(layer, "merged", False) is True and hasattr(layer, "base_layer"):
                fused_names |= {names_by_id[id(p)] for _, p in unwrapped_parameters(layer) if id(p) in names_by_id}
    return fused_names


def find_obstacles(pipe: Any, stack: EditStack | None = None) -> list[str]:
    """Return what can be seen in a pipeline that prevents an edit from being applied or reverted: one sentence each, with its remedy."""
    obstacles = []
    if find_fused_parameters(pipe):
        obstacles.append("A LoRA is fused into the weights: call pipe.unfuse_lora() first; a LoRA that is only loaded does no harm.")
    elif getattr(pipe, "num_fused_loras", 0):
        obstacles.append(
            "A LoRA was fused and then unloaded, and its part can no longer be taken out of the weights: load the pipeline again."
        )
    tokenizer: Any = getattr(pipe, "tokenizer", None) or ()
    if (added_tokens := len(tokenizer) - getattr(tokenizer, "vocab_size", len(tokenizer))) > 0:
        obstacles.append(
            f"A textual inversion added {added_tokens} tokens to the text encoder: call pipe.unload_textual_inversion() first, and load it "
            "again afterwards."
        )
    networks = networks_of(pipe)
    for part, network_id in (stack.network_ids if stack else {}).items():
        if part not in networks or id(unwrap(networks[part])) != network_id:
            obstacles.append(
                f"pipe.{part} is not the network that the edit went into: put that one back, or build a new pipeline around this one."
            )
    if any(p.is_meta for p in named_parameters(networks).values()):
        obstacles.append(OFFLOADED_MESSAGE)
    dtypes = {p.dtype for p in named_parameters(networks).values()} - {torch.float32, torch.float16}
    if dtypes and stack is None:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        obstacles.append(f"Weights are {names} here, which drops digits: load the pipeline in float32 or float16, and cast it afterwards.")
    return obstacles
