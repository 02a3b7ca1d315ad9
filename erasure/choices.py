"""Choices that the command line offers and the model takes. No torch here, so that help is quick."""

from typing import Literal

Region = Literal["xattn", "xattn-kv", "noxattn", "selfattn", "ff-out", "full", "text-encoder"]
Attention = Literal["auto", "sdpa", "eager", "xformers"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Layout = Literal["kohya", "diffusers"]  # names in a LoRA file
Removable = Literal["caches", "downloads", "incomplete"]
