"""The file answers like the model, is the same each time, and tells nothing about this machine."""

from __future__ import annotations

import copy
import getpass
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_nets import (
    IMAGE,
    Conditional,
    Function,
    NamedLikeTheInterface,
    TwoInputs,
    arrays,
    conv_net,
    operators,
    rows,
)
from torch import Tensor, nn

from pastille.errors import OutputError, PastilleError
from pastille.export import check_parity, export_onnx
from pastille.runtime import load
from pastille.runtime.onnx_file import check_self_contained
from pastille.task.forward import forward


def assert_equal(model: nn.Module, batch: dict[str, Tensor], path: Path, tolerance: float = 1e-5) -> None:
    """At batch sizes that it was not exported with, too."""
    session = load(path)
    for n in (1, 2, 5):
        part = {name: x[:n] for name, x in batch.items()}
        with torch.no_grad():
            expected = forward(model.eval(), part).numpy()
        answer = session(arrays(part))["output"]
        assert answer.shape == expected.shape
        np.testing.assert_allclose(answer, expected, atol=tolerance)


def exported(model: nn.Module, path: Path, *shape: int) -> Path:
    export_onnx(model, {"input": rows(*shape)[:2]}, path)
    return path


def test_a_network_of_convolutions(tmp_path: Path) -> None:
    model, path = conv_net(), exported(conv_net(), tmp_path / "m.onnx", *IMAGE)
    assert_equal(model, {"input": rows(*IMAGE)}, path)
    check_self_contained(path)
    session = load(path)
    assert [s.name for s in session.inputs] == ["input"]
    assert [s.name for s in session.outputs] == ["output"]
    assert session.fixed_batch is None
    assert operators(path).count("BatchNormalization") == 0, "folded"
    assert onnx.load(path).opset_import[0].version == 20


