"""``pastille audit``: whether a server's log of decisions is as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pastille.cli.console import out, reports_errors, show_error, show_json
from pastille.cli.options import AsJson, examples
from pastille.errors import ExitCode

if TYPE_CHECKING:
    from pastille.serve.audit_verify import AuditVerification, Broken

app = typer.Typer(help="Check the log of decisions that a server keeps.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Check the log of decisions that `pastille serve --audit DIR` keeps."""


@app.command(
    epilog=examples(
        "pastille audit verify audit/",
        "pastille audit verify audit/ --noted 9b3c…e1",
        "pastille audit verify audit/ --json",
    )
)
@reports_errors
def verify(
    folder: Annotated[Path, typer.Argument(help="The folder of the log.", show_default=False)],
    noted: Annotated[
        str | None,
        typer.Option(
            metavar="HASH",
            help="A hash that an earlier check printed and that was kept elsewhere: finds a log that was "
            "rewritten as a whole.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every record, their order, and that none is missing; name the first that does not hold."""
    from pastille.cli.shown import as_data
    from pastille.serve.audit_verify import verify_audit

    found = verify_audit(folder, noted=noted)
    if as_json:
        show_json(as_data(found) | {"intact": found.intact})
    else:
        show_audit(found)
    if found.broken is not None:
        if not as_json:
            show_error(_sentence(found.broken), ExitCode.INTEGRITY)
        raise SystemExit(int(ExitCode.INTEGRITY))


def show_audit(found: AuditVerification) -> None:
    """What a check found, for a person; what is broken goes to stderr."""
    files = f"{found.files} file{'' if found.files == 1 else 's'}"
    what = f"{found.records:,} records in {files}, {found.decisions:,} of them decisions"
    mark = "[green]✓[/]" if found.intact else "up to the break:"
    out.print(f"{mark} {what}")
    if found.first_at is not None:
        out.print(
            f"  from {found.first_at} to {found.last_at}; {found.starts} starts, "
            f"{found.torn} torn lines closed"
        )
    for note in found.notes:
        out.print(f"  {note}", markup=False)
    if found.intact:
        out.print(f"  note this hash elsewhere, for --noted: {found.last_hash}", markup=False)


def _sentence(broken: Broken) -> str:
    where = broken.file if broken.line is None else f"{broken.file}, line {broken.line}"
    return f"the audit log is not as it was written ({broken.how}): {where}: {broken.detail}"
