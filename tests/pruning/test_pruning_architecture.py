"""The safe form of a pruned model: rebuilt bit for bit elsewhere, and nothing hostile gets through it."""

from __future__ import annotations

import copy
import json
import pickletools
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pruning_nets import NETS, Net, Residual, trained_looking
from safetensors.torch import load_file, save_file
from torch import nn

from pastille.errors import ExitCode, IntegrityError, StageError
from pastille.pruning import prune, read_model, write_model
from pastille.pruning.architecture import PLAN, WEIGHTS, architecture_of
from pastille.stages.contract import state_digest
from pastille.task import forward


def build() -> nn.Module:
    return Residual()


def pruned_model(net: Net) -> nn.Module:
    return prune(trained_looking(net), net.batch(), sparsity=0.5).model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(pruned_model(NETS["residual"]), build(), tmp_path)
    return tmp_path


@pytest.mark.parametrize("net", NETS.values(), ids=list(NETS))
def test_a_pruned_model_comes_back_bit_for_bit(net: Net, tmp_path: Path) -> None:
    model = pruned_model(net)
    write_model(model, net.build(), tmp_path)
    back = read_model(net.build, tmp_path)
    assert state_digest(back) == state_digest(model)
    assert torch.equal(forward(back, net.batch()), forward(model, net.batch()))
    assert repr(back) == repr(model)  # every size that a layer tells of itself
    assert not back.training


def test_a_model_that_was_pruned_and_trained_twice_comes_back(tmp_path: Path) -> None:
    net = NETS["residual"]
    model = trained_looking(net)
    for sparsity in (0.25, 0.33):
        model = prune(model, net.batch(), sparsity=sparsity).model
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
    write_model(model, build(), tmp_path)
    assert state_digest(read_model(build, tmp_path)) == state_digest(model)


def test_an_unchanged_model_has_an_empty_plan_and_comes_back(tmp_path: Path) -> None:
    model = trained_looking(NETS["residual"])
    write_model(model, build(), tmp_path)
    plan = {"schema": 2, "attributes": {}, "shapes": {}, "replacements": {}}
    assert json.loads((tmp_path / PLAN).read_bytes()) == plan
    assert state_digest(read_model(build, tmp_path)) == state_digest(model)


FRESH = """
import sys
from pathlib import Path
import torch
from pastille.pruning import read_model
from pastille.references import load_callable
from pastille.stages.contract import state_digest
from pastille.task import forward

folder = Path(sys.argv[1])
model = read_model(load_callable("model.py:build", folder, key="task.model"), folder)
x = torch.load(folder / "x.pt", weights_only=True)
print(state_digest(model), forward(model, {"input": x}).flatten().tolist())
"""


def test_a_fresh_process_with_the_users_factory_answers_the_same(folder: Path) -> None:
    source = Path(__file__).with_name("pruning_nets.py").read_text()
    (folder / "model.py").write_text(f"{source}\n\ndef build():\n    return Residual()\n")
    x = NETS["residual"].batch()["input"]
    torch.save(x, folder / "x.pt")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(folder)], capture_output=True, text=True, check=False
    )
    model = read_model(build, folder)
    expected = forward(model, {"input": x}).flatten().tolist()
    assert (done.stdout.strip(), done.stderr) == (f"{state_digest(model)} {expected}", "")


def test_no_pickle_is_written(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [PLAN, WEIGHTS]
    for path in folder.iterdir():
        data = path.read_bytes()
        assert not data.startswith((b"PK", b"\x80"))  # a zip, as torch.save writes, or a pickle
        with pytest.raises((ValueError, IndexError)):
            list(pickletools.genops(data))


def test_the_same_model_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_model(pruned_model(NETS["residual"]), build(), tmp_path / "again")
    for name in (PLAN, WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    model = tied()
    write_model(model, tied(), tmp_path)
    back = read_model(tied, tmp_path)
    assert state_digest(back) == state_digest(model)
    assert back.get_parameter("0.weight") is back.get_parameter("1.weight")


def test_frozen_parameters_come_back_as_the_factory_builds_them(tmp_path: Path) -> None:
    def frozen() -> nn.Module:
        model = Residual()
        model.stem.requires_grad_(False)
        return model

    net = Net(build=frozen, shape=NETS["residual"].shape, coupled=())
    write_model(pruned_model(net), frozen(), tmp_path)
    back = read_model(frozen, tmp_path)
    names = {n for n, p in back.named_parameters() if not p.requires_grad}
    assert names == {"stem.0.weight", "stem.1.weight", "stem.1.bias"}


def test_the_users_own_numbers_and_arrays_are_no_part_of_the_plan() -> None:
    """Attributes are compared for sizes alone: an array would answer an array to ``!=``."""
    model, original = Residual(), Residual()
    for module, value in ((model, 1.0), (original, 2.0)):
        vars(module)["mean"] = torch.full((3,), value)
        vars(module)["calls"] = int(value)
    assert not architecture_of(model, original).attributes


def test_a_model_with_other_layers_is_no_change_of_sizes() -> None:
    with pytest.raises(StageError, match=r"not add or drop any: 1.bias, 1.weight"):
        architecture_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2)))


