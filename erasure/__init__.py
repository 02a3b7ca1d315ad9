"""Erase concepts from diffusion models.

Importing this package turns off what the libraries below it report about their users, before any of them is imported. A variable that is
already set stays as it is.
"""

import os

# onnxruntime, which diffusers imports when it is installed, looks up its telemetry host some seconds after the import. It reads this
# variable once, at its own import; its `disable_telemetry_events()` comes too late and does not stop that lookup (onnxruntime 1.31).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # huggingface_hub, and diffusers, transformers and gradio through it
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio's counts and its version check
