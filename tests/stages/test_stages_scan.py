"""A scan of a small trained network: what it finds, whether it agrees with the naive one, that it goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scan_project import write_project
from scipy.stats import kendalltau
from stages_task import Net, task_of

from pastille.errors import PreconditionError, UsageError
from pastille.pruning import survey
from pastille.recipe import read_recipe
from pastille.stages.scanning import ScanSettings, scan, scan_pruning
from pastille.stages.scanning.journal import findings
from pastille.stages.scanning.scan import plan_of
from pastille.stages.scanning.scoring import metric_of, scorer
from pastille.stats.metrics import score
from pastille.task import Task, example_batch, load_task
from pastille.values import Cases, from_json, to_json
from pastille.values.scanned import Scan

Key = tuple[str, str, float]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    recipe = write_project(tmp_path_factory.mktemp("scanned"))
    return load_task(read_recipe(recipe), recipe.parent)


@pytest.fixture(scope="module")
def naive(task: Task) -> dict[Key, np.ndarray]:
    """Every change on all of validation, one full pass each: cross-entropy and accuracy of every case."""
    split = task.splits.validation
    inputs, targets = torch.tensor(np.stack(list(split.inputs))), torch.tensor(split.targets)

    def asked() -> np.ndarray:
        with torch.inference_mode():
            logits = task.model(inputs).double()
        loss = -logits.log_softmax(1)[torch.arange(len(targets)), targets]
        return torch.stack([loss, (logits.argmax(1) == targets).double()]).numpy()

    before, found = asked(), dict[Key, np.ndarray]()
    for change in plan_of(task.model, task, ScanSettings()).changes:
        with change.applied(task.model):
            found[change.key] = asked() - before
    return found


@pytest.fixture(scope="module")
def found(task: Task) -> Scan:
    return scan(task.model, task, ScanSettings(cases=128))


def test_all_of_validation_gives_the_naive_scan(task: Task, naive: dict[Key, np.ndarray]) -> None:
    whole = scan(
        task.model, task, ScanSettings(cases=task.splits.validation.n, levels=(0.25,), agreement=1.0)
    )
    complete = [e for e in whole.effects if e.cases == task.splits.validation.n]
    assert complete
    sex = task.splits.validation.groups["sex"]
    for effect in complete:
        loss, right = naive[effect.technique, effect.layer, effect.level]
        assert effect.loss == pytest.approx(loss.mean(), abs=1e-5)
        assert effect.metric == pytest.approx(-right.mean(), abs=0.003)
        groups = {f"sex={name}": loss[sex == name].mean() for name in ("<f>", "m")}
        assert effect.group == max(groups, key=lambda name: groups[name])
        assert effect.group_loss == pytest.approx(max(groups.values()), abs=1e-5)


def test_a_few_cases_give_nearly_the_same_order(found: Scan, naive: dict[Key, np.ndarray]) -> None:
    assert max(effect.cases for effect in found.effects) <= 128
    ours = {(e.technique, e.layer, e.level): e.loss for e in found.effects}
    for technique, level in (
        ("pruning", 0.25),
        ("pruning", 0.5),
        ("quantization", 8.0),
        ("quantization", 4.0),
    ):
        keys = [key for key in ours if (key[0], key[2]) == (technique, level)]
        tau = kendalltau([ours[key] for key in keys], [naive[key][0].mean() for key in keys]).statistic
        assert tau >= (0.85 if technique == "pruning" else 0.6), (technique, level)
    whole = kendalltau(list(ours.values()), [naive[key][0].mean() for key in ours]).statistic
    assert whole >= 0.85


def test_intervals_hold_the_naive_rise(found: Scan, naive: dict[Key, np.ndarray]) -> None:
    inside = [
        e.loss_low <= naive[e.technique, e.layer, e.level][0].mean() <= e.loss_high for e in found.effects
    ]
    assert np.mean(inside) > 0.85


def test_a_ruined_layer_is_not_ruined_further(found: Scan, task: Task) -> None:
    tried = {(e.layer, e.level) for e in found.effects if e.technique == "pruning"}
    left = {key for key in ((x, level) for x, _ in tried for level in (0.25, 0.5, 0.75)) if key not in tried}
    assert left
    for layer, level in left:
        milder = max(x for name, x in tried if name == layer)
        assert milder < level
        (effect,) = (
            e for e in found.effects if (e.technique, e.layer, e.level) == ("pruning", layer, milder)
        )
        assert effect.loss_low is not None
        assert effect.loss_low + found.baseline_loss > np.log(10)
        assert f"{level:g}" in found.stopped[f"pruning of {layer}"]


def test_the_model_is_left_alone_and_the_file_reads_back(found: Scan, task: Task) -> None:
    assert not task.model.training
    assert from_json(Scan, to_json(found)) == found
    assert found.skipped == {"head": found.skipped["head"]}
    harm = found.harm("pruning")
    assert set(harm) == {e.layer for e in found.effects if e.technique == "pruning"}
    assert next(iter(found.layers)) == "stem"


class StopError(Exception):
    """The process was killed."""


def test_a_scan_that_was_killed_goes_on_and_ends_the_same(found: Scan, task: Task, tmp_path: Path) -> None:
    journal, settings = tmp_path / "scan.journal", ScanSettings(cases=128)

    class Killed:
        def track(self, items, *, what, total=None):  # type: ignore[no-untyped-def]
            for number, item in enumerate(items):
                if "scanning" in what and number == 9:
                    raise StopError
                yield item

        def note(self, text: str) -> None: ...

    with pytest.raises(StopError):
        scan(task.model, task, settings, journal=journal, progress=Killed())
    lines = journal.read_bytes()
    assert 5 <= lines.count(b"\n") <= 10
    journal.write_bytes(lines + b'{"change":["pruning","st')  # cut while it was written
    again = scan(task.model, task, settings, journal=journal)
    assert replace(again, seconds=0.0) == replace(found, seconds=0.0)
    assert journal.read_bytes().startswith(lines)
    size = journal.stat().st_size
    scan(task.model, task, settings, journal=journal)
    assert journal.stat().st_size == size  # nothing was asked again


def test_a_journal_of_another_scan_is_replaced(task: Task, tmp_path: Path) -> None:
    journal = tmp_path / "scan.journal"
    for asked in ({"model": "a"}, {"model": "b"}):
        with findings(journal) as kept:
            kept.take_up(asked)
            assert kept.of(("pruning", "x", 0.5)).shape == (2, 0)
            kept.add(("pruning", "x", 0.5), 0, np.ones((2, 3)))
    with findings(journal) as kept:
        kept.take_up({"model": "b"})
        assert kept.of(("pruning", "x", 0.5)).shape == (2, 3)
        with pytest.raises(UsageError, match="another process"), findings(journal):
            pass


def test_an_allocation_is_given_the_groups_that_it_asked_for(task: Task) -> None:
    groups = survey(task.model, example_batch(task.splits.train.inputs))
    found = scan_pruning(task.model, task, groups, levels=(0.5,))
    assert set(found.harm("pruning")) == {group.name for group in groups if not group.whole}


def test_a_regression_is_measured_in_variances() -> None:
    torch.manual_seed(0)
    task = task_of(Net(outputs=1).eval(), n=200, regression=True)
    found = scan(task.model, task, ScanSettings(techniques=("quantization",)))
    cases = task.cases["validation"]
    inputs = torch.tensor(np.stack(list(task.splits.validation.inputs)))
    r2 = score(task.model(inputs).detach().numpy(), cases).overall["r2"].value
    assert found.metric == "r2"
    assert found.baseline_metric == pytest.approx(r2, abs=1e-4)
    assert found.baseline_loss == pytest.approx(1 - r2, abs=1e-4)


def test_the_scores_are_the_metric() -> None:
    rng = np.random.default_rng(0)
    targets, logits = (rng.random(300) < 0.2).astype(np.int64), rng.normal(size=(300, 2))
    cases = Cases(kind="binary", split="validation", targets=targets, labels=("a", "b"), positive=(1,))
    losses, scores = scorer(cases)(torch.tensor(logits), np.arange(300))
    assert scores.mean() == pytest.approx(score(logits, cases).overall["balanced_accuracy"].value)
    truth = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(targets), reduction="none")
    np.testing.assert_allclose(losses, truth, rtol=1e-5)
    answers = torch.tensor([[np.nan, 0.0]])
    assert scorer(cases)(answers, np.array([0])).tolist() == [[100.0], [0.0]]


def test_what_cannot_be_scanned_says_why(task: Task) -> None:
    custom = replace(task.cases["validation"], kind="custom")
    with pytest.raises(PreconditionError, match="custom task has no loss"):
        metric_of(custom)
    with pytest.raises(PreconditionError, match=r"nothing to try on this model \(.*protect"):
        scan(task.model, task, ScanSettings(techniques=("pruning",), protect=("*",)))
