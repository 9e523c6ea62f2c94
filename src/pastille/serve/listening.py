"""The socket that a server listens on: made first, so that nobody is refused while models are opened."""

from __future__ import annotations

import errno
import socket
from typing import Final

from pastille.errors import OutputError

BACKLOG: Final = 1024


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections.

    Raises:
        OutputError: The address is taken, or not of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        what = "it is taken; choose another --port" if error.errno == errno.EADDRINUSE else error.strerror
        raise OutputError(f"cannot listen on {host}:{port}: {what}") from None
    listener.setblocking(False)
    return listener
