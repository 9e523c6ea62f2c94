"""Students of every kind of network export, answer like themselves, and are found again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from student_nets import NETS, bert, disturbed, parameters, trained_looking
from torch import Tensor, nn

from pastille.distillation.students import fraction
from pastille.distillation.students_cut import narrower, shallower
from pastille.export import check_parity, export_onnx
from pastille.pruning import write_model
from pastille.recipe import Student
from pastille.task.forward import forward

HALF_WIDTH = {  # share of the parameters; only the residual stream of a transformer keeps its width
    "resnet": (0.24, 0.27),
    "unet": (0.24, 0.32),
    "signal": (0.24, 0.32),
    "lstm": (0.25, 0.35),
    "mlp": (0.25, 0.45),
    "bert": (0.5, 0.6),
    "vit": (0.5, 0.7),
}


@pytest.mark.parametrize("name", NETS)
def test_half_the_width_answers_alike_and_ships(name: str, tmp_path: Path) -> None:
    model, batch = trained_looking(name), NETS[name][1]()
    student = narrower(model, batch, 0.5)
    with torch.no_grad():
        assert forward(student, batch).shape == forward(model, batch).shape
    least, most = HALF_WIDTH[name]
    assert least < parameters(student) / parameters(model) < most
    export_onnx(student, batch, tmp_path / "model.onnx")
    assert check_parity(student, tmp_path / "model.onnx", batch).max_abs_error < 1e-4


def test_layers_that_went_are_not_in_the_file(tmp_path: Path) -> None:
    model, batch = disturbed(bert(num_hidden_layers=2)), NETS["bert"][1]()
    for name, module in {"all": model, "half": shallower(model, batch, 0.5)}.items():
        export_onnx(module, batch, tmp_path / name)
    counts = {n: _weights(tmp_path / n) for n in ("all", "half")}
    one = parameters(model.get_submodule("model.bert.encoder.layer.0"))
    assert counts["all"] - counts["half"] == pytest.approx(one, rel=0.01)


def _weights(file: Path) -> int:
    return sum(int(np.prod(t.dims)) for t in onnx.load(file).graph.initializer if t.data_type == 1)


_READS = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from student_nets import NETS
from pastille.pruning import read_model
from pastille.task.forward import forward
for folder in sorted(Path(sys.argv[2]).iterdir()):
    build, batch = NETS[folder.name]
    with torch.no_grad():
        answers = forward(read_model(build, folder), batch())
    assert torch.equal(answers, torch.load(folder / "answers.pt", weights_only=True)), folder.name
    print(folder.name)
"""


def test_students_are_found_again_by_another_process(tmp_path: Path) -> None:
    names = ["resnet", "signal", "lstm", "bert", "vit", "unet"]
    for name in names:
        model, batch = trained_looking(name), NETS[name][1]()
        deep = name in ("resnet", "signal", "bert", "vit")
        asked = Student(width=0.5, depth=0.5) if deep else Student(width=0.5)
        student = fraction(asked, model, batch, seen=[batch])
        (tmp_path / name).mkdir()
        write_model(student, NETS[name][0](), tmp_path / name)
        torch.save(_answers(student, batch), tmp_path / name / "answers.pt")
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", _READS, here, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == sorted(names), done.stderr[-2000:]


def _answers(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return forward(model, batch)
