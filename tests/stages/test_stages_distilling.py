"""Distillation as a stage: students, teachers, what is recorded, and a kill on the way."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from stages_task import Net, Notes, artifact_of, split, task_of
from torch import nn

from pastille.data.cases import cases
from pastille.errors import DataError, PreconditionError, StageError, UsageError
from pastille.pruning.removal import layer_widths
from pastille.recipe import DistillStep, FinetuneStep, PruneStep, QuantizeStep, Train
from pastille.record import StageDetails
from pastille.stages import Artifact, StageResult, run_stage, stage_for
from pastille.stages.contract import state_digest
from pastille.task import Task
from pastille.train import fit

N = 96


@cache
def trained() -> Net:
    torch.manual_seed(0)
    task = task_of(Net().eval(), n=N)
    settings = Train(epochs=4, batch_size=16, learning_rate=0.05)
    parts = ((task.splits.train, task.cases["train"]), (task.splits.validation, task.cases["validation"]))
    fitted = fit(task.model, *parts, settings, seed=0).model
    assert isinstance(fitted, Net)
    return fitted


def given(folder: Path, model: nn.Module | None = None) -> tuple[Artifact, Task]:
    model = model or trained()
    return artifact_of(model, folder), task_of(model, n=N)


def stage(base: Path = Path(), **asked: Any) -> Any:
    options = {"epochs": 2, "batch_size": 16, "student": {"width": 0.5}, **asked}
    return stage_for(DistillStep.model_validate({"distill": options}), base)


def run(made: Any, artifact: Artifact, task: Task, progress: Any = None) -> StageResult:
    folder = artifact.file.parent / "stage"
    folder.mkdir(exist_ok=True)
    return run_stage(made, artifact, task, folder, progress or Notes())


def test_options_are_what_was_asked_with_defaults() -> None:
    options = stage(temperature={"from": 8, "to": 2}).options
    assert json.loads(json.dumps(dict(options))) == options
    assert options["temperature"] == {"from": 8.0, "to": 2.0}


def test_a_student_of_half_the_width_is_taught_and_told(tmp_path: Path) -> None:
    artifact, task = given(tmp_path)
    progress = Notes()
    result = run(stage(), artifact, task, progress)
    assert layer_widths(result.module) == {"conv1": 16, "conv2": 16, "head": 3}
    (student,) = result.details.students
    assert (student.name, student.metric, student.scratch, student.gain) == (
        "width 0.5",
        "accuracy",
        None,
        None,
    )
    assert student.parameters == sum(p.numel() for p in result.module.parameters())
    assert student.estimate.value > 0.9
    (teacher,) = student.teachers
    assert (teacher.name, teacher.weight, teacher.metric) == ("baseline", 1.0, "accuracy")
    assert teacher.estimate.interval is not None
    (curve,) = result.details.curves
    assert (curve.stage, len(curve.loss)) == ("distilling", 2)
    assert student.asked == "cached, 1.15 kB"
    assert "student width 0.5: its teachers are cached, 1.15 kB" in progress.notes
    assert ("asking the teacher", 2) in progress.tracked
    assert not list(tmp_path.rglob("*.npy"))  # answers are not kept longer than needed


def test_asking_live_gives_the_same_student(tmp_path: Path) -> None:
    """Remembered answers differ from live ones by rounding alone."""
    artifact, task = given(tmp_path)
    found = []
    for number, how in enumerate(("auto", "off")):
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append(run_stage(stage(cache=how), artifact, task, folder, Notes()))
    assert [each.details.students[0].asked for each in found] == ["cached, 1.15 kB", "asked for each batch"]
    for one, other in zip(*(each.module.parameters() for each in found), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_views_of_an_augmentation_are_those_that_were_asked_about(tmp_path: Path) -> None:
    (tmp_path / "augment.py").write_text(
        "import torch\ndef shake(x, g):\n    return x + torch.randn(x.shape, generator=g)\n"
    )
    artifact, task = given(tmp_path)
    made = stage(tmp_path, augment="augment.py:shake", epochs=3, cache={"views": 2})
    result = run(made, artifact, task)
    assert result.details.students[0].asked == "cached, 2 views of each case, 2.3 kB"


def test_each_of_several_students_is_taught_by_the_one_before_too(tmp_path: Path) -> None:
    artifact, task = given(tmp_path)
    result = run(stage(student=[{"width": 0.5}, {"width": 0.5}], compare_to_scratch=True), artifact, task)
    one, two = result.details.students
    assert [t.name for t in one.teachers] == ["baseline"]
    assert [t.name for t in two.teachers] == ["baseline", "student width 0.5 (1 of 2)"]
    assert [t.weight for t in two.teachers] == [0.5, 0.5]
    assert two.parameters < one.parameters < two.teachers[0].parameters
    assert two.teachers[1].parameters == one.parameters
    assert layer_widths(result.module)["conv1"] == 8
    assert one.scratch is None  # the last one is compared
    assert two.scratch is not None
    assert [c.stage for c in result.details.curves] == [
        "distilling width 0.5 (1 of 2)",
        "distilling width 0.5 (2 of 2)",
        "training on the labels alone",
    ]


def test_a_student_that_learned_nothing_does_not_teach_the_next_one(tmp_path: Path) -> None:
    artifact, task = given(tmp_path)
    students = [{"width": 0.5, "init": "random"}, {"width": 0.5}]
    result = run(stage(student=students, learning_rate=1e-9, epochs=1), artifact, task)
    assert [(t.name, t.weight) for t in result.details.students[1].teachers] == [("baseline", 1.0)]
    assert any(note.endswith("; it does not teach the next") for note in result.details.notes)


def test_a_teacher_that_is_overtaken_on_the_way_no_longer_teaches(tmp_path: Path) -> None:
    artifact, task = given(tmp_path)
    weak = copy.deepcopy(task.model)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in weak.parameters():
            p.add_(p.std(correction=0) * torch.randn_like(p))
        [*weak.parameters()][-2].mul_(0.25)  # less sure, as it should be
    task = replace(task, model=weak)
    students = [{"width": 0.5, "init": "random"}, {"width": 0.5}]
    made = stage(student=students, alpha=0.0, learning_rate=0.05, epochs=8)
    result = run(made, artifact, task)
    names = [[t.name for t in student.teachers] for student in result.details.students]
    assert names == [["baseline"], ["student width 0.5, begun anew (1 of 2)"]]
    assert any("worse than its student already is" in note for note in result.details.notes)


class Killed(Exception):
    """Stands for a process that ends."""


class Kills(Notes):
    """Ends the process at a batch of the training that is named so."""

    def __init__(self, what: str, at: int) -> None:
        super().__init__()
        self.what, self.at = what, at

    def track(self, items: Any, *, what: str, total: int | None = None) -> Any:
        for number, item in enumerate(super().track(items, what=what, total=total)):
            if what == self.what and number == self.at:
                raise Killed
            yield item


@pytest.mark.parametrize(
    ("what", "at"),
    [
        ("asking the teacher", 1),
        ("distilling width 0.5 (1 of 2)", 8),
        ("distilling width 0.5 (2 of 2)", 3),
        ("training on the labels alone", 7),
    ],
)
def test_a_kill_on_the_way_changes_nothing(what: str, at: int, tmp_path: Path) -> None:
    artifact, task = given(tmp_path)
    made = stage(student=[{"width": 0.5}, {"width": 0.5}], compare_to_scratch=True)
    whole = run_stage(made, artifact, task, _folder(tmp_path, "whole"), Notes())
    folder, again = _folder(tmp_path, "killed"), Notes()
    with pytest.raises(Killed):
        run_stage(made, artifact, task, folder, Kills(what, at))
    resumed = run_stage(made, artifact, task, folder, again)
    assert state_digest(resumed.module) == state_digest(whole.module)
    assert resumed.details.curves == whole.details.curves
    assert resumed.details.students == whole.details.students
    first_is_done = what not in ("asking the teacher", "distilling width 0.5 (1 of 2)")
    assert ("student width 0.5 (1 of 2): taught before, taken up" in again.notes) == first_is_done


def test_a_teacher_that_changed_meanwhile_is_told(tmp_path: Path) -> None:
    """Half of a student would be taught by one, and half by the other."""
    (tmp_path / "teacher.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    artifact, task = given(tmp_path)
    teachers = [{}, {"model": "teacher.py:build", "weights": "teacher.safetensors"}]
    made = stage(tmp_path, teachers=teachers, accept_poor_teacher=True, epochs=3)
    folder = _folder(tmp_path, "killed")
    for seed in (0, 1):
        torch.manual_seed(seed)
        taught = {"1.weight": torch.randn(3, 64), "1.bias": torch.zeros(3)}
        save_file(taught, tmp_path / "teacher.safetensors")
        killed = seed == 0
        with pytest.raises(Killed if killed else DataError, match=None if killed else "a teacher changed"):
            run_stage(made, artifact, task, folder, Kills("distilling", 3) if killed else Notes())


def _folder(base: Path, name: str) -> Path:
    (base / name).mkdir()
    return base / name


def test_the_same_student_without_a_teacher_stands_beside_it(tmp_path: Path) -> None:
    artifact, task = given(tmp_path)
    result = run(stage(compare_to_scratch=True, epochs=1), artifact, task)
    (student,) = result.details.students
    assert student.scratch is not None
    assert student.gain is not None
    assert student.gain.low <= student.estimate.value - student.scratch.value <= student.gain.high
    taught, alone = result.details.curves
    assert (taught.stage, alone.stage) == ("distilling", "training on the labels alone")
    assert taught.loss != alone.loss
    (said,) = [note for note in result.details.notes if "on the labels alone" in note]
    assert f"{student.scratch.value:.4f} on the labels alone from the same start" in said


def test_the_model_itself_learns_from_what_it_was(tmp_path: Path) -> None:
    artifact, task = given(tmp_path)
    made = stage(student="same", teachers=[{"model": "baseline"}, {"model": "before", "weight": 3}])
    result = run(made, artifact, task)
    assert layer_widths(result.module) == layer_widths(artifact.module)
    (student,) = result.details.students
    assert [(t.name, t.weight) for t in student.teachers] == [("baseline", 0.25), ("before", 0.75)]
    assert student.name == "same"


def test_zeros_stay_where_the_model_itself_is_taught(tmp_path: Path) -> None:
    sparse = Net().eval()
    sparse.load_state_dict(trained().state_dict())
    with torch.no_grad():
        sparse.conv2.weight[:, ::2] = 0
    artifact, task = given(tmp_path)
    artifact = replace(artifact, module=sparse, sparse=True)
    result = run(stage(student="same", learning_rate=0.05), artifact, task)
    assert bool((result.module.get_parameter("conv2.weight")[:, ::2] == 0).all())
    assert not torch.equal(result.module.get_parameter("conv2.weight"), sparse.conv2.weight)


def test_a_students_own_factory_goes_with_it(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(
        "from torch import nn\n"
        "def build(width=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 3))\n"
    )
    artifact, task = given(tmp_path)
    student = {"model": "small.py:build", "arguments": {"width": 8}}
    result = run(stage(tmp_path, student=student, epochs=4, learning_rate=0.05), artifact, task)
    assert result.build is not None
    assert result.build().state_dict().keys() == result.module.state_dict().keys()
    assert result.details.students[0].name == "small.py:build"


class TestTeachers:
    def test_one_that_is_worse_than_its_student_stops_the_stage_with_the_numbers(
        self, tmp_path: Path
    ) -> None:
        blind = Net().eval()
        blind.load_state_dict(trained().state_dict())
        with torch.no_grad():
            blind.head.bias[2] = -100  # one class of three is never seen
        task, artifact = task_of(blind, n=N), artifact_of(trained(), tmp_path)
        with pytest.raises(PreconditionError) as refusal:
            run(stage(student="same"), artifact, task)
        said = str(refusal.value)
        assert "teacher 'baseline' is worse than its student already is: accuracy 0.6667 (95 % CI" in said
        assert said.endswith("bring a better teacher, or set accept_poor_teacher: true")
        result = run(stage(student="same", accept_poor_teacher=True, epochs=1), artifact, task)
        assert any("is worse than its student already is" in note for note in result.details.notes)

    def test_one_that_knows_nothing_stops_the_stage(self, tmp_path: Path) -> None:
        torch.manual_seed(1)
        artifact, task = given(tmp_path, Net().eval())
        with pytest.raises(PreconditionError, match=r"is no better than one constant answer: accuracy 0\.0"):
            run(stage(student={"width": 0.5, "init": "random"}), artifact, task)

    def test_what_it_misses_in_a_group_is_told(self, tmp_path: Path) -> None:
        """Women's images are turned around, which the teacher never saw."""
        artifact, task = given(tmp_path)
        sex = np.where(np.arange(N) % 2 == 0, "F", "M")
        validation = split(N, 1)
        images = np.stack(list(validation.inputs))
        turned = np.where((sex == "F")[:, None, None, None], -images, images)
        held = replace(validation, inputs=turned.astype(np.float32), groups={"sex": sex})
        task = replace(
            task,
            splits=replace(task.splits, validation=held),
            cases={**task.cases, "validation": cases(held, "validation", task.recipe.task)},
        )
        result = run(stage(accept_poor_teacher=True, epochs=1), artifact, task)
        assert "sex = F" in result.details.students[0].teachers[0].worse
        assert any("where sex = F" in n and "the student will inherit it" in n for n in result.details.notes)

    def test_it_is_the_same_after_teaching(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        before = state_digest(task.model)
        run(stage(student="same", cache="off", learning_rate=0.1), artifact, task)
        assert state_digest(task.model) == before
        assert not task.model.training

    def test_one_of_other_classes_or_another_order_of_them_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "large.py").write_text(
            "from torch import nn\n"
            "def build(classes=5, labels=()):\n"
            "    net = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
            "    net.labels = list(labels)\n"
            "    return net\n"
        )
        artifact, task = given(tmp_path)
        other = {"model": "large.py:build"}
        with pytest.raises(UsageError, match="answers with 5 numbers a case, the model of the task with 3"):
            stage(tmp_path, teachers=[other]).requires(artifact, task)
        swapped = {**other, "arguments": {"classes": 3, "labels": ["b", "a", "c"]}}
        with pytest.raises(
            UsageError, match="its labels are in the order b, a, c, those of the task a, b, c"
        ):
            stage(tmp_path, teachers=[swapped]).requires(artifact, task)


