"""int8 by fasterai's static ONNX path, in an environment of its own.

    python3.11 -m venv fasterai-venv
    fasterai-venv/bin/pip install fasterai==0.4.0 onnx==1.23.2 onnxruntime==1.31.1
    fasterai-venv/bin/python quantize_fasterai.py ARCHITECTURE weights.pt calibration.npz int8.onnx

It takes a PyTorch model and not a file: ARCHITECTURE is a name that `benchmarks/networks.py` knows, and
`weights.pt` its state. `export_onnx` is called as its documentation shows, with static quantization, since
its default, dynamic, is slower than float on convolutions. The batch size is fixed at one. The version used
goes to stdout.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torchvision
from fasterai.export.onnx_exporter import export_onnx

sys.path.insert(0, str(Path(__file__).parent.parent))
import networks


def main() -> None:
    name, weights, cases, target = sys.argv[1], *map(Path, sys.argv[2:])
    model, _ = networks.architecture(name, torchvision.models.get_model)
    model.load_state_dict(torch.load(weights, weights_only=True))
    with np.load(cases, allow_pickle=False) as file:
        rows = [torch.from_numpy(row[None]) for row in file["input"]]
    made = export_onnx(
        model.eval(), rows[0], target, quantize=True, quantize_mode="static", calibration_data=rows
    )
    Path(made).replace(target)
    print(version("fasterai"))


if __name__ == "__main__":
    main()
