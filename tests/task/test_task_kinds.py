"""What the answers of every kind of task must be, and that probabilities are never taken for logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pastille.data.split import Split, Splits
from pastille.errors import TaskError
from pastille.recipe import Recipe
from pastille.task import load_task
from pastille.task.load import check_output

LABELS = {
    "binary": ["a", "b"],
    "multiclass": ["a", "b", "c"],
    "multilabel": ["a", "b", "c"],
    "segmentation": ["a", "b", "c"],
}


def recipe(kind: str, **task: Any) -> Recipe:
    own = {"metric": "metric.py:error"} if kind == "custom" else {}
    section = {"kind": kind, "model": "model.py:build", "labels": LABELS.get(kind, []), **own, **task}
    return Recipe.model_validate({"name": "test", "task": section, "data": {"source": "data.py:splits"}})


def splits_of(targets: Any, *, n: int = 40, features: tuple[int, ...] = (3,)) -> Splits:
    inputs = np.random.default_rng(0).normal(0, 3, (n, *features)).astype(np.float32)
    split = Split(inputs=inputs, targets=np.broadcast_to(np.asarray(targets), (n, *np.shape(targets))))
    return Splits(train=split, validation=split, test=split)


class Answers(nn.Module):
    """Answers whatever it is told to."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


def same(x: Tensor) -> Tensor:
    return x


MASKS = splits_of(np.zeros((4, 6), int), features=(3, 4, 6))


class TestShapes:
    @pytest.mark.parametrize(
        ("kind", "splits", "make"),
        [
            ("multilabel", splits_of([0, 1, 0]), same),
            ("segmentation", MASKS, same),
            ("custom", splits_of(["a", "b"]), lambda x: x[:, None, :, None]),
        ],
    )
    def test_answers_that_fit(self, kind: str, splits: Splits, make: Any) -> None:
        check_output(Answers(make), splits, recipe(kind))

    @pytest.mark.parametrize("make", [lambda x: x[:, :1], lambda x: x[:, 0]])
    def test_two_classes_from_one_plane(self, make: Any) -> None:
        check_output(Answers(make), MASKS, recipe("segmentation", labels=["no", "yes"]))

    @pytest.mark.parametrize(
        ("kind", "splits", "make", "problem"),
        [
            (
                "multilabel",
                splits_of([0, 1, 0]),
                lambda x: x[:, :2],
                "3 labels must answer with shape (N, 3)",
            ),
            ("segmentation", MASKS, lambda x: x[:, :2], "3 labels must answer with shape (N, 3, H, W)"),
            (
                "segmentation",
                MASKS,
                lambda x: x[:, :, ::2, ::2],
                "its answers are 2 x 3 pixels (height x width), but the masks of train are 4 x 6 pixels",
            ),
            ("custom", splits_of(["a"]), lambda x: x.sum(), "a custom model must answer with shape (N, ...)"),
            ("custom", splits_of(["a"]), lambda x: x.argmax(1), "with logits or numbers, got torch.int64"),
        ],
    )
    def test_answers_that_do_not(self, kind: str, splits: Splits, make: Any, problem: str) -> None:
        with pytest.raises(TaskError) as caught:
            check_output(Answers(make), splits, recipe(kind))
        assert problem in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_masks_of_another_size_in_one_split(self) -> None:
        odd = splits_of(np.zeros((4, 8), int)).test
        splits = Splits(train=MASKS.train, validation=MASKS.validation, test=odd)
        with pytest.raises(TaskError, match=r"are 4 x 6 pixels .* but the masks of test are 4 x 8 pixels"):
            check_output(Answers(same), splits, recipe("segmentation"))


PROBABLE = [
    ("binary", splits_of(0), lambda x: x[:, 0].sigmoid()),
    ("binary", splits_of(0), lambda x: x[:, :1].sigmoid()),
    ("binary", splits_of(0), lambda x: x[:, :2].softmax(1)),
    ("multiclass", splits_of(0), lambda x: x.softmax(1)),
    ("multilabel", splits_of([0, 1, 0]), lambda x: x.sigmoid()),
    ("segmentation", MASKS, lambda x: x.softmax(1)),
]
NAMES = ["sigmoid", "sigmoid column", "two", "softmax", "sigmoids", "masks"]


class TestScale:
    @pytest.mark.parametrize(("kind", "splits", "make"), PROBABLE, ids=NAMES)
    def test_probabilities_must_be_called_so(self, kind: str, splits: Splits, make: Any) -> None:
        with pytest.raises(TaskError, match=r"first 32 training inputs .* set task.outputs: probabilities"):
            check_output(Answers(make), splits, recipe(kind))
        check_output(Answers(make), splits, recipe(kind, outputs="probabilities"))
        check_output(Answers(make), splits, recipe(kind, outputs="logits"))  # who says so is believed

    def test_an_untrained_model_tells_nothing(self) -> None:
        for constant in (0.0, 0.5, 1.0):
            check_output(Answers(lambda x, c=constant: x[:, 0] * 0 + c), splits_of(0), recipe("binary"))

    def test_a_few_numbers_tell_nothing(self) -> None:
        check_output(Answers(lambda x: x[:, 0].sigmoid()), splits_of(0, n=7), recipe("binary"))

    @pytest.mark.parametrize(("kind", "splits", "make"), PROBABLE, ids=NAMES)
    def test_logits_must_not(self, kind: str, splits: Splits, make: Any) -> None:
        def logits(x: Tensor) -> Any:
            return torch.logit(make(x), eps=1e-6)

        check_output(Answers(logits), splits, recipe(kind))
        with pytest.raises(TaskError, match=r"task.outputs is probabilities, which the model does not give"):
            check_output(Answers(logits), splits, recipe(kind, outputs="probabilities"))

    def test_rows_that_do_not_sum_to_one(self) -> None:
        with pytest.raises(TaskError, match=r"which the model does not give: .*sum to 1, but"):
            check_output(
                Answers(lambda x: x.sigmoid()), splits_of(0), recipe("multiclass", outputs="probabilities")
            )

    @pytest.mark.parametrize("kind", ["regression", "custom"])
    def test_numbers_between_0_and_1_are_no_probabilities(self, kind: str) -> None:
        splits = splits_of(0.5)
        check_output(Answers(lambda x: x[:, 0].sigmoid()), splits, recipe(kind))
        with pytest.raises(TaskError, match=f"task.outputs must be left out of a {kind} task"):
            check_output(Answers(lambda x: x[:, 0].sigmoid()), splits, recipe(kind, outputs="probabilities"))


FILES = {
    "model.py": "from torch import nn\ndef build():\n    return nn.Linear(3, 2)\n",
    "metric.py": (
        "import numpy as np\n"
        "def error(outputs, targets):\n    return float(np.abs(outputs - targets).mean())\n"
        "error.higher_is_better = False\n"
    ),
    "data.py": (
        "import numpy as np, pastille\n"
        "def part(seed):\n"
        "    x = np.random.default_rng(seed).normal(size=(20, 3)).astype(np.float32)\n"
        "    return pastille.Split(inputs=x, targets=x[:, :2] * 2)\n"
        "def splits():\n"
        "    return pastille.Splits(train=part(0), validation=part(1), test=part(2))\n"
    ),
}


def test_a_custom_task_is_loaded_with_its_metric(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    task = load_task(recipe("custom"), tmp_path)
    cases = task.cases["test"]
    (metric,) = cases.metrics
    assert (metric.name, metric.higher_is_better) == ("error", False)
    assert metric.function(cases.targets + 1, cases.targets) == pytest.approx(1)
    assert cases.targets.shape == (20, 2)
