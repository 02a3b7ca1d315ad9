"""The studio on pocket as a Hugging Face Space (docs/guides/studio.md). Not named app.py: that would hide the package `app`."""

from pathlib import Path

from app.commands.studio import serve_studio
from app.web.address import listen
from app.web.models import StudioModels
from app.web.studio import Studio
from erasure.loading.model_source import SHIPPED_MODELS

if __name__ == "__main__":
    # the proxy of a Space is in front of this port
    serve_studio(Studio(StudioModels(SHIPPED_MODELS), Path("runs"), is_local=False), listen("0.0.0.0", 7860), None)
