"""Answers with the time of calls in OpenVINO, block by block, so that another process can take turns with it.

    python3.11 -m venv openvino-venv
    openvino-venv/bin/pip install openvino==2026.4.1
    openvino-venv/bin/python time_openvino.py MODEL.onnx|MODEL.xml inputs.npz THREADS

`inputs.npz` holds one batch for each input under its name; the model is reshaped to it before it is
compiled, since OpenVINO's int8 answers are wrong with a dynamic batch. Precision is OpenVINO's own choice.
Once ready, it writes its version and the precision; then, for each line with a number of calls, the median
of their times in nanoseconds, after one call that is not counted.
"""

from __future__ import annotations

import statistics
import sys
from time import perf_counter_ns

import numpy as np
import openvino


def main() -> None:
    path, inputs, threads = sys.argv[1:]
    with np.load(inputs, allow_pickle=False) as file:
        batch = {name: file[name] for name in file.files}
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({name: list(array.shape) for name, array in batch.items()})
    how = {"INFERENCE_NUM_THREADS": int(threads), "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(model, "CPU", how)
    request = compiled.create_infer_request()
    kind = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    print(openvino.__version__.split("-")[0], kind, flush=True)
    for line in sys.stdin:
        request.infer(batch)
        times = []
        for _ in range(int(line)):
            begun = perf_counter_ns()
            request.infer(batch)
            times.append(perf_counter_ns() - begun)
        print(int(statistics.median(times)), flush=True)


if __name__ == "__main__":
    main()
