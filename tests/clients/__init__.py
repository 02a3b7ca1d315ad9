"""Which layers of Stable Diffusion 1.x and 2.x other programs change when they load a LoRA, and by how much.

The programs are not run. Each file holds one program's naming rules, written independently from reading its key code: ComfyUI
(comfy/lora.py, comfy/utils.py, comfy/weight_adapter/lora.py), A1111 (extensions-builtin/Lora: networks.py, network_lora.py), kohya's
sd-scripts (networks/merge_lora.py at 48d368f), stable-diffusion.cpp (src/name_conversion.cpp and src/model/adapter/lora.hpp at 97d2990), as
of 2026-11-27. checkpoint.py has the names by which all of them read a checkpoint.

Every rule takes the tensors of a LoRA file and the shapes of the base's parameters by this project's names, and gives the change of each
parameter that the program would apply. What it silently skips is missing there.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tests.clients import a1111, comfyui, kohya, sd_cpp

Shapes = Mapping[str, torch.Size]
LoraRule = Callable[[Mapping[str, Tensor], Shapes], dict[str, Tensor]]

CLIENTS: dict[str, LoraRule] = {
    "ComfyUI": comfyui.apply_lora,
    "A1111": a1111.apply_lora,
    "kohya merge": kohya.apply_lora,
    "sd.cpp": sd_cpp.apply_lora,
}
