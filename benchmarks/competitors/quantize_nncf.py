"""int8 by NNCF's defaults, in an environment of its own.

    python3.11 -m venv nncf-venv
    nncf-venv/bin/pip install nncf==3.4.0 onnx==1.23.2 onnxruntime==1.31.1
    nncf-venv/bin/python quantize_nncf.py float.onnx calibration.npz int8.onnx

`calibration.npz` holds one array for each input of the file, under its name, the cases along the first axis.
`nncf.quantize` is called as its documentation shows, with nothing but the model and the data; only
`subset_size` is raised where more than its 300 cases are given, so that every tool sees the same ones.
The version used goes to stdout.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import nncf
import numpy as np
import onnx


def main() -> None:
    source, cases, target = map(Path, sys.argv[1:])
    nncf.set_log_level(logging.ERROR)
    with np.load(cases, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    count = len(next(iter(arrays.values())))
    rows = [{name: array[i : i + 1] for name, array in arrays.items()} for i in range(count)]
    quantized = nncf.quantize(onnx.load(source), nncf.Dataset(rows), subset_size=max(300, count))
    onnx.save(quantized, target)
    print(nncf.__version__)


if __name__ == "__main__":
    main()
