"""The commands. Each reads its arguments, calls one function, and shows what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pastille.cli import ablate, audit, predict, quantize, scan, serve, triton
from pastille.cli.console import fail, out, progress, reports_errors, show_json, strangers_aside
from pastille.cli.options import (
    EXIT_CODES,
    AsJson,
    Leakage,
    Overrides,
    Quiet,
    RecipePath,
    Threads,
    examples,
)
from pastille.errors import ExitCode

app = typer.Typer(
    name="pastille",
    help=(
        "Make a trained model as small and fast as it can be while it still passes the bar you set, "
        "prove that it passes, and seal it in a bundle."
    ),
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Options of no command."""
    if version:
        from importlib import metadata

        out.print(metadata.version("pastille"))
        raise typer.Exit


@app.command(
    epilog=examples(
        "pastille run recipe.yaml",
        "pastille run recipe.yaml --set requirements.risk=low --set plan.0.prune.sparsity=0.3",
        "pastille run recipe.yaml --resume",
    )
)
@reports_errors
def run(
    recipe: RecipePath,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take up the newest run of this recipe that was interrupted.")
    ] = False,
    allow_leakage: Leakage = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Carry out a recipe: baseline, plan, gates, bundle and report."""
    from pastille import policy
    from pastille.cli.shown import result_json, show_result
    from pastille.recipe import check_files, read_recipe

    asked = read_recipe(recipe, overrides or ())
    policy.check_run(asked)
    policy.check(asked)  # before torch is imported: a refusal should not take seconds
    check_files(asked, recipe.parent)
    from pastille.processes import advice, end, here
    from pastille.runner import run as carry_out

    shown = progress(quiet=quiet)
    if advised := advice():
        shown.note(advised)
    with strangers_aside():
        result = carry_out(
            asked,
            recipe.parent,
            resume=resume,
            allow_leakage=allow_leakage,
            progress=shown,
        )
    if as_json and here().is_main:
        show_json(result_json(result))
    elif here().is_main:
        show_result(result)
    end()
    raise SystemExit(int(exit_code(result.verdict.status)))


def exit_code(status: str) -> ExitCode:
    """The exit code that a verdict ends a command with."""
    codes = {"approved": ExitCode.DONE, "rejected": ExitCode.REJECTED, "inconclusive": ExitCode.INCONCLUSIVE}
    return codes[str(status)]


@app.command(epilog=examples("pastille profile recipe.yaml", "pastille profile recipe.yaml -o baseline.json"))
@reports_errors
def profile(
    recipe: RecipePath,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the profile here, as JSON.")
    ] = None,
    allow_leakage: Leakage = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure the recipe's model as it is: metrics, size, latency, memory."""
    from pastille.cli.shown import as_data, show_profile
    from pastille.files import write_atomic
    from pastille.recipe import read_recipe
    from pastille.values import to_json

    asked = read_recipe(recipe, overrides or ())
    from pastille.runner.standalone import profile_baseline

    with strangers_aside():
        found = profile_baseline(
            asked, recipe.parent, allow_leakage=allow_leakage, progress=progress(quiet=quiet)
        )
    if output is not None:
        write_atomic(output, to_json(found) + b"\n")
    if as_json:
        show_json(as_data(found))
    else:
        show_profile(found)


