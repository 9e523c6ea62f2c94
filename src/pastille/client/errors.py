"""Why a server gave no answer."""

from __future__ import annotations

from pastille.errors import PastilleError


class ServerError(PastilleError):
    """A server refused, failed, or could not be reached; one line, with what the server said.

    Attributes:
        status: HTTP status of the refusal; None where no answer came.
        retry_after_s: When the server asks to be tried again.
    """

    def __init__(
        self, message: str, *, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
