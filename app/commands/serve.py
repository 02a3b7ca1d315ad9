"""`erasure serve MODEL [EDIT...]`: a model with edits as an images API, for tools that attack models as a service."""

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from app.model_options import load_with_options
from app.parsing import ModelSource, check_edits_exist
from app.web.address import LOCAL_HOSTS, listen
from erasure.config.choices import Attention, Offload, Precision, VaeMode
from erasure.errors import UserError

KEY_VARIABLE = "ERASURE_API_KEY"
DEFAULT_PORT = 7861


@dataclass(frozen=True, kw_only=True)
class ServeCommand:
    """Serve a model with edits applied as OpenAI's images API: POST /v1/images/generations. For tools such as PyRIT and promptfoo.

    The model is called `erased` there; `base` is the same without the edits. On this machine only, unless there is a key.
    """

    words: ClassVar[str] = "serve"

    model: Annotated[ModelSource, tyro.conf.Positional] = "pocket"  # pocket, pocket-flow, a hub id, a diffusers folder, or one .safetensors
    edits: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()  # folders that `erasure erase` made; applied together
    strength: float = 1.0  # strength of the edits: 0 is the base, 1 the edit as trained; from -10 to 10
    host: str = "127.0.0.1"  # address to listen on; any other than a local address needs a key
    port: int = DEFAULT_PORT  # 0: any free port
    key: str = ""  # what clients send as their API key; default: the variable ERASURE_API_KEY; neither: no key
    images_per_request: int = 4  # the largest n of a request
    requests_per_minute: int = 120  # more are answered with code 429
    safety_checker: str = ""  # hub id or folder of a safety checker; a request with a flagged image is refused
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    dtype: Precision = "auto"  # what the model computes in; auto: bf16 on a CPU that has it, fp16 on a GPU
    attention: Attention = "auto"  # attention kernel
    offload: Offload = "none"  # keep parts of a large model in main memory
    vae: VaeMode = "auto"  # how images are decoded
    resolution: int | None = None  # height and width of the images in pixels; default: the model's own
    images_at_once: int | None = None  # images sampled together; default: by their size, and less where a GPU has too little memory


def run_serve(command: ServeCommand) -> int:
    """Answer requests until this process is stopped.

    Raises:
        UserError: An option cannot be used, the edits do not fit the model, or the port is taken.
    """
    from erasure.config.strength import check_strength

    key = check_limits(command)
    check_edits_exist(command.edits)
    check_strength(command.strength)
    listener = listen(command.host, command.port)  # fails before a model is loaded
    import uvicorn

    import erasure
    from app.web.access import AccessControl
    from app.web.image_models import EditedModel
    from app.web.images_api import ImagesApi, make_images_app, make_site
    from app.web.safety import load_safety_checker
    from erasure.edits import load_edits

    checker = load_safety_checker(command.safety_checker) if command.safety_checker else None
    edits = load_edits(command.edits) if command.edits else ()
    model = load_with_options(command.model, command)
    with erasure.apply_edits(model, edits, strength=command.strength):
        pass  # whether they fit is known now, not at the first request
    models = EditedModel(model, edits, command.strength, checker)
    api = ImagesApi(models, key, command.images_per_request, command.requests_per_minute)
    site = make_site(make_images_app(api))
    app = AccessControl(site, LOCAL_HOSTS if command.host in LOCAL_HOSTS else ())
    host, port = listener.getsockname()[:2]
    shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    print(f"POST http://{shown}:{port}/v1/images/generations, models {', '.join(models.names)}", flush=True)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(app, log_level="warning", proxy_headers=False)).run(sockets=[listener])
    print("the server has stopped", file=sys.stderr)
    return 0


def check_limits(command: ServeCommand) -> str:
    """Check the port, the limits and the key, and return the key.

    Raises:
        UserError: One of them is out of range, or an open address has no key.
    """
    key = command.key or os.environ.get(KEY_VARIABLE, "")
    for flag, value, low, high in (
        ("--port", command.port, 0, 65_535),
        ("--images-per-request", command.images_per_request, 1, 10),
        ("--requests-per-minute", command.requests_per_minute, 1, 100_000),
    ):
        if not low <= value <= high:
            raise UserError(f"{flag} must be from {low} to {high:,}, got {value}.")
    if command.host not in LOCAL_HOSTS and not key:
        raise UserError(f"--host {command.host} can be reached from other machines; give --key, or leave it at 127.0.0.1.")
    return key