def test_a_student_that_is_larger_than_its_teacher_is_told(tmp_path: Path) -> None:
    (tmp_path / "large.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 3))\n"
    )
    artifact, task = given(tmp_path)
    result = run(stage(tmp_path, student={"model": "large.py:build"}, epochs=1), artifact, task)
    assert any("more than its largest teacher (9731)" in note for note in result.details.notes)
    assert any("begin with a student 3 to 4 times smaller" in note for note in result.details.notes)


def test_requirements(tmp_path: Path) -> None:
    artifact, task = given(tmp_path)
    frozen = replace(artifact, module=Net().requires_grad_(False))
    with pytest.raises(
        PreconditionError, match="distill: the model has no parameter that requires a gradient"
    ):
        stage(student="same").requires(frozen, task)
    (tmp_path / "still.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).requires_grad_(False)\n"
    )
    with pytest.raises(PreconditionError, match=r"distill\.student: still\.py:build has no parameter that"):
        stage(tmp_path, student={"model": "still.py:build"}).requires(artifact, task)
    with pytest.raises(UsageError, match="augment: there is no file"):
        stage(tmp_path, augment="augment.py:flip").requires(artifact, task)
    with pytest.raises(PreconditionError, match=r"distill.method: .*dkd"):
        stage(method="dkd").requires(artifact, task_of(Net(outputs=1).eval(), regression=True))
    with pytest.raises(PreconditionError, match=r"distill.loss: focal is for classes"):
        stage(loss="focal").requires(artifact, task_of(Net(outputs=1).eval(), regression=True))


