"""Ray clusters: start one on this machine, or connect to one."""

import contextlib
import logging
import os
import secrets
import socket
from pathlib import Path
from typing import Any

from app.child_command import ROOT
from erasure.errors import UserError

LOCAL, AUTO = "local", "auto"
CONNECT_SECONDS = 10.0
OBJECT_STORE_BYTES = 100_000_000  # of a cluster started here; only tasks and results pass through it, no tensors


def connect(address: str) -> None:
    """Start a Ray cluster on this machine (local), or connect to one: auto is the one of RAY_ADDRESS or on this machine; or HOST:PORT.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """
    check_address(address)
    if address not in (LOCAL, AUTO):
        check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    choose_authentication(address)
    try:
        import ray
    except ImportError as error:
        raise UserError("--fleet needs Ray: pip install 'erasure-studio[ray]'.") from error
    # Ray puts the current folder first on its workers' import path, where a user's own app.py would run in place of ours
    with contextlib.chdir(ROOT):
        try:
            own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES} if address == LOCAL else {}
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            hint = "name its HOST:PORT, and set RAY_AUTH_TOKEN if it asks for a token"
            hint = "start one with `ray start --head`, or use --fleet local" if address == AUTO else hint
            raise UserError(f"no Ray cluster at {address!r} ({last_line(str(error))}); {hint}.") from error


def choose_authentication(address: str) -> None:
    """Guard a cluster that starts here with a token of its own, and use the user's token for another one, unless RAY_AUTH_MODE is set.

    Ray's ports can be reached from other machines, and whoever connects can run code.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    if address == LOCAL:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    elif os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ["RAY_AUTH_MODE"] = "token"  # Ray itself does this for a cluster that it finds on this machine, and for no other


def check_address(address: str) -> None:
    """Check that an address is local, auto or HOST:PORT.

    Raises:
        UserError: It is none of them.
    """
    host, _, port = address.rpartition(":")
    if address not in (LOCAL, AUTO) and not (host and port.isdecimal() and "/" not in host):
        raise UserError(f"--fleet takes local, auto, or the HOST:PORT of a Ray cluster that this machine is part of; got {address!r}.")


def check_reachable(address: str) -> None:
    """Check that something answers at HOST:PORT; Ray itself would try for minutes.

    Raises:
        UserError: Nothing does.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster at {address} ({error}); name its HOST:PORT, auto or local.") from error


def disconnect() -> None:
    """Leave the cluster; one that `connect` started ends, and so do the workers on any other."""
    import ray

    ray.shutdown()


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
