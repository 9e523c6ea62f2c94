"""From settings to what is served: the parts, put together; nothing here knows HTTP."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pastille.errors import UsageError
from pastille.serve import logs
from pastille.serve.audit import AuditLog, open_audit
from pastille.serve.registry import Changed, OpenedRegistry, open_registry
from pastille.serve.settings import Settings
from pastille.serve.standing import Standing
from pastille.serve.watch.monitor import Alarmed, open_monitor


def stand(settings: Settings) -> Standing:
    """A server that has opened no model yet, but can already say so.

    Raises:
        UsageError: Another server writes to the audit log.
        IntegrityError: The audit log was changed.
    """
    audit = None
    if settings.audit is not None:
        audit = open_audit(settings.audit, required=settings.audit_required)
    monitor = open_monitor(settings, on_alarm=lambda alarmed: _note_alarm(alarmed, audit))
    return Standing(settings=settings, monitor=monitor, audit=audit)


async def open_models(standing: Standing, directories: Sequence[Path]) -> OpenedRegistry:
    """Open every bundle beside the event loop, and let it be asked.

    Raises:
        IntegrityError: A bundle is not what was written, or no variant of it is valid here.
        UsageError: The bundles, or the mode, do not go together.
    """
    for directory in directories:
        if not directory.is_dir():
            raise UsageError(f"{directory} is no folder; serve takes a bundle's, e.g. runs/NAME/STAMP/bundle")
    registry = await open_registry(
        directories,
        standing.settings,
        monitor=standing.monitor,
        on_event=lambda changed: _note(changed, standing),
    )
    standing.registry = registry
    standing.phase = "serving"
    return registry


def _note(changed: Changed, standing: Standing) -> None:
    model, version, detail = changed.model, changed.version, changed.detail
    logs.event(changed.what, model=model, version=version, detail=detail)
    if changed.what == "closed":
        standing.forget(model, version)
    if standing.audit is not None:
        standing.audit.note(changed.what, model=model, version=version, detail=detail)


def _note_alarm(alarmed: Alarmed, audit: AuditLog | None) -> None:
    facts = {
        "kind": alarmed.kind,
        "model": alarmed.model,
        "version": alarmed.version,
        "detail": alarmed.detail,
    }
    logs.event("alarm", level=logging.WARNING, **facts)
    if audit is not None:
        audit.note("alarm", **facts)
