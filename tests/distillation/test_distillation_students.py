"""Students and teachers as a recipe asks for them, and what is refused of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from student_nets import width_of
from torch import nn

from pastille.data.split import Split, Splits
from pastille.distillation.references import check_answers, label_problem, teacher_models
from pastille.distillation.students import (
    built_student,
    check_students,
    factory_after,
    file_costs,
    student_name,
)
from pastille.errors import PreconditionError, TaskError, UsageError
from pastille.export import export_onnx
from pastille.recipe import Recipe, Student, Teacher
from pastille.task import Task, example_batch, forward, load_task

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=32, outputs=3):
        super().__init__()
        self.hidden, self.norm = nn.Linear(4, width), nn.BatchNorm1d(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.hidden(x))))

class Small(nn.Module):
    def __init__(self, outputs=3, inputs=4, labels=None, scale=None):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)
        self.scale = scale
        if labels:
            self.labels = labels

    def forward(self, x):
        x = self.layer(x)
        return x.softmax(-1) if self.scale == "probabilities" else x / 0 if self.scale == "nan" else x

class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return {"logits": self.layer(x)}

def build(**given):
    return Net(**given)

def small(**given):
    return Small(**given)

def pairs():
    return Pairs()
"""

DATA = """
import numpy as np
from pastille.data.split import Split, Splits

def splits():
    def split(seed, n):
        rng = np.random.default_rng(seed)
        targets = np.arange(n) % 3
        return Split(inputs=(rng.normal(size=(n, 4)) + targets[:, None]).astype(np.float32), targets=targets)
    return Splits(train=split(0, 48), validation=split(1, 12), test=split(2, 12))
"""

LABELS = ["a", "b", "c"]


@pytest.fixture
def task(tmp_path: Path) -> Task:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "data.py").write_text(DATA)
    whole = {
        "name": "test",
        "task": {"kind": "multiclass", "model": "model.py:build", "labels": LABELS},
        "data": {"source": "data.py:splits"},
        "requirements": {"risk": "low", "max_drop": {"accuracy": "5 %"}},
        "measure": {"seconds": 0.3},
        "plan": [{"distill": {"student": {"width": 0.5}, "epochs": 1}}],
    }
    return load_task(Recipe.model_validate(whole), tmp_path)


def hidden_rows(model: nn.Module) -> set[tuple[float, ...]]:
    return {tuple(row) for row in model.get_parameter("hidden.weight").tolist()}


def test_a_fraction_is_cut_out_of_the_model_before_it(task: Task, tmp_path: Path) -> None:
    half = built_student(Student(width=0.5), task.model, task, tmp_path)
    quarter = built_student(Student(width=0.5), half.module, task, tmp_path)
    assert [width_of(m.module, "hidden") for m in (half, quarter)] == [16, 8]
    assert half.build is None
    assert half.width is None
    assert half.name == "width 0.5"
    assert hidden_rows(half.module) < hidden_rows(task.model)


def test_begun_anew_it_has_the_shape_and_nothing_else(task: Task, tmp_path: Path) -> None:
    asked = Student(width=0.5, init="random")
    one, two = (built_student(asked, task.model, task, tmp_path) for _ in range(2))
    assert one.name == "width 0.5, begun anew"
    weight = one.module.get_parameter("hidden.weight")
    assert weight.shape == (16, 4)
    assert torch.equal(weight, two.module.get_parameter("hidden.weight"))
    assert not hidden_rows(task.model) & hidden_rows(one.module)


def test_a_student_by_reference_has_its_weights_and_its_factory(task: Task, tmp_path: Path) -> None:
    weights = {"layer.weight": torch.randn(3, 4), "layer.bias": torch.randn(3)}
    save_file(weights, tmp_path / "small.safetensors")
    asked = Student(model="model.py:small", weights=Path("small.safetensors"))
    built = built_student(asked, task.model, task, tmp_path)
    assert torch.equal(built.module.get_parameter("layer.weight"), weights["layer.weight"])
    assert not built.module.training
    assert built.build is not None
    assert type(built.build()).__name__ == "Small"
    arguments = Student(model="model.py:build", arguments={"width": 7})
    assert width_of(built_student(arguments, task.model, task, tmp_path).module, "hidden") == 7