def change(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(plan: dict[str, Any]) -> None:
        for key in path[:-1]:
            plan = plan.setdefault(key, {})
        plan[path[-1]] = to

    return apply


HOSTILE: dict[str, Callable[[dict[str, Any]], None]] = {
    "huge shape": change("shapes", "conv1.weight", to=[1 << 40, 1 << 20, 3, 3]),
    "huge shape of few bytes": change("shapes", "head.bias", to=[1 << 62]),
    "shape beyond 64 bits": change("shapes", "head.bias", to=[1 << 80]),
    "negative shape": change("shapes", "head.bias", to=[-5]),
    "empty shape": change("shapes", "head.bias", to=[]),
    "shape of another rank": change("shapes", "head.bias", to=[5, 1]),
    "shape of an unknown tensor": change("shapes", "tail.bias", to=[5]),
    "shape of a path": change("shapes", "../../head.bias", to=[5]),
    "shape of a dunder": change("shapes", "head.__class__", to=[5]),
    "shape that is no shape": change("shapes", "head.bias", to="5"),
    "unknown module": change("attributes", "tail", "out_features", to=5),
    "module by path": change("attributes", "../head", "out_features", to=5),
    "module by dunder": change("attributes", "head.__class__", "out_features", to=5),
    "module that is a tensor": change("attributes", "head.weight", "out_features", to=5),
    "dunder attribute": change("attributes", "head", "__class__", to=5),
    "private attribute": change("attributes", "head", "_version", to=5),
    "method": change("attributes", "head", "forward", to=5),
    "flag": change("attributes", "head", "training", to=1),
    "stride": change("attributes", "conv1", "stride", to=[2, 2]),
    "huge width": change("attributes", "conv1", "out_channels", to=10**30),
    "negative width": change("attributes", "conv1", "out_channels", to=-8),
    "width that the weights do not have": change("attributes", "conv1", "out_channels", to=24),
    "groups of zero": change("attributes", "conv1", "groups", to=0),
    "other groups": change("attributes", "conv1", "groups", to=4),
    "tuple for a number": change("attributes", "conv1", "out_channels", to=[16]),
    "attribute of another layer": change("attributes", "conv1", "out_features", to=16),
    "text for a number": change("attributes", "conv1", "out_channels", to="sixteen"),
    "code for a number": change("attributes", "conv1", "out_channels", to="__import__('os')"),
    "null for a number": change("attributes", "conv1", "out_channels", to=None),
    "attributes that are a list": change("attributes", to=[1]),
    "missing shapes": lambda plan: plan.pop("shapes"),
    "later schema": change("schema", to=3),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_plan_is_refused_in_one_line(
    change: Callable[[dict[str, Any]], None], folder: Path
) -> None:
    plan = json.loads((folder / PLAN).read_bytes())
    change(plan)
    (folder / PLAN).write_text(json.dumps(plan))
    model = build()
    with pytest.raises(IntegrityError) as caught:
        read_model(lambda: model, folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert caught.value.exit_code is ExitCode.INTEGRITY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "\x00",
        "[" * 100_000,
        '{"schema": 1, "attributes": ' + '{"a":' * 50_000,
        "\ud800",
    ],
    ids=["empty", "open", "list", "null", "zero", "deep list", "deep object", "no UTF-8"],
)
def test_a_plan_that_is_no_plan_is_refused_in_one_line(text: str, folder: Path) -> None:
    (folder / PLAN).write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(IntegrityError, match="architecture") as caught:
        read_model(build, folder)
    assert "\n" not in str(caught.value)


def test_a_plan_of_huge_shapes_takes_no_memory(folder: Path) -> None:
    plan = json.loads((folder / PLAN).read_bytes())
    plan["shapes"] = {name: [1 << 14, 1 << 14, 3, 3] for name in load_file(folder / WEIGHTS)}
    (folder / PLAN).write_text(json.dumps(plan))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(IntegrityError, match=r"must be torch.int64 \(16384"):
        read_model(build, folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB; one would be 9.7 GB


@pytest.mark.parametrize("name", [PLAN, WEIGHTS])
def test_missing_and_truncated_files(name: str, folder: Path) -> None:
    whole = (folder / name).read_bytes()
    for data in (whole[: len(whole) // 2], whole[:5], b""):
        (folder / name).write_bytes(data)
        with pytest.raises(IntegrityError, match=name.partition(".")[0]):
            read_model(build, folder)
    (folder / name).unlink()
    with pytest.raises(IntegrityError, match=name):
        read_model(build, folder)


def test_weights_of_another_dtype_or_with_other_names_are_refused(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    cases = {
        "must be torch.float32": {**tensors, "head.bias": tensors["head.bias"].double()},
        "in one only .*tail": {**tensors, "tail": torch.zeros(1)},
        "in one only .*head.bias": {n: x for n, x in tensors.items() if n != "head.bias"},
    }
    for problem, changed in cases.items():
        save_file(changed, folder / WEIGHTS)
        with pytest.raises(IntegrityError, match=problem):
            read_model(build, folder)


def test_a_factory_that_builds_another_net_is_named_as_the_likely_cause(folder: Path) -> None:
    with pytest.raises(IntegrityError, match="is it the factory that the model came from"):
        read_model(NETS["dense"].build, folder)


def test_writing_leaves_the_model_alone(tmp_path: Path) -> None:
    model, original = pruned_model(NETS["residual"]), build()
    digests = state_digest(model), state_digest(original)
    copied = copy.deepcopy(model)
    write_model(model, original, tmp_path)
    assert (state_digest(model), state_digest(original)) == digests
    assert repr(model) == repr(copied)
