"""``pastille serve`` and ``pastille token``: their arguments."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pastille.cli.console import err, fail, out, reports_errors, show_json
from pastille.cli.options import AsJson, Threads, examples
from pastille.errors import ExitCode

if TYPE_CHECKING:
    from pastille.serve.seams import Registry
    from pastille.serve.settings import Settings

EPILOG = examples(
    "pastille serve runs/digits/20261122-120000-1a2b3c4d/bundle",
    "pastille serve bundle/ --host 0.0.0.0 --token-file tokens.txt --audit audit/",
    "pastille serve bundle/ --mode validate",
    "pastille serve bundle/ --mode ab --against next/bundle",
    "pastille serve digits/bundle ecg/bundle --config serve.yaml",
)
TOKEN_EPILOG = examples(
    "pastille token ward-7",
    "pastille token ward-7 >> tokens.txt",
    "pastille token prometheus --scope monitor >> tokens.txt",
    "pastille token ops --scope admin >> tokens.txt",
)
_INHERITED = "PASTILLE_SERVE_LISTENER"  # file descriptor of the socket that a supervisor holds


@reports_errors
def serve(
    bundles: Annotated[list[Path], typer.Argument(help="Directories of bundles.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option(help="A YAML file of settings; what is said here comes before it.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0: any that is free.  [default: 8080]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Serve a single bundle under this name.")] = None,
    mode: Annotated[str | None, typer.Option(help="auto, validate, shadow or ab.  [default: auto]")] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", "--shadow", help="Modes shadow and ab: the other bundle."),
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="Modes shadow and ab: of requests, or of subjects.  [default: 0.1]")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Use this one alone, e.g. fp32.")] = None,
    threads: Threads = None,
    cache: Annotated[str | None, typer.Option(help="Remember answers, e.g. 64MB.  [default: off]")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests per second and token or address.")] = None,
    audit: Annotated[Path | None, typer.Option(help="Folder of the log of decisions.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="Lines as `pastille token` prints them.")] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name that a server without tokens answers to as well.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen to other machines without tokens.")
    ] = False,
    admin: Annotated[bool, typer.Option("--admin", help="Let bundles be swapped over the network.")] = False,
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Log a line per request, without its content.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart/--no-restart", help="Start a server again that was killed.")
    ] = True,
) -> None:
    """Serve bundles over HTTP: Open Inference Protocol v2, /predict, /metrics and a page at /.

    The fastest variant that answers here as it did where it was validated is used, and fp32 where it fails.
    It listens on this machine alone unless --host says otherwise, which needs tokens. SIGTERM finishes what
    was asked; SIGHUP reads the bundles anew.
    """
    from pastille.serve.auth import check_exposure
    from pastille.serve.configuring import read_settings, read_tokens, size_of

    said = {
        "host": host,
        "port": port,
        "name": name,
        "mode": mode,
        "variant": variant,
        "threads": threads,
        "audit": audit,
        "comparison.bundle": against,
        "comparison.share": share,
        "queue.rate": rate,
        "cache_bytes": None if cache is None else size_of(cache),
        "tokens": None if token_file is None else read_tokens(token_file),
        "hosts": frozenset(allow_host) if allow_host else None,
        "insecure": insecure or None,
        "admin": admin or None,
        "log_requests": log_requests or None,
    }
    settings = read_settings(config, said)
    if warning := check_exposure(settings):
        err.print(f"[bold red]warning:[/] {warning}")
    _check_folders(bundles)
    _serve(bundles, settings, restart=restart)


def _check_folders(bundles: Sequence[Path]) -> None:
    for bundle in bundles:
        if not bundle.is_dir():
            what = "is a file" if bundle.exists() else "does not exist"
            wanted = "serve takes a bundle's directory, such as runs/NAME/STAMP-HASH/bundle"
            fail(f"{bundle} {what}; {wanted}", ExitCode.USAGE)
        within = bundle / "bundle"
        if (within / "manifest.json").exists() and not (bundle / "manifest.json").exists():
            fail(f"{bundle} is a run; its bundle is {within}", ExitCode.USAGE)


def _serve(bundles: Sequence[Path], settings: Settings, *, restart: bool) -> None:
    """Listen, and serve in a child that is brought back when it is killed, or in this process."""
    from pastille.serve import supervise

    inherited = os.environ.pop(_INHERITED, None)
    if inherited is not None:
        supervise.follow_parent()
        _run(bundles, settings, socket.socket(fileno=int(inherited)))
        return
    from pastille.serve.listening import listen

    listener = listen(settings.host, settings.port)
    if not restart or not hasattr(os, "fork"):
        _run(bundles, settings, listener)
        return
    worker = os.fork()
    if worker == 0:
        supervise.follow_parent()
        _run(bundles, settings, listener)
        return
    again = [sys.executable, "-m", "pastille", *sys.argv[1:]]
    os.environ[_INHERITED] = str(listener.fileno())
    supervise.become_supervisor(listener.detach(), worker, again)


def _run(bundles: Sequence[Path], settings: Settings, listener: socket.socket) -> None:
    from pastille.serve import logs

    logs.set_up()
    address, port = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    url = f"http://{shown}:{port}"
    out.print(f"listening on {url}", markup=False)
    from pastille.serve.lifecycle import serve as carry_out

    carry_out(bundles, settings, listener, opened=lambda registry: _show_opened(registry, url))


def _show_opened(registry: Registry, url: str) -> None:
    """What is served, and how the variant was chosen."""
    for status in registry.statuses():
        what = f"{status.model} version {status.version} with {status.preferred or 'nothing'}"
        out.print(f"serving {what}: {status.reason}", markup=False)
    out.print(f"page    {url}/", markup=False)


@reports_errors
def token(
    name: Annotated[str, typer.Argument(help="Who will use it; stands in the log.", show_default=False)],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="infer, monitor, feedback or admin; several may be given.  [default: infer]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token for `pastille serve --token-file`: the server keeps its hash, the client the token.

    The line for the server goes to stdout, so that >> adds it to its file; the token to stderr.
    """
    from pastille.serve.auth import SCOPES, new_token
    from pastille.serve.configuring import line_of

    scopes: Any = frozenset(scope or ("infer",))
    if not scopes <= set(SCOPES):
        fail(f"--scope must be one of {', '.join(SCOPES)}", ExitCode.USAGE, as_json=as_json)
    if not name or len(name.split()) != 1 or "#" in name:
        fail("NAME must be one word without #", ExitCode.USAGE, as_json=as_json)
    secret, kept = new_token(name, scopes)
    if as_json:
        show_json({"token": secret, "line": line_of(kept)})
        return
    err.print(f"token, for the client, shown this once:  {secret}", markup=False)
    err.print("line, for the server's --token-file:", markup=False)
    out.print(line_of(kept), markup=False)  # alone on stdout: it can be appended to the file as it is
