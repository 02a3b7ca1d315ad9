"""The studio on pocket as a Hugging Face Space (docs/space.md). Not named app.py: that would hide the package `app`."""

from pathlib import Path

from app.web.page import build, launch
from app.web.studio import Studio
from app.web.worker import Worker
from erasure.loading import load_model

if __name__ == "__main__":
    studio = Studio(load_model("pocket"), Path("runs"), local=False)
    studio.prepare()
    worker = Worker(studio.root / "jobs")
    worker.start()
    launch(build(studio), host="0.0.0.0", port=7860)  # a Space's own proxy stands before this port
    worker.join()
