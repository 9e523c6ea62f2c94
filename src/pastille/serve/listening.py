"""The socket that a server listens on: made first, so that nobody is refused while models are opened."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
import sys
from typing import Final

from pastille.errors import OutputError

BACKLOG: Final = 1024
_ATTACH_FILTER: Final = 26  # SO_ATTACH_FILTER of asm-generic/socket.h
# Classic BPF on the TCP header: a packet whose flags are SYN without ACK is dropped, every other one taken.
_NO_SYN: Final = (
    (0x30, 0, 0, 13),  # load the byte of the flags
    (0x54, 0, 0, 0x12),  # of them, ACK and SYN
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
)


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


def take_no_more(listener: socket.socket) -> None:
    """Let no new connection begin, while those that the kernel is making still come about.

    A listening socket that is closed resets every connection which was not accepted yet, though its client
    has connected and may have asked already: under load two or three at each stop. Those that come now are
    not heard, and ask again after a second. Linux alone can do that; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    program = b"".join(struct.pack("HBBI", *step) for step in _NO_SYN)
    held = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HP", len(_NO_SYN), ctypes.addressof(held))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, described)
