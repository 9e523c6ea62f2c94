"""``pastille quantize``: a bare ONNX file and some inputs to an int8 file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final
from zipfile import BadZipFile, ZipFile

import numpy as np

from pastille.cli.console import out, strangers_aside
from pastille.cli.shown import conditions_text, size_text, speed_interval_text, speed_text
from pastille.data.npz import Rows, load_archive
from pastille.data.split import Inputs, Split, batches, named
from pastille.devices import this_machine
from pastille.errors import DataError, RecipeError, UsageError
from pastille.measure.latency import compare
from pastille.quantization.converting import Converting
from pastille.quantization.standalone import Quantized, loaded, quantize_file, readable
from pastille.recipe import DynamicQuantize, HalfPrecision, Quantize, WeightQuantize, parse_quantization
from pastille.runtime import ONNXRUNTIME, Session, load
from pastille.values import Kind, Speedup

if TYPE_CHECKING:
    from pastille.progress import Progress

_LISTED = 8  # layers left as they were


@dataclass(frozen=True, kw_only=True)
class QuantizeResult:
    """What the command shows."""

    file: str
    quantized: Quantized
    speedup: Speedup  # over the float file, at batch 1 or the only one that it takes


def quantized_with_data(
    model: Path,
    data: Path,
    output: Path | None,
    *,
    asked: Mapping[str, Any],
    overrides: Sequence[str],
    strata: str | None,
    seed: int,
    threads: int,
    progress: Progress,
) -> QuantizeResult:
    """Quantize a file, and time it against the one it was made from.

    Args:
        model: A float ONNX file.
        data: An npz, or a recipe whose train split is taken.
        output: Where to write; beside the model if left out.
        asked: Keys of a recipe's section ``quantize``.
        overrides: More of them, as ``KEY=VALUE``.
        strata: Array of the npz to balance by.
        seed: Of the sample.
        threads: For the comparison of speed.
        progress: Shown while it works.

    Raises:
        UsageError: An option, the model or the data cannot be used.
        IntegrityError: The file is not a self-contained ONNX model.
    """
    settings = _settings(asked, overrides)
    for file, what in ((model, "MODEL"), (data, "--data")):
        if not file.is_file():
            raise UsageError(f"there is no file {file}; {what} must be an existing file")
    readable(model)  # before the data is read: a refusal should not take minutes
    session = loaded(model)
    with strangers_aside():
        cases, kind, said = _cases(session, data, strata, progress)
    ending = "int8" if settings.method == "ptq" else settings.method
    target = output or model.with_suffix(f".{ending}.onnx")
    made = quantize_file(model, target, cases, settings, kind=kind, seed=seed, progress=progress)
    made = replace(made, notes=(*said, *made.notes))
    speedup = _speedup(model, target, cases, threads, progress)
    return QuantizeResult(file=str(target), quantized=made, speedup=speedup)


def _settings(asked: Mapping[str, Any], overrides: Sequence[str]) -> Quantize | Converting:
    """The section ``quantize`` that the options make, checked as that of a recipe."""
    given = dict(asked)
    names = [name.strip() for name in str(given.get("recover", "")).split(",")]
    if names != [""]:
        given["recover"] = names[0] if names[0] in ("auto", "none") and len(names) == 1 else names
    if str(given.get("weight_bits", "")).isdigit():
        given["weight_bits"] = int(given["weight_bits"])
    if given["method"] in ("qat", "mixed", "auto"):
        raise UsageError(
            f"--method {given['method']} must be judged by labels: write a recipe and use pastille run; a "
            "bare file takes ptq, dynamic, int4, int8-weights, fp16 or bf16"
        )
    if any(text.startswith("draws=") for text in overrides):
        raise UsageError("--set draws compares decisions on validation: write a recipe and use pastille run")
    try:
        found = parse_quantization(given, overrides)
    except RecipeError as error:
        raise UsageError("; ".join(_option(text, asked) for text in str(error).split("; "))) from None
    assert isinstance(found, Quantize | DynamicQuantize | WeightQuantize | HalfPrecision)
    return found


def _option(problem: str, asked: Mapping[str, Any]) -> str:
    """A problem with a key, said of the option that gave it."""
    key = re.split(r"[ .]", problem, maxsplit=1)[0]
    if key in ("takes", "needs"):
        return f"--method {asked['method']} {problem}"
    return f"--{key.replace('_', '-')}{problem[len(key) :]}" if key in asked else problem


def _cases(
    session: Session, data: Path, strata: str | None, progress: Progress
) -> tuple[Split, Kind, tuple[str, ...]]:
    """The cases by the names of the model's inputs, their kind, and what was taken for what."""
    if data.suffix not in (".yaml", ".yml"):
        split, said = _from_archive(session, data, strata)
        return split, "custom", said
    if strata is not None:
        raise UsageError("--strata is for an npz file; a recipe names strata in its data section")
    from pastille.data.load import read_splits
    from pastille.recipe import read_recipe

    recipe = read_recipe(data)
    split, said = _matched(session, read_splits(recipe, data.parent, progress=progress).train)
    return split, recipe.task.kind, said


