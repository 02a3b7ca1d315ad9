"""`erasure studio`: the web page."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.parsing import parse_options
from app.web.address import LOCAL_HOSTS, listen
from erasure.errors import UserError
from erasure.storage.run import check_output_folder

if TYPE_CHECKING:
    from socket import socket

    from app.web.studio import Studio


@dataclass(frozen=True, kw_only=True)
class Options:
    """Serve the studio: compare, erase, audit, board. On this machine alone, unless --auth names a user and a password."""

    model: str = "pocket"  # pocket, a hub id, a diffusers folder, or one .safetensors file
    runs: Path = Path("runs")  # where jobs, edits and audits are; nothing else of this machine can be read through the page
    host: str = "127.0.0.1"  # address to listen on; any but this machine's own needs --auth
    port: int = 7860  # 0: any free one
    safety_checker: str = ""  # hub id or folder of a safety checker that hides pictures; for pages that strangers see
    auth: str = ""  # user:password that everyone has to give
    device: str = "auto"  # auto, cpu, cuda, cuda:1


def main(argv: list[str]) -> int:
    options = parse_options(Options, argv, "studio")
    login = check_login(options)
    check_output_folder(options.runs)
    listener = listen(options.host, options.port)  # complains before a model is loaded
    from app.web.safety import load_safety_checker
    from app.web.studio import Studio
    from erasure.loading.loader import load_model

    checker = load_safety_checker(options.safety_checker) if options.safety_checker else None
    local = options.host in LOCAL_HOSTS
    serve_studio(Studio(load_model(options.model, device=options.device), options.runs, is_local=local, checker=checker), listener, login)
    return 0


def serve_studio(studio: "Studio", listener: "socket", login: tuple[str, str] | None) -> None:
    """Open the page on a socket and work on the queue until this process is stopped."""
    import torch

    from app.web import page
    from app.web.queue_worker import QueueWorker

    if studio.is_pocket:
        torch.set_num_threads(1)  # a picture of 64x64 is too little work to share; two threads made the page wait longer
    print("making a first erasure to look at" if studio.is_pocket else f"loaded {studio.source}", file=sys.stderr)
    studio.prepare()
    worker = QueueWorker(studio.root / "jobs")
    worker.start()
    try:
        url = page.start_server(page.make_app(page.build_page(studio), local=studio.is_local, login=login), listener)
        print(f"the studio is at {url}", flush=True)
        worker.join()
    finally:
        worker.stop()


def check_login(options: Options) -> tuple[str, str] | None:
    """User and password.

    Raises:
        UserError: a port that does not exist, an open address without a login, or a login that is none.
    """
    user, colon, password = options.auth.partition(":")
    if options.auth and not (user and colon and password):
        raise UserError("--auth takes user:password, such as --auth ada:a-long-password.")
    if not 0 <= options.port < 65_536:
        raise UserError(f"--port is a number from 0 to 65535, got {options.port}.")
    if options.host not in LOCAL_HOSTS and not options.auth:
        raise UserError(f"--host {options.host} can be reached from other machines; give --auth user:password, or leave it at 127.0.0.1.")
    return (user, password) if options.auth else None