def test_the_bytes_do_not_depend_on_the_process(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from export_nets import *; from pastille.export import export_onnx;"
        "export_onnx(conv_net(), {'input': rows(*IMAGE)[:2]}, pathlib.Path(sys.argv[1]))"
    )
    digests = set()
    for seed, folder in (("1", "elsewhere/deeper"),):
        path = tmp_path / folder / "m.onnx"
        path.parent.mkdir(parents=True)
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)],
            env=environment,
            cwd=path.parent,
            capture_output=True,
            check=True,
        )
        assert (done.stdout, done.stderr) == (b"", b"")
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    digests.add(hashlib.sha256(exported(conv_net(), tmp_path / "m.onnx", *IMAGE).read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("model", [conv_net(), Conditional()], ids=["plain", "with branches"])
def test_no_trace_of_this_machine(model: nn.Module, tmp_path: Path) -> None:
    shape = (8,) if isinstance(model, Conditional) else IMAGE
    data = exported(model, tmp_path / "m.onnx", *shape).read_bytes()
    user = getpass.getuser()
    for trace in (os.fspath(Path.home()), "/work", "/tmp", "site-packages", ".py", "forward(", "return "):
        assert trace.encode() not in data, trace
    assert len(user) < 4 or user.encode() not in data
    assert b"stack_trace" not in data


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_named_inputs_keep_their_names_in_any_order(order: tuple[str, str], tmp_path: Path) -> None:
    both = {"a": rows(seed=1), "b": rows(seed=2)}
    batch = {name: both[name] for name in order}
    model, path = TwoInputs(), tmp_path / "m.onnx"
    export_onnx(model, {name: x[:2] for name, x in batch.items()}, path)
    assert [s.name for s in load(path).inputs] == list(order)
    assert_equal(model, batch, path)


def test_an_input_that_the_model_ignores_stays_an_input(tmp_path: Path) -> None:
    model, path = Function(lambda net, a, b: net.head(a), head=nn.Linear(8, 3)), tmp_path / "m.onnx"
    batch = {"a": rows(), "b": rows(seed=1)}
    export_onnx(model, {name: x[:2] for name, x in batch.items()}, path)
    assert [s.name for s in load(path).inputs] == ["a", "b"]
    assert_equal(model, batch, path)


def test_parameters_named_input_and_output(tmp_path: Path) -> None:
    model = NamedLikeTheInterface()
    assert_equal(model, {"input": rows()}, exported(model, tmp_path / "m.onnx"))


def test_the_branch_that_the_error_recommends_works(tmp_path: Path) -> None:
    model, path = Conditional(), tmp_path / "m.onnx"
    exported(model, path)
    assert "If" in operators(path)
    x = rows()
    assert_equal(model, {"input": x.abs()}, path)
    assert_equal(model, {"input": -x.abs()}, path)


@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("shape", [(4, 9), (4, 3, 4, 5)], ids=["1-D", "3-D"])
def test_global_pooling_is_written_as_such(keepdims: bool, shape: tuple[int, ...], tmp_path: Path) -> None:
    axes = tuple(range(2, len(shape) + 1))
    model = Function(lambda net, x: x.mean(dim=axes, keepdim=keepdims) * 2)
    path = exported(model, tmp_path / "m.onnx", *shape)
    assert "GlobalAveragePool" in operators(path)
    assert "ReduceMean" not in operators(path)
    assert_equal(model, {"input": rows(*shape)}, path, tolerance=1e-6)


@pytest.mark.parametrize(("axes", "shape"), [((2,), (4, 5, 6)), ((1, 2), (4, 5))])
def test_other_means_are_left_alone(axes: tuple[int, ...], shape: tuple[int, ...], tmp_path: Path) -> None:
    model = Function(lambda net, x: x.mean(dim=axes))
    path = exported(model, tmp_path / "m.onnx", *shape)
    assert operators(path).count("ReduceMean") == 1
    assert_equal(model, {"input": rows(*shape)}, path, tolerance=1e-6)


def test_pooling_in_double_precision_keeps_an_operator_that_has_a_kernel(tmp_path: Path) -> None:
    model = Function(lambda net, x: x.double().mean(dim=(2, 3)).float())
    assert_equal(model, {"input": rows(*IMAGE)}, exported(model, tmp_path / "m.onnx", *IMAGE))


def test_two_poolings_share_the_new_constant(tmp_path: Path) -> None:
    model = Function(lambda net, x: x.mean(dim=(2, 3)) + x.square().mean(dim=(2, 3)))
    path = exported(model, tmp_path / "m.onnx", *IMAGE)
    assert operators(path).count("GlobalAveragePool") == 2
    assert_equal(model, {"input": rows(*IMAGE)}, path)


def test_exported_as_in_eval_mode_and_the_model_is_not_changed(tmp_path: Path) -> None:
    model = conv_net().train()
    model[0].requires_grad_(False)  # type: ignore[index]
    model(rows(*IMAGE)).sum().backward()
    before, expected = copy.deepcopy(model.state_dict()), copy.deepcopy(model).eval()
    path = exported(model, tmp_path / "m.onnx", *IMAGE)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert_equal(expected, {"input": rows(*IMAGE)}, path)
    assert "Dropout" not in operators(path)


def test_of_several_outputs_the_first_is_kept_and_nothing_of_the_others(tmp_path: Path) -> None:
    model = Function(
        lambda net, x: ((net.head(x), x), net.other(x)), head=nn.Linear(8, 3), other=nn.Linear(8, 50_000)
    )
    path = exported(model, tmp_path / "m.onnx")
    assert len(load(path).outputs) == 1
    assert path.stat().st_size < 10_000
    assert_equal(model, {"input": rows()}, path)


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    model = Function(lambda net, x: net.b(net.a(x)), a=nn.Linear(64, 64), b=nn.Linear(64, 64))
    model.get_submodule("b").weight = model.get_submodule("a").weight
    path = exported(model, tmp_path / "m.onnx", 64)
    assert path.stat().st_size < 1.5 * 64 * 64 * 4
    assert_equal(model, {"input": rows(64)}, path)


@pytest.mark.parametrize("passes", [lambda net, x: x, lambda net, x: (x, net.a(x))], ids=["x", "(x, y)"])
def test_the_input_as_the_output(passes: object, tmp_path: Path) -> None:
    model = Function(passes, a=nn.Linear(8, 2))  # type: ignore[arg-type]
    assert_equal(model, {"input": rows()}, exported(model, tmp_path / "m.onnx"))


def test_integers(tmp_path: Path) -> None:
    model, path = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2)), tmp_path / "m.onnx"
    batch = {"input": torch.randint(10, (5, 3))}
    export_onnx(model, {"input": batch["input"][:2]}, path)
    assert load(path).inputs[0].dtype == "int64"
    assert_equal(model, batch, path)


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, path = conv_net().eval(), tmp_path / "m.onnx"
    exported(model, path, *IMAGE)
    check_parity(model, path, {"input": rows(*IMAGE)})
    assert capfd.readouterr() == ("", "")


def test_a_file_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError) as caught:
        exported(nn.Linear(8, 2), tmp_path / "file" / "m.onnx")
    assert isinstance(caught.value, PastilleError)
    assert "\n" not in str(caught.value)
