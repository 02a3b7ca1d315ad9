"""`erasure studio`: serve the web page."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from app.commands.serve import KEY_VARIABLE
from app.parsing import ModelSource
from app.web.address import LOCAL_HOSTS, listen
from erasure.errors import UserError

if TYPE_CHECKING:
    from socket import socket

    from app.web.images_api import ImagesApi
    from app.web.studio import Studio


@dataclass(frozen=True, kw_only=True)
class StudioCommand:
    """Serve the studio: compare, erase, queue, audit, board. On this machine only, unless --auth gives a user and a password."""

    words: ClassVar[str] = "studio"

    model: ModelSource = "pocket"  # pocket, pocket-flow, a hub id, a diffusers folder, or one .safetensors file
    more_models: tuple[ModelSource, ...] = ()  # models that visitors may choose as well; pocket and pocket-flow always are among them
    runs: Path = Path("runs")  # folder of jobs, edits and audits; the page can read nothing else of this machine
    host: str = "127.0.0.1"  # address to listen on; any other than a local address needs --auth
    port: int = 7860  # 0: any free port
    safety_checker: str = ""  # hub id or folder of a safety checker that hides images; for public pages
    auth: str = ""  # user:password that everyone must give
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    images_api: bool = False  # also answer POST /v1/images/generations, as `erasure serve` does, with every edit on the page
    api_key: str = ""  # what its clients send as their key; default: the variable ERASURE_API_KEY
    root_path: str = ""  # where a proxy puts the page, such as /erasure, if it passes requests on without it
    fleet: str | None = None  # run queued jobs on Ray: local (this machine), auto (the cluster here, or of RAY_ADDRESS), or its HOST:PORT


def run_studio(command: StudioCommand) -> int:
    """Serve the page until this process is stopped.

    Raises:
        UserError: An option cannot be used, or the port is taken.
    """
    from erasure.storage.run import check_output_folder

    login, key = check_login(command), check_api_key(command)
    check_output_folder(command.runs)
    listener = listen(command.host, command.port)  # fails before a model is loaded
    if command.fleet is not None:
        from app.jobs import cluster

        cluster.connect(command.fleet)
    from functools import partial

    import erasure
    from app.web.images_api import ImagesApi
    from app.web.models import StudioModels
    from app.web.safety import load_safety_checker
    from app.web.studio import Studio
    from app.web.studio_images import StudioImages
    from erasure.loading.model_source import SHIPPED_MODELS

    checker = load_safety_checker(command.safety_checker) if command.safety_checker else None
    local = command.host in LOCAL_HOSTS
    sources = tuple(dict.fromkeys((command.model, *command.more_models, *SHIPPED_MODELS)))
    models = StudioModels(sources, partial(erasure.load_model, device=command.device))
    studio = Studio(models, command.runs, is_local=local, checker=checker)
    api = ImagesApi(StudioImages(studio), key) if command.images_api else None
    models.get(command.model)  # what cannot be loaded is known before the page is served
    serve_studio(studio, listener, login, on_fleet=command.fleet is not None, images_api=api, root_path=command.root_path.rstrip("/"))
    return 0


def serve_studio(
    studio: "Studio",
    listener: "socket",
    login: tuple[str, str] | None,
    on_fleet: bool = False,
    images_api: "ImagesApi | None" = None,
    root_path: str = "",
) -> None:
    """Serve the page on a socket and run queued jobs until this process is stopped: one after the other, or on the connected cluster."""
    import torch

    from app.web import page
    from app.web.fleet_queue import FleetQueue
    from app.web.queue_worker import QueueWorker
    from erasure.loading.model_source import SHIPPED_MODELS

    if studio.first_source in SHIPPED_MODELS:
        torch.set_num_threads(1)  # 64x64 images are too small to share among threads; two threads were slower
    worker = FleetQueue(studio.root / "jobs") if on_fleet else QueueWorker(studio.root / "jobs")
    try:
        url = page.start_server(page.make_app(studio, login, images_api, root_path), listener)
        print(f"the studio is at {url}", flush=True)
        studio.prepare()  # while the page is opened; it waits for the edits
        worker.start()
        worker.join()
        if not worker.stop_event.is_set():
            raise RuntimeError("the queue of jobs has ended, for the reason above")
    except KeyboardInterrupt:
        print("the studio has stopped; a job that was running can be continued on its page", file=sys.stderr)
    finally:
        worker.stop()


def check_login(command: StudioCommand) -> tuple[str, str] | None:
    """Check --auth, --port and --host, and return user and password; None without --auth.

    Raises:
        UserError: The port is out of range, the login is malformed, or an open address has no login.
    """
    user, colon, password = command.auth.partition(":")
    if command.auth and not (user and colon and password):
        raise UserError("--auth takes user:password, such as --auth ada:a-long-password.")
    if not 0 <= command.port < 65_536:
        raise UserError(f"--port must be from 0 to 65535, got {command.port}.")
    if command.host not in LOCAL_HOSTS and not command.auth:
        raise UserError(f"--host {command.host} can be reached from other machines; give --auth user:password, or leave it at 127.0.0.1.")
    return (user, password) if command.auth else None


def check_api_key(command: StudioCommand) -> str:
    """Check the options of the images API and of a proxy, and return the key.

    Raises:
        UserError: There is a key but no API, an API that others can reach has no key, or the root path is not one.
    """
    key = command.api_key or os.environ.get(KEY_VARIABLE, "")
    if command.api_key and not command.images_api:
        raise UserError("--api-key is the key of --images-api; give both.")
    if command.images_api and command.host not in LOCAL_HOSTS and not key:
        raise UserError(f"--images-api on --host {command.host} can be reached from other machines; give --api-key.")
    if command.images_api and command.auth and not key:
        raise UserError("--images-api cannot be reached behind the login of --auth without a key of its own; give --api-key.")
    if command.root_path and not (command.root_path.startswith("/") and urlsplit(command.root_path).path == command.root_path):
        raise UserError(f"--root-path is a path such as /erasure, got {command.root_path!r}.")
    return key
