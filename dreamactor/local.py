"""Pages that this machine serves: a socket to listen on, and who may ask."""

from __future__ import annotations

import socket

from dreamactor.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names under which nobody but this machine is reached."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that a server can use.

    Raises:
        ConfigError: The address cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(64)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{host}:{port} cannot be listened on: {error}; try --port 0 for any free one"
        ) from error
    return found
