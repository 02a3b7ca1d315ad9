"""Erase concepts from diffusion models.

Importing this package turns off the telemetry of the libraries it uses, before any of them is imported. A variable that is already set
keeps its value.
"""

import os

# onnxruntime, which diffusers imports if it is installed, looks up its telemetry host a few seconds after the import. It reads this
# variable once, when it is imported; its `disable_telemetry_events()` comes too late to stop that lookup (onnxruntime 1.31).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # huggingface_hub, and diffusers, transformers and gradio through it
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio's usage statistics and version check
