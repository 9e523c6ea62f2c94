"""From a recipe to a task whose parts fit each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from task_files import recipe, write_users_files
from torch import Tensor, nn

from pastille.data.split import Split, Splits
from pastille.errors import TaskError, WeightsError
from pastille.task import answers, example_batch, forward, load_task
from pastille.task.load import check_output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_users_files(tmp_path)


def test_everything_is_loaded(folder: Path) -> None:
    torch.manual_seed(7)
    from pastille.task.factory import model_factory

    trained = model_factory(recipe().task, folder, seed=9)()
    save_file(trained.state_dict(), folder / "best.safetensors")
    task = load_task(recipe(weights="best.safetensors"), folder)
    assert torch.equal(task.model.get_parameter("head.bias"), trained.get_parameter("head.bias"))
    assert not task.model.training
    assert [(name, split.n) for name, split in task.splits] == [
        ("train", 24),
        ("validation", 12),
        ("test", 12),
    ]
    assert task.cases["test"].labels == ("a", "b", "c")
    assert [(spec.name, spec.shape, spec.dtype) for spec in task.inputs] == [("input", (4,), "float32")]
    assert not torch.equal(task.build().get_parameter("head.bias"), trained.get_parameter("head.bias"))
    assert task.data_digest == load_task(recipe(), folder).data_digest


def test_weights_with_nan_stop_the_load(folder: Path) -> None:
    from pastille.task.factory import model_factory

    trained = model_factory(recipe().task, folder)()
    nn.init.constant_(trained.get_parameter("head.weight"), torch.nan)
    save_file(trained.state_dict(), folder / "best.safetensors")
    with pytest.raises(WeightsError, match=r"NaN in 1 tensors \(head.weight\)"):
        load_task(recipe(weights="best.safetensors"), folder)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"width": 5}, r"does not accept inputs of shape input \(5,\) torch.float32: RuntimeError: .*5"),
        ({"dtype": "float64"}, r"does not accept inputs of shape input \(4,\) torch.float64: RuntimeError: "),
    ],
    ids=["shape", "dtype"],
)
def test_inputs_that_the_model_does_not_take(data: dict[str, Any], problem: str, folder: Path) -> None:
    with pytest.raises(TaskError, match=problem) as caught:
        load_task(recipe(data=data), folder)
    assert "\n" not in str(caught.value)
    assert "change what data gives, or the model" in str(caught.value)


def test_a_wrong_number_of_classes(folder: Path) -> None:
    with pytest.raises(TaskError, match=r"3 labels must answer with shape \(N, 3\), got \(2, 4\)"):
        load_task(recipe(arguments={"outputs": 4}), folder)


class Answers(nn.Module):
    """Answers whatever it is told to."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


SPLIT = Split(inputs=np.ones((4, 4), np.float32), targets=np.array([0, 1, 2, 0]))
SPLITS = Splits(train=SPLIT, validation=SPLIT, test=SPLIT)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda x: x[:, :2], r"must answer with shape \(N, 3\), got \(2, 2\)"),
        (lambda x: x[:, None, :3], r"must answer with shape \(N, 3\), got \(2, 1, 3\)"),
        (lambda x: x.sum(), r"must answer with shape \(N, 3\), got \(\)"),
        (lambda x: x[:1, :3], r"the batch axis must come first, .* \(1, 3\)"),
        (lambda x: x.argmax(1), r"must answer with logits or numbers, got torch.int64"),
        (lambda x: {"logits": x[:, :3]}, r"must return a tensor .* got dict"),
        (lambda x: (), r"must return a tensor .* got tuple"),
        (lambda x: None, r"must return a tensor .* got NoneType"),
        (lambda x: x[:, :3] / 0, r"answers NaN or infinity .* check its weights"),
        (lambda x: x.reshape(9, 9), r"does not accept inputs of shape"),
    ],
)
def test_answers_that_do_not_fit_the_task(make: Any, problem: str) -> None:
    with pytest.raises(TaskError, match=problem) as caught:
        check_output(Answers(make), SPLITS, recipe())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [lambda x: x[:, :3], lambda x: (x[:, :3], x), lambda x: [(x[:, :3], x), x]],
    ids=["one", "pair", "nest"],
)
def test_the_first_answer_counts(make: Any) -> None:
    check_output(Answers(make), SPLITS, recipe())
    assert forward(Answers(make), {"input": torch.ones(2, 4)}).shape == (2, 3)


def test_all_answers_in_order() -> None:
    model = Answers(lambda x: (x[:, :1], {"a": x[:, :2]}, [x[:, :3], None], 7))
    assert [out.shape[1] for out in answers(model, {"input": torch.ones(2, 4)})] == [1, 2, 3]


def test_named_inputs_go_by_keyword_and_a_bare_one_by_position() -> None:
    class Named(nn.Module):
        def forward(self, second: Tensor, first: Tensor) -> Tensor:
            return second - first

    batch = {"first": torch.ones(2), "second": torch.full((2,), 3.0)}
    assert forward(Named(), batch).tolist() == [2.0, 2.0]
    assert forward(Answers(lambda anything: anything), {"input": torch.ones(1)}).tolist() == [1.0]


def test_an_example_repeats_what_is_too_short() -> None:
    inputs = [{"ids": np.array([i, i])} for i in range(3)]
    assert example_batch(inputs, 5)["ids"][:, 0].tolist() == [0, 1, 2, 0, 1]
    assert example_batch(inputs)["ids"].dtype == torch.int64
