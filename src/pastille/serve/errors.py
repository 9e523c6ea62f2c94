"""Why a request was not answered, and the HTTP status that says so."""

from __future__ import annotations

from typing import Literal

from pastille.errors import PastilleError

Cause = Literal[
    "malformed",  # 400
    "not_finite",  # 400
    "out_of_range",  # 400: far outside the reference statistics, where the setting is to refuse
    "unauthorized",  # 401
    "forbidden",  # 403
    "not_found",  # 404
    "method",  # 405
    "slow",  # 408: headers or body did not arrive in time
    "too_large",  # 413
    "media_type",  # 415
    "rate",  # 429
    "fault",  # 500: every variant failed on this request
    "overload",  # 503: the queue is full, or the request waited too long in it
    "not_ready",  # 503: starting, draining, or no valid variant
    "deadline",  # 503: no variant answered in time
]

STATUS: dict[Cause, int] = {
    "malformed": 400,
    "not_finite": 400,
    "out_of_range": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method": 405,
    "slow": 408,
    "too_large": 413,
    "media_type": 415,
    "rate": 429,
    "fault": 500,
    "overload": 503,
    "not_ready": 503,
    "deadline": 503,
}


class Refused(PastilleError):  # noqa: N818  (what happens to the request, not a fault)
    """A request gets no answer but this: one line without anything of the request's content in it.

    Attributes:
        cause: What kind of refusal it is; the status follows from it.
        retry_after_s: When to try again: sent as ``Retry-After``, rounded up. None says nothing.
    """

    def __init__(self, cause: Cause, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.cause = cause
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.cause]
