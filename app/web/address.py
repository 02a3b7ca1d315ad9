"""The address where the page listens. This module does not import gradio, so that a taken port is reported at once."""

import os
import socket

from erasure.errors import UserError

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")  # names of this machine on itself


def listen(host: str, port: int) -> socket.socket:
    """Open a socket on an address; port 0 takes any free port.

    Raises:
        UserError: The address is not one of this machine, or the port is taken or not allowed.
    """
    message = f"--host {host} is not an address of this machine; leave it at 127.0.0.1, or give 0.0.0.0 for all."
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, reuse_port=False)
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(message) from error
    except OSError as error:
        if error.errno is not None and error.errno < 0:  # an error code of getaddrinfo that create_server wrapped in an OSError
            raise UserError(message) from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(f"cannot listen on {host} port {port}: {reason}; give another --port, or 0 for any free one.") from error