def _matched(session: Session, split: Split) -> tuple[Split, tuple[str, ...]]:
    """A single input of the data goes to the single one of the model, whatever the two are called."""
    names = list(named(split.inputs[0])) if split.n else []
    if len(names) != 1 or len(session.inputs) != 1 or names[0] == session.inputs[0].name:
        return split, ()
    wanted = session.inputs[0].name
    return replace(split, inputs=_Renamed(split.inputs, wanted)), (_taken("input", names[0], wanted),)


@final
class _Renamed:
    """Inputs of one array each, under another name."""

    def __init__(self, inputs: Inputs, name: str) -> None:
        self.inputs: Final = inputs
        self.name: Final = name

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        """One case as ``{name: array}``."""
        (array,) = named(self.inputs[index]).values()
        return {self.name: array}

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def _taken(what: str, name: str, wanted: str) -> str:
    return f"{what} {name!r} of the data is taken for input {wanted!r} of the model"


def _from_archive(session: Session, data: Path, strata: str | None) -> tuple[Split, tuple[str, ...]]:
    """The inputs of a model by name; an npz of one array needs no name where the model has one input."""
    inputs = [spec.name for spec in session.inputs]
    try:
        with ZipFile(data) as file:
            held = [name.removesuffix(".npy") for name in file.namelist()]
    except (BadZipFile, OSError) as error:
        raise DataError(f"{data} is neither an npz file of numpy.savez nor a recipe (.yaml)") from error
    others = [name for name in held if name != strata]
    if len(inputs) == 1 and len(others) == 1:
        names = {others[0]: inputs[0]}
    else:
        names = {name: name for name in inputs}
    archive = load_archive(data, [*names, *([] if strata is None else [strata])])
    arrays: Mapping[str | None, np.ndarray] = {names[name]: archive.arrays[name] for name in names}
    n = len(next(iter(arrays.values())))
    column = None if strata is None else np.array(archive.column(strata))
    said = tuple(_taken("array", name, wanted) for name, wanted in names.items() if name != wanted)
    return Split(inputs=Rows(arrays, np.arange(n)), targets=np.zeros(n, np.int64), strata=column), said


def _speedup(model: Path, target: Path, cases: Split, threads: int, progress: Progress) -> Speedup:
    before, after = load(model, threads=threads), load(target, threads=threads)
    batch = next(batches(cases.inputs, range(before.fixed_batch or 1), before.fixed_batch or 1))
    here = this_machine(threads=threads, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    (found,) = (
        compare(before, after, batch, conditions=here) for _ in progress.track(range(1), what="timing")
    )
    return found


def show_quantized(result: QuantizeResult) -> None:
    """Size, kernels, error, speed, and what was tried."""
    made, speed = result.quantized, result.speedup
    out.print(f"[bold]{result.file}[/]")
    out.print(f"  size      {size_text(made.bytes_before, made.bytes_after)}", markup=False)
    for kind, counts in (("int8", made.operators.int8), ("float", made.operators.floating)):
        listed = ", ".join(f"{count} {op}" for op, count in counts.items()) or "none"
        out.print(f"  in {kind:<6} {listed}", markup=False)
    out.print(f"  error     {_error_text(result)}", markup=False)
    interval = speed_interval_text(speed.interval)
    out.print(f"  speed     {speed_text(speed)} at batch {speed.batch} ({interval})", markup=False)
    source = f", from {made.calibrated} cases" if made.calibrated else ""
    out.print(f"  made by   {made.made_by}{source}", markup=False)
    for text in made.warnings:
        out.print("  [bold red]WARNING[/]   ", end="")
        out.print(text, markup=False)
    for line in _remarks(made):
        out.print(f"  {line}", markup=False)
    out.print(f"  {conditions_text(speed.conditions)}", markup=False)


def _error_text(result: QuantizeResult) -> str:
    found = result.quantized.deviation
    same = "" if found.same_decisions is None else f", {100 * found.same_decisions:.1f} % decided alike"
    return (
        f"{found.sqnr_db:.1f} dB below the signal, at most {found.max_abs_error:.3g}{same}, "
        f"on {found.cases} held-out cases"
    )


def _remarks(made: Quantized) -> list[str]:
    tried = made.recovery.trials if made.recovery else ()
    lines = [f"tried     {t.what}: {t.sqnr_db:.1f} dB{', kept' if t.kept else ''}" for t in tried]
    lines += [f"left      {name}: {why}" for name, why in list(made.left.items())[:_LISTED]]
    lines += [f"          and {len(made.left) - _LISTED} more"] if len(made.left) > _LISTED else []
    warnings = made.coverage.warnings if made.coverage else ()
    return lines + [f"note      {text}" for text in made.notes] + [f"warning   {text}" for text in warnings]
