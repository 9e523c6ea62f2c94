"""int8 by NNCF's defaults on OpenVINO's own form of a model, in an environment of its own.

    python3.11 -m venv openvino-venv
    openvino-venv/bin/pip install nncf==3.4.0 openvino==2026.4.1 onnx==1.23.2
    openvino-venv/bin/python quantize_nncf_openvino.py float.onnx calibration.npz int8.xml

The batch size is fixed at one before quantizing: with a dynamic one OpenVINO 2026.4 answers wrongly in int8.
The version used goes to stdout.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import nncf
import numpy as np
import openvino


def main() -> None:
    source, cases, target = map(Path, sys.argv[1:])
    nncf.set_log_level(logging.ERROR)
    with np.load(cases, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    count = len(next(iter(arrays.values())))
    rows = [{name: array[i : i + 1] for name, array in arrays.items()} for i in range(count)]
    model = openvino.Core().read_model(source)
    model.reshape({name: [1, *array.shape[1:]] for name, array in arrays.items()})
    openvino.save_model(nncf.quantize(model, nncf.Dataset(rows), subset_size=max(300, count)), target)
    print(nncf.__version__)


if __name__ == "__main__":
    main()