@app.command(
    epilog=examples(
        "pastille bench model.onnx",
        "pastille bench int8.onnx --against fp32.onnx --batch 1 --batch 16 --threads 2",
        "pastille bench runs/digits/20261122-120000-1a2b3c4d/bundle",
        "pastille bench runs/digits/20261122-120000-1a2b3c4d/bundle --isa avx2",
    )
)
@reports_errors
def bench(
    file: Annotated[Path, typer.Argument(help="An ONNX file, or a bundle.", show_default=False)],
    against: Annotated[
        Path | None, typer.Option(help="Another ONNX file: how many times faster is FILE?")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch sizes to time.")] = None,
    threads: Threads = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=D1,D2", help="Shape of an input that the file leaves open."),
    ] = None,
    isa: Annotated[
        str | None,
        typer.Option(help="Replay cases on another CPU instead: avx2, sse4, aarch64 or native."),
    ] = None,
    cases: Annotated[
        Path | None, typer.Option(help="With --isa: an npz of cases; made up if left out.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="With --isa: seconds that it may take.")] = 1800.0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time a file on this machine: latency, throughput, memory, and what runs in int8."""
    from pastille.cli.benching import bench_files, replay_files, show_bench, show_elsewhere
    from pastille.cli.shown import as_data

    if isa is None and cases is not None:
        fail("--cases is for --isa, which is left out", ExitCode.USAGE, as_json=as_json)
    if isa is not None:
        found = replay_files(
            file,
            isa,
            cases=cases,
            shapes=tuple(shape or ()),
            threads=threads or 1,
            timeout_s=timeout,
            progress=progress(quiet=quiet),
        )
        if as_json:
            show_json({name: as_data(one) for name, one in found.items()})
        else:
            for name, one in found.items():
                show_elsewhere(name, one)
        return
    results = bench_files(
        file,
        against=against,
        batch_sizes=tuple(batch or (1, 8, 32)),
        threads=threads or 1,
        shapes=tuple(shape or ()),
        progress=progress(quiet=quiet),
    )
    if as_json:
        show_json({name: as_data(result) for name, result in results.items()})
    else:
        for name, result in results.items():
            show_bench(name, result)


app.command(epilog=ablate.EPILOG)(ablate.ablate)


app.add_typer(audit.app, name="audit")


app.command(epilog=predict.EPILOG)(predict.predict)


app.command(epilog=quantize.EPILOG)(quantize.quantize)


app.command(epilog=scan.EPILOG)(scan.scan)


app.command(epilog=serve.EPILOG)(serve.serve)


app.command(epilog=serve.TOKEN_EPILOG)(serve.token)


app.command(epilog=triton.EPILOG)(triton.triton)


@app.command(
    epilog=examples(
        "pastille validate int8.onnx --against fp32.onnx --data recipe.yaml",
        "pastille validate int8.onnx --against fp32.onnx --data recipe.yaml --split test -o judged/",
        "pastille validate runs/digits/20261122-120000-1a2b3c4d/bundle --data recipe.yaml",
    )
)
@reports_errors
def validate(
    candidate: Annotated[Path, typer.Argument(help="The ONNX file or bundle to judge.", show_default=False)],
    recipe: Annotated[
        Path, typer.Option("--data", "--recipe", "-r", help="Data, task and limits.", show_default=False)
    ],
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            "--baseline",
            help="What it is held against: an ONNX file or bundle. Left out: the fp32 of the same bundle, "
            "or the recipe's own model, exported now.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="validation or test; looks at test are remembered.")] = (
        "validation"
    ),
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write verdict.json, report.html and disagreements.csv here."),
    ] = None,
    allow_leakage: Leakage = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Judge a model file against another, on a recipe's data and by its limits; whoever made them."""
    from pastille.cli.shown import as_data, show_verdict
    from pastille.cli.validating import validated
    from pastille.recipe import read_recipe

    if split not in ("validation", "test"):
        fail(f"--split must be validation or test, got {split!r}", ExitCode.USAGE, as_json=as_json)
    said = validated(
        candidate,
        against,
        read_recipe(recipe, overrides or ()),
        recipe.parent,
        split="test" if split == "test" else "validation",
        output=output,
        allow_leakage=allow_leakage,
        progress=progress(quiet=quiet),
    )
    if as_json:
        show_json(as_data(said))
    else:
        show_verdict(said)
        if output is not None:
            out.print(f"report  {output / 'report.html'}", markup=False)
    raise SystemExit(int(exit_code(said.status)))


@app.command(
    epilog=examples(
        "pastille power",
        'pastille power --limit "1 %" --discordance "2 %"',
        "pastille power --tier high --cases 800",
        "pastille power recipe.yaml",
    )
)
@reports_errors
def power(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe: what can its data prove?", show_default=False)
    ] = None,
    limit: Annotated[str | None, typer.Option(help="Largest permitted drop, e.g. '1 %'.")] = None,
    tier: Annotated[str | None, typer.Option(help="The limit of a risk tier instead.")] = None,
    discordance: Annotated[
        str | None, typer.Option(help="Share of cases that one model gets right and the other wrong.")
    ] = None,
    drop: Annotated[str | None, typer.Option(help="The candidate's true drop; 0 % if left out.")] = None,
    cases: Annotated[int | None, typer.Option(help="What so many cases can prove, instead.")] = None,
    chance: Annotated[
        str | None, typer.Option("--power", help="Chance of approval that is wanted; 80 % if left out.")
    ] = None,
    confidence: Annotated[str | None, typer.Option(help="Of the interval; 95 % if left out.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say how many cases a limit needs, and what the data at hand can prove, before any work is done."""
    from pastille.cli.power import power_json, power_report, show_power

    with strangers_aside():
        found = power_report(
            recipe,
            limit=limit,
            discordance=discordance,
            drop=drop,
            power=chance,
            confidence=confidence,
            tier=tier,
            cases=cases,
            overrides=tuple(overrides or ()),
            progress=progress(quiet=quiet),
        )
    if as_json:
        show_json(power_json(found))
    else:
        show_power(found)


@app.command(epilog=examples("pastille verify runs/digits/20261122-120000-1a2b3c4d/bundle"))
@reports_errors
def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle's directory.", show_default=False)],
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check a bundle: every hash, and the golden cases replayed on this machine."""
    from pastille.bundle import verify as check
    from pastille.cli.shown import as_data, show_verification

    if not bundle.is_dir():
        what = "is a file" if bundle.exists() else "does not exist"
        fail(
            f"{bundle} {what}; verify takes a bundle's directory, such as runs/NAME/STAMP-HASH/bundle",
            ExitCode.USAGE,
            as_json=as_json,
        )
    found = check(bundle, threads=threads or 1, progress=progress(quiet=quiet))
    if as_json:
        show_json(as_data(found))
    else:
        show_verification(found)


@app.command(
    epilog=examples(
        "pastille report runs/digits/20261122-120000-1a2b3c4d",
        "pastille report runs/digits/20261122-120000-1a2b3c4d -o report.html",
    )
)
@reports_errors
def report(
    run_directory: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run's directory, or its run.json.", show_default=False),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's report again, from its record; finished or not."""
    from pastille.cli.shown import as_data
    from pastille.record import read_record
    from pastille.report import write_report

    source = run_directory / "run.json" if run_directory.is_dir() else run_directory
    record = read_record(source)
    target = output or source.with_name("report.html")
    write_report(record, target)
    if as_json:
        show_json({"report": str(target), "record": as_data(record)})
    else:
        out.print(str(target), markup=False)


@app.command(epilog=examples("pastille doctor", "pastille doctor recipe.yaml", "pastille doctor --json"))
@reports_errors
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe: can its data decide its limits?", show_default=False)
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what this machine and this installation can do, and what a recipe's data cannot prove."""
    from pastille.cli.doctor import diagnose, examine, show_diagnosis, show_examination

    found = examine()
    if recipe is not None:
        with strangers_aside():
            found["recipe"] = diagnose(recipe, tuple(overrides or ()), progress(quiet=quiet))
    if as_json:
        show_json(found)
        return
    show_examination(found)
    if recipe is not None:
        show_diagnosis(found["recipe"])


@app.command(epilog=examples("pastille demo", "pastille demo --list", "pastille demo breast-cancer"))
@reports_errors
def demo(
    name: Annotated[str, typer.Argument(help="Which; see --list.")] = "digits",
    listed: Annotated[bool, typer.Option("--list", help="List the demonstrations.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where it is laid out.")] = Path(
        "pastille-demo"
    ),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a model on real data, then compress, judge, bundle and report it."""
    from pastille.demos import DEMOS

    if listed:
        _list_demos(as_json=as_json)
        return
    if name not in DEMOS:
        fail(f"there is no demo {name!r}; choose one of: {', '.join(DEMOS)}", ExitCode.USAGE, as_json=as_json)
    from pastille.cli.demo import carry_out_demo, show_demo
    from pastille.cli.shown import result_json

    with strangers_aside():
        result = carry_out_demo(DEMOS[name], output / name, progress=progress(quiet=quiet))
    if as_json:
        show_json(result_json(result))
    else:
        show_demo(result, output / name)
    raise SystemExit(int(exit_code(result.verdict.status)))


def _list_demos(*, as_json: bool) -> None:
    from pastille.demos import DEMOS

    if as_json:
        show_json({name: demo.title for name, demo in DEMOS.items()})
        return
    rows: list[Any] = [f"{name:<14} {demo.title}" for name, demo in DEMOS.items()]
    out.print("\n".join(rows), markup=False)
