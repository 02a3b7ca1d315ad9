"""Erase concepts from text-to-image diffusion models.

    import erasure

    model = erasure.load_model("pocket")
    edit = erasure.erase(model, "neon", method="esd", out="runs/neon")
    edit.apply(model.pipe)

Functions that take a model take a source such as "pocket" as well, which `load_model` loads. A mistake of the caller is a UserError.
Importing this package imports no torch; the names below are loaded when they are first used. It turns off the telemetry of the libraries it
uses, before any of them is imported; a variable that is already set keeps its value.
"""

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING

from erasure.lazy_library import import_lazily

if TYPE_CHECKING:
    __version__: str
    from erasure.concept import Concept
    from erasure.edits import Edit, apply_edits
    from erasure.erasing import Erasure, erase, prepare
    from erasure.errors import UserError
    from erasure.export import export_edit
    from erasure.families.base import DiffusionModel
    from erasure.families.cost import Cost
    from erasure.loading.loader import load_model
    from erasure.method_list import MethodDescription, list_methods

__all__ = [
    "Concept",
    "Cost",
    "DiffusionModel",
    "Edit",
    "Erasure",
    "MethodDescription",
    "UserError",
    "__version__",
    "apply_edits",
    "erase",
    "export_edit",
    "list_methods",
    "load_model",
    "prepare",
]

# onnxruntime, which diffusers imports if it is installed, looks up its telemetry host a few seconds after the import. It reads this
# variable once, when it is imported; its `disable_telemetry_events()` comes too late to stop that lookup (onnxruntime 1.31).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # huggingface_hub, and diffusers, transformers and gradio through it
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio's usage statistics and version check
# diffusers imports bitsandbytes if it is installed, which takes a second; on a CPU it warns that it lacks a kernel which nothing here uses
import_lazily("bitsandbytes")
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_MODULES = {  # where the public names are defined
    "Concept": "erasure.concept",
    "Cost": "erasure.families.cost",
    "DiffusionModel": "erasure.families.base",
    "Edit": "erasure.edits",
    "Erasure": "erasure.erasing",
    "MethodDescription": "erasure.method_list",
    "UserError": "erasure.errors",
    "apply_edits": "erasure.edits",
    "erase": "erasure.erasing",
    "export_edit": "erasure.export",
    "list_methods": "erasure.method_list",
    "load_model": "erasure.loading.loader",
    "prepare": "erasure.erasing",
}

if not TYPE_CHECKING:  # a type checker would take every name for one that exists

    def __getattr__(name: str) -> object:  # PEP 562
        if name == "__version__":
            return import_module("importlib.metadata").version("erasure-studio")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
