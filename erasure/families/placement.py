"""Where the components of a pipeline are: on the device, or in main memory while others compute (`--offload`)."""

from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch import nn

from erasure.config.choices import Offload, VaeMode
from erasure.errors import UserError

SMALL = 2**30  # bytes of text encoders and VAE that may stay on a graphics card
TILE_PIXELS = 512  # height and width of the tiles of `--vae tiled`


def components_of(pipe: Any) -> dict[str, nn.Module]:
    """Return every network of a pipeline by component."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def bytes_of(network: nn.Module) -> int:
    """Return the size of a network's parameters and buffers in bytes; what two names share counts once."""
    values = {id(value): value for value in (*network.parameters(), *network.buffers())}
    return sum(value.numel() * value.element_size() for value in values.values())


def choose_offload(sizes: dict[str, int], denoiser: str, memory: int) -> Offload:
    """Return what `--offload auto` is on a graphics card.

    Text encoders beyond `SMALL` never stay, such as T5 and Qwen3. The denoiser makes room for them if both together take more than three
    quarters of the card.

    Args:
        sizes: bytes of every component.
        memory: bytes of the card.
    """
    others = [size for name, size in sizes.items() if name != denoiser]
    if sizes[denoiser] + max(others, default=0) > 0.75 * memory:
        return "all"
    return "text" if sum(others) > SMALL else "none"


def place(pipe: Any, denoiser: str, device: torch.device, offload: Offload = "auto") -> None:
    """Move a pipeline to a device, or let its components take turns there.

    Raises:
        UserError: an offload is asked for on a device that has no memory of its own.
    """
    if device.type != "cuda" and offload in ("text", "all"):
        raise UserError(f"--offload {offload} keeps components in main memory instead of a GPU's, and {device} has none; leave it out.")
    if offload == "auto":
        sizes = {name: bytes_of(network) for name, network in components_of(pipe).items()}
        memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
        offload = choose_offload(sizes, denoiser, memory) if memory else "none"
    if offload == "none":
        pipe.to(device)
    else:
        take_turns(pipe, device, {denoiser} if offload == "text" else set())


def take_turns(pipe: Any, device: torch.device, stays: set[str]) -> None:
    """Let every component of a pipeline come to the device when it computes, and go when another one does.

    Args:
        stays: components that move to the device now and never leave it.
    """
    turns = Turns(components_of(pipe), device, stays)
    for name, network in turns.components.items():
        add_hook_to_module(network, TurnHook(turns, name))
    for name in stays:
        turns.begin(name)


def bring(network: nn.Module) -> None:
    """Bring a component to the device where it computes: code that reads weights without a forward pass needs them there."""
    hook = getattr(network, "_hf_hook", None)
    if isinstance(hook, TurnHook):
        hook.turns.begin(hook.name)


class Turns:
    """Which components are on the device.

    A component stays while it trains, and while gradients are on and a backward pass may still go through its last forward pass.
    """

    def __init__(self, components: dict[str, nn.Module], device: torch.device, stays: set[str]) -> None:
        self.components, self.device, self.stays = components, device, stays
        self.present: set[str] = set()
        self.has_graph: set[str] = set()  # components whose last forward pass had gradients on

    def begin(self, name: str) -> None:
        """Send away what can leave, then bring a component."""
        for other in self.present - self.stays - {name}:
            if not self._is_needed(other):
                move(self.components[other], torch.device("cpu"))
                self.present.remove(other)
        if name not in self.present:
            move(self.components[name], self.device)
            self.present.add(name)
        (self.has_graph.add if torch.is_grad_enabled() else self.has_graph.discard)(name)

    def _is_needed(self, name: str) -> bool:
        trains = any(p.requires_grad for p in self.components[name].parameters())
        return trains or (name in self.has_graph and torch.is_grad_enabled())


class TurnHook(ModelHook):  # type: ignore[misc]  # accelerate has no types
    """Begins a component's turn before its forward pass. diffusers calls it before a VAE's `encode` and `decode` as well."""

    def __init__(self, turns: Turns, name: str) -> None:
        self.turns, self.name = turns, name
        self.execution_device = turns.device  # where diffusers creates latents, and where the pipeline says it computes

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.turns.begin(self.name)
        return send_to_device(args, self.turns.device), send_to_device(kwargs, self.turns.device)


def move(network: nn.Module, device: torch.device) -> None:
    """Move a network in place; its parameters stay the same objects, so that optimizers and edits keep them."""
    network.to(device)


def set_vae_mode(vae: Any, mode: VaeMode, device: torch.device) -> None:
    """Choose how images and latents are converted: all at once, one image at a time, or in tiles of `TILE_PIXELS`.

    Tiles overlap and are blended, so an image is not quite what it would be as a whole.
    """
    if mode == "auto":
        mode = "whole" if device.type == "cpu" else "sliced"
    vae.disable_slicing()
    vae.disable_tiling()
    if mode in ("sliced", "tiled"):
        vae.enable_slicing()
    if mode == "tiled":
        vae.enable_tiling()
        vae.tile_sample_min_size = TILE_PIXELS
        vae.tile_latent_min_size = TILE_PIXELS // 2 ** (len(vae.config.block_out_channels) - 1)
