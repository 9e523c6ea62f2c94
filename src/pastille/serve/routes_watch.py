"""What people and programs watch the server with: metrics, the monitor, its page, and later labels."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pastille.serve.endpoint import Asked
from pastille.serve.errors import Refused
from pastille.serve.http_answers import Headers, Outcome, as_json
from pastille.serve.page import CONTENT_POLICY, page_files
from pastille.serve.routes_about import small_json
from pastille.serve.values import Label

_METRICS = b"text/plain; version=0.0.4; charset=utf-8"
_PAGE_HEADERS: Headers = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-cache"),
)
_MOST_TEXT, _MOST_GROUPS, _MOST_LABELS = 256, 16, 1000


async def metrics(asked: Asked) -> Outcome:
    """``GET /metrics``, for Prometheus."""
    registry = asked.standing.registry
    statuses = () if registry is None else registry.statuses()
    return Outcome(body=asked.standing.monitor.metrics(statuses), media_type=_METRICS)


async def monitor(asked: Asked) -> Outcome:
    """``GET /monitor.json[?model=M]``: what the page shows."""
    models = asked.standing.models
    names = list(dict.fromkeys([models.default, *(s.model for s in models.statuses())]))
    status = models.engine(asked.query.get("model", models.default)).status
    return as_json({**asdict(asked.standing.monitor.snapshot(status)), "models": names})


async def feedback(asked: Asked) -> Outcome:
    """``POST /feedback``: what turned out to be right for an earlier request."""
    return as_json(dict(asked.standing.monitor.feedback(label_of(await small_json(asked)))))


async def page(path: str) -> Outcome:
    """A file of the page; it holds nothing of the server."""
    media_type, body = page_files()[path]
    return Outcome(body=body, media_type=media_type.encode(), headers=_PAGE_HEADERS)


def label_of(told: dict[str, Any]) -> Label:
    """A label as it is sent.

    Raises:
        Refused: ``malformed``.

    Example:
        >>> label_of({"request_id": "7f3a", "label": "glioma", "groups": {"sex": "female"}}).row
        0
    """
    unknown = sorted(set(told) - {"request_id", "label", "row", "groups"})
    if unknown:
        raise Refused("malformed", "feedback takes request_id, label, row and groups, and nothing else")
    row, groups = told.get("row", 0), told.get("groups", {})
    if not isinstance(row, int) or isinstance(row, bool) or row < 0:
        raise Refused("malformed", "row must be a whole number from 0")
    if not isinstance(groups, dict) or len(groups) > _MOST_GROUPS:
        raise Refused("malformed", f"groups must be an object of at most {_MOST_GROUPS} names")
    return Label(
        request_id=_text(told.get("request_id"), "request_id"),
        label=_labels(told.get("label")),
        row=row,
        groups={_text(k, "a group"): _text(v, "a group's value") for k, v in groups.items()},
    )


def _labels(told: object) -> str | tuple[str, ...]:
    if isinstance(told, list) and len(told) <= _MOST_LABELS:
        return tuple(_text(one, "label") for one in told)
    return _text(told, "label")


def _text(told: object, what: str) -> str:
    if not isinstance(told, str) or not 0 < len(told) <= _MOST_TEXT:
        raise Refused("malformed", f"{what} must be a text of 1 to {_MOST_TEXT} characters")
    return told
