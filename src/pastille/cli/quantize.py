"""``pastille quantize``: its arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pastille.cli.console import progress, reports_errors, show_json
from pastille.cli.options import AsJson, Quiet, Threads, examples

EPILOG = examples(
    "pastille quantize model.onnx --data calib.npz",
    "pastille quantize model.onnx --data calib.npz --strata scanner -o int8.onnx",
    "pastille quantize model.onnx --data recipe.yaml --calibration percentile --recover none",
    "pastille quantize model.onnx --data calib.npz --keep-float first --keep-float 'blocks.3.*'",
    "pastille quantize model.onnx --data calib.npz --method int4 --set rounding=gptq",
    "pastille quantize model.onnx --data calib.npz --method dynamic --set ranges=row",
)


@reports_errors
def quantize(
    model: Annotated[Path, typer.Argument(help="A float ONNX file.", show_default=False)],
    data: Annotated[
        Path,
        typer.Option(
            "--data", "-d", help="Inputs: an npz of arrays named as the model's, or a recipe's train split."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The new file; MODEL.METHOD.onnx if left out, int8 for ptq."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="ptq (static int8), dynamic, int4, int8-weights, fp16 or bf16.")
    ] = "ptq",
    calibration: Annotated[
        str | None,
        typer.Option(help="minmax, moving_average, percentile, entropy or mse ranges.  [default: minmax]"),
    ] = None,
    percentile: Annotated[
        float | None,
        typer.Option(help="Of calibration percentile: above 50, at most 100.  [default: 99.99]"),
    ] = None,
    recover: Annotated[
        str | None,
        typer.Option(
            help="auto tries what wins accuracy back and keeps what does; none; or some of "
            "equalization,smoothquant,rounding,bias_correction.  [default: auto]"
        ),
    ] = None,
    weight_bits: Annotated[
        str | None,
        typer.Option(
            help="7 cannot saturate on x86 without VNNI and costs no speed; 8; or auto: 8, with a coarser "
            "step only for the channels that could saturate.  [default: 7]"
        ),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(help="Of whose kernels: x86, arm or tensorrt; auto is this machine.  [default: auto]"),
    ] = None,
    keep_float: Annotated[
        list[str] | None, typer.Option(help="A layer that stays float: a name, * wildcards, first or last.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the method: --set block_size=64"),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Cases to calibrate on at most; at least 16.  [default: 256]")
    ] = None,
    strata: Annotated[
        str | None, typer.Option(help="An array of the npz to balance and check calibration by.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample.")] = 0,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write an ONNX file in fewer bits and say what it cost; 2: the model or data is unfit, 5: not whole."""
    from pastille.cli.quantizing import quantized_with_data, show_quantized
    from pastille.cli.shown import as_data

    asked = {
        "method": method,
        "calibration": calibration,
        "percentile": percentile,
        "recover": recover,
        "weight_bits": weight_bits,
        "scheme": scheme,
        "keep_float": keep_float or None,
        "samples": samples,
    }
    found = quantized_with_data(
        model,
        data,
        output,
        asked={key: value for key, value in asked.items() if value is not None},
        overrides=settings or [],
        strata=strata,
        seed=seed,
        threads=threads or 1,
        progress=progress(quiet=quiet),
    )
    if as_json:
        show_json(as_data(found))
    else:
        show_quantized(found)
