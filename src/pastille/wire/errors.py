"""Why bytes are not what the protocol says."""

from __future__ import annotations

from typing import Literal

from pastille.errors import PastilleError

WireCause = Literal["malformed", "not_finite", "too_large", "media_type"]


class WireError(PastilleError):
    """A body that is not as the protocol says: one line without anything of its content in it.

    Attributes:
        cause: What kind of fault it is; a server's status follows from it.
    """

    def __init__(self, cause: WireCause, message: str) -> None:
        super().__init__(message)
        self.cause: WireCause = cause


def malformed(message: str) -> WireError:
    """The body contradicts the protocol, or the model that it asks."""
    return WireError("malformed", message)


def too_large(message: str) -> WireError:
    """The body asks for more than is allowed."""
    return WireError("too_large", message)