def test_models_of_libraries_by_name(task: Task, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(4, 3, 64, 64)).astype(np.float32)
    split = Split(inputs=rows, targets=np.arange(4) % 3)
    pictures = replace(task, model=Pictures(), splits=Splits(train=split, validation=split, test=split))
    built = built_student(Student(model="torchvision:resnet18"), Pictures(), pictures, tmp_path)
    assert width_of(built.module, "fc") == 3
    small = built_student(Student(model="timm:resnet10t"), Pictures(), pictures, tmp_path)
    assert width_of(small.module, "fc") == 3
    assert small.build is not None
    once, again = (net.get_parameter("fc.weight") for net in (small.module, small.build()))
    assert torch.equal(once, again)  # as untrained each time
    with pytest.raises(UsageError, match=r"^distill\.student\.model: torchvision has no model 'resnet19'"):
        built_student(Student(model="torchvision:resnet19"), Pictures(), pictures, tmp_path)


class Pictures(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def test_a_configuration_of_transformers_is_a_student(task: Task, tmp_path: Path) -> None:
    words = task_of_words(task)
    folder = bert_folder(tmp_path, {0: "A", 1: "B", 2: "C"})
    built = built_student(Student(model=f"hf:{folder.name}"), words.model, words, tmp_path)
    with torch.no_grad():
        assert forward(built.module, example_batch(words.splits.train.inputs)).shape == (2, 3)
    bert_folder(tmp_path, {0: "c", 1: "b", 2: "a"})
    with pytest.raises(TaskError, match=r"order c, b, a, those of the task a, b, c"):
        built_student(Student(model=f"hf:{folder.name}"), words.model, words, tmp_path)


def test_a_folder_of_transformers_whose_weights_are_not_read_is_told(task: Task, tmp_path: Path) -> None:
    """It would begin from nothing; and one without any has nothing to teach."""
    words = task_of_words(task)
    folder = bert_folder(tmp_path, {0: "A", 1: "B", 2: "C"})
    named = f"hf:{folder.name}"
    with pytest.raises(TaskError, match="hf:bert is built untrained and has nothing to teach"):
        teacher_models([Teacher(model=named)], words, words.model, tmp_path)
    (folder / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(UsageError, match=r"there is no file .*model\.safetensors"):
        built_student(Student(model=named), words.model, words, tmp_path)


def bert_folder(base: Path, names: dict[int, str]) -> Path:
    folder = base / "bert"
    folder.mkdir(exist_ok=True)
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 16,
        "id2label": {str(i): name for i, name in names.items()},
        "label2id": {name: i for i, name in names.items()},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Words(nn.Module):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return (input_ids * attention_mask)[:, :3].float()


def task_of_words(task: Task) -> Task:
    row = {"input_ids": np.arange(1, 7), "attention_mask": np.ones(6, np.int64)}
    split = Split(inputs=[row] * 4, targets=np.arange(4) % 3)
    return replace(task, model=Words(), splits=Splits(train=split, validation=split, test=split))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"outputs": 5}, r"answers with 5 numbers a case, the model of the task with 3 \(a, b, c\)"),
    ({"inputs": 9}, "does not accept the inputs of the task"),
    ({"labels": ["b", "a", "c"]}, "its labels are in the order b, a, c, those of the task a, b, c"),
    ({"scale": "nan"}, "answers NaN or infinity"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_answers_otherwise_is_refused(
    arguments: dict[str, Any], message: str, task: Task, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=f"distill.student: model.py:small.*{message}") as caught:
        check_students([Student(model="model.py:small", arguments=arguments)], task, tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(TaskError, match=f"distill.teachers: model.py:small.*{message}"):
        teacher_models([Teacher(model="model.py:small", arguments=arguments)], task, task.model, tmp_path)


def test_answers_of_another_kind_are_refused(task: Task, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="must answer with a tensor of logits or numbers, got dict"):
        check_students([Student(model="model.py:pairs")], task, tmp_path)
    asked = Teacher(model="model.py:small", arguments={"scale": "probabilities"})
    with pytest.raises(TaskError, match="answer with probabilities, the model of the task with logits"):
        teacher_models([asked], task, task.model, tmp_path)
    with pytest.raises(TaskError, match=r"answers with shape \(2,\), the model of the task with \(2, 3\)"):
        check_answers(Summed(), task, "it")


class Summed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=1)


def test_errors_name_the_key_that_was_written(task: Task, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^distill\.student\.model: .*has no callable 'smal'"):
        check_students([Student(model="model.py:smal")], task, tmp_path)
    asked = Teacher(model="model.py:small", weights=Path("no.safetensors"))
    with pytest.raises(UsageError, match=r"^distill\.teachers\.weights: there is no file"):
        teacher_models([asked], task, task.model, tmp_path)
    with pytest.raises(TaskError, match="torchvision:resnet50 is built untrained and has nothing to teach"):
        teacher_models([Teacher(model="torchvision:resnet50")], task, task.model, tmp_path)


def test_teachers_are_named_and_weighed(task: Task, tmp_path: Path) -> None:
    before = nn.Linear(4, 3).eval()
    asked = [
        Teacher(),
        Teacher(model="before", weight=2.0),
        Teacher(model="model.py:build", arguments={"width": 9}),
    ]
    found = teacher_models(asked, task, before, tmp_path)
    assert [(name, weight) for name, weight, _ in found] == [
        ("baseline", 0.25),
        ("before", 0.5),
        ("model.py:build", 0.25),
    ]
    assert found[0][2] is task.model
    assert found[1][2] is before
    alike = [Teacher(model="model.py:build", arguments={"width": n}) for n in (8, 9)]
    names = [name for name, _, _ in teacher_models(alike, task, before, tmp_path)]
    assert names == ["model.py:build (1)", "model.py:build (2)"]  # two in the report, not one
    assert width_of(found[2][2], "hidden") == 9


class Labelled(nn.Linear):
    def __init__(self, labels: list[str]) -> None:
        super().__init__(1, 3)
        self.labels = labels


@pytest.mark.parametrize(
    ("names", "wrong"),
    [(["a", "b", "c"], False), (["A", "B", "C"], False), (["x", "y", "z"], False), (["b", "a", "c"], True)],
)
def test_orders_of_labels(names: list[str], *, wrong: bool) -> None:
    assert bool(label_problem(Labelled(names), LABELS)) == wrong
    assert label_problem(nn.Linear(1, 3), LABELS) is None


def test_the_widest_that_fits_a_size(task: Task, tmp_path: Path) -> None:
    large = nn.Sequential(nn.Linear(4, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3))
    whole = size_of(large, task, tmp_path)
    limit = 0.3 * whole
    built = built_student(Student(max_size=limit), large, task, tmp_path)
    assert 0.8 * limit < size_of(built.module, task, tmp_path) <= limit
    assert built.width is not None
    assert "the widest student that keeps to max_size" in built.notes[0]
    wider = built_student(Student(width=min(0.99, built.width + 0.05)), large, task, tmp_path)
    assert size_of(wider.module, task, tmp_path) > limit
    again = built_student(Student(max_size=limit), large, task, tmp_path, width=built.width)
    assert torch.equal(again.module.get_parameter("0.weight"), built.module.get_parameter("0.weight"))
    with pytest.raises(PreconditionError, match="already keeps to max_size"):
        built_student(Student(max_size=2 * whole), large, task, tmp_path)


def size_of(module: nn.Module, task: Task, folder: Path) -> int:
    export_onnx(module, example_batch(task.splits.train.inputs), folder / "size.onnx")
    return (folder / "size.onnx").stat().st_size


def test_latency_is_that_of_the_file(task: Task, tmp_path: Path) -> None:
    size_of(task.model, task, tmp_path)
    found = file_costs(tmp_path / "size.onnx", task, {"max_size": 1.0, "max_latency.p50": 1.0})
    assert found["max_size"] == (tmp_path / "size.onnx").stat().st_size
    assert 0 < found["max_latency.p50"] < 50
    quick = task.recipe.measure.model_copy(update={"seconds": 1e-6})
    hasty = replace(task, recipe=task.recipe.model_copy(update={"measure": quick}))
    with pytest.raises(PreconditionError, match=r"max_latency\.p99: \d+ calls in 1e-06 s are too few"):
        file_costs(tmp_path / "size.onnx", hasty, {"max_latency.p99": 1.0})


def test_the_factory_is_that_of_the_last_student_with_one(task: Task, tmp_path: Path) -> None:
    def found(*students: Student, before: Callable[[], nn.Module] | None = None) -> str | None:
        build = factory_after(students, before, task, tmp_path)
        return None if build is None else type(build()).__name__

    own, half = Student(model="model.py:small"), Student(width=0.5)
    assert found() is None
    assert found(half) is None
    assert found(own) == found(own, half) == found(half, own) == "Small"
    assert found(own, Student(model="model.py:build")) == "Net"
    assert found(half, before=lambda: nn.Linear(1, 1)) == "Linear"
    assert factory_after(None, None, task, tmp_path) is None


def test_names() -> None:
    assert student_name(Student(depth=0.5)) == "depth 0.5"
    assert student_name(Student(width=1 / 3)) == "width 0.333"