def test_promises(tmp_path: Path) -> None:
    artifact, _ = given(tmp_path)
    same = StageResult(module=artifact.module, details=StageDetails())
    with pytest.raises(StageError, match="must make the student smaller"):
        stage().ensures(artifact, same)
    stage(student="same").ensures(artifact, same)
    other = StageResult(module=Net(16), details=StageDetails())
    with pytest.raises(StageError, match="must not change the architecture of student: same"):
        stage(student="same").ensures(artifact, other)
    stage().ensures(artifact, other)


class TestOtherTrainings:
    """The same losses and teachers where another stage trains."""

    def test_fine_tuning_learns_from_the_baseline(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        asked = {"epochs": 2, "batch_size": 16, "distill": {"alpha": 1.0, "hints": {"loss": "attention"}}}
        made = stage_for(FinetuneStep.model_validate({"finetune": asked}), tmp_path)
        torch.manual_seed(5)
        student = replace(artifact, module=Net().eval())
        result = run(made, student, task)
        assert result.details.notes == (
            "teacher asked for each batch: 1 view of each case would cost as much as 2 epochs",
        )
        assert not list(tmp_path.rglob("*.npy"))

    def test_training_in_int8_compares_answers_alone(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        asked = {"method": "qat", "train": {"epochs": 1}, "samples": 32, "distill": {"hints": {}}}
        made = stage_for(QuantizeStep.model_validate({"quantize": asked}), tmp_path)
        with pytest.raises(PreconditionError, match=r"quantize.distill.hints: .*answers alone"):
            made.requires(artifact, task)

    def test_hints_reach_fine_tuning_after_a_prune(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        asked = {
            "sparsity": 0.5,
            "finetune": {"epochs": 1, "batch_size": 16},
            "distill": {"hints": {"layers": {"conv2": "conv2"}}},
        }
        made = stage_for(PruneStep.model_validate({"prune": asked}), tmp_path)
        assert len(run(made, artifact, task).details.curves) == 1
        wrong = {**asked, "distill": {"hints": {"layers": {"conv2": "conv3"}}}}
        made = stage_for(PruneStep.model_validate({"prune": wrong}), tmp_path)
        with pytest.raises(PreconditionError, match=r"hints.layers.*conv3"):
            run(made, artifact, task)
