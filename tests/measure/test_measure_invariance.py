"""The same decisions whatever the batch and the threads; and nodes that look at the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from measure_models import cases_of, exported, mlp_file, split_of
from onnx import parser

from pastille.data.split import Split
from pastille.errors import IntegrityError
from pastille.gates.stress import invariance_check
from pastille.measure.invariance import invariance
from pastille.runtime.batch_statistics import batch_statistic_nodes
from pastille.values import Cases, Invariance, Status


def saved(tmp_path: Path, graph: str, *, opset: int = 18, infer: bool = False) -> Path:
    """A model of the nodes given, with small weights to use in them."""
    weights = "float[8] ones = {1, 1, 1, 1, 1, 1, 1, 1}, float[8] zeros = {0, 0, 0, 0, 0, 0, 0, 0}"
    text = f"""<ir_version: 10, opset_import: ["" : {opset}]>
        m (float[n, 8] input) => (float[n, 8] output) <{weights}> {{ {graph} }}"""
    model = parser.parse_model(text)
    model = onnx.shape_inference.infer_shapes(model) if infer else model
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


CENTRED = """
    axes = Constant <value_ints = [0]> ()
    mean = ReduceMean (input, axes)
    output = Sub (input, mean)
"""


def test_a_sound_file_is_approved(tmp_path: Path) -> None:
    split = split_of(70)
    found = invariance(mlp_file(tmp_path / "m.onnx"), split, cases_of(split), batch_sizes=[1, 8, 32])
    assert found.batch_sizes == (1, 2, 4, 32)
    assert found.threads[0] == 1 < found.threads[1]
    many = f"{found.threads[1]} threads"
    ways = ("batch 2", "batch 4", "batch 32", many, f"batch 32, {many}")
    assert dict(found.changed) == dict.fromkeys(ways, 0)
    assert found.max_abs_error < 1e-5
    check = invariance_check(found)
    assert check.status is Status.APPROVED
    assert check.reason.startswith(
        "all 70 cases are decided alike in batches of 1, 2, 4 and 32 and with 1 and "
    )


def test_a_file_that_centres_its_batch_is_rejected_and_the_node_named(tmp_path: Path) -> None:
    split = split_of(64)
    cases = Cases(kind="multiclass", split="validation", targets=split.targets, labels=tuple("abcdefgh"))
    found = invariance(saved(tmp_path, CENTRED), split, cases, batch_sizes=[8], threads=2)
    assert found.changed["2 threads"] == 0
    assert found.changed["batch 8"] > 0
    # Alone, every input is its own mean: the first class for all; in a batch of 8 others win.
    x = np.asarray(split.inputs).reshape(8, 8, 8)
    expected = (x - x.mean(axis=1, keepdims=True)).argmax(axis=2)
    assert found.changed["batch 8"] == found.changed["batch 8, 2 threads"] == np.count_nonzero(expected)
    check = invariance_check(found)
    assert check.status is Status.REJECTED
    assert f"{found.changed['batch 8']} in batch 8" in check.reason
    assert "ReduceMean mean gives depends on the whole batch" in check.reason


def test_every_changed_decision_counts_even_at_a_tie(tmp_path: Path) -> None:
    path = saved(tmp_path, CENTRED)
    split = Split(
        inputs=[np.zeros(8, np.float32), np.eye(8, dtype=np.float32)[0] * 1e-6], targets=np.zeros(2)
    )
    cases = Cases(
        kind="multiclass", split="validation", targets=np.zeros(2, np.int64), labels=tuple("abcdefgh")
    )
    found = invariance(path, split, cases, threads=2)
    assert found.batch_sizes == (1, 2)
    assert found.changed["batch 2"] == 1
    assert found.max_abs_error == pytest.approx(5e-7)


@pytest.mark.parametrize(("scale", "changed"), [(1e-7, 0), (1.0, 64)])
def test_numbers_change_beyond_a_thousandth_of_their_spread(
    tmp_path: Path, scale: float, changed: int
) -> None:
    path = saved(
        tmp_path,
        f"""axes = Constant <value_ints = [0]> ()
            mean = ReduceMean (input, axes)
            factor = Constant <value_float = {scale:.9f}> ()
            part = Mul (mean, factor)
            output = Sub (input, part)""",
    )
    split = split_of(64)
    for kind in ("custom", "regression"):
        cases = Cases(kind=kind, split="validation", targets=np.zeros(64), labels=())
        found = invariance(path, split, cases, batch_sizes=[64], threads=2)
        assert found.changed["batch 64"] == changed


def test_only_some_cases_are_asked_from_everywhere(tmp_path: Path) -> None:
    split = split_of(1000)
    reads: list[int] = []

    class Counting(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            reads.append(index)
            return super().__getitem__(index)

    counted = Split(inputs=Counting(split.inputs), targets=split.targets)
    found = invariance(mlp_file(tmp_path / "m.onnx"), counted, cases_of(split), cases_limit=16)
    assert found.cases == len(reads) == 16
    assert (reads[0], reads[-1]) == (0, 999)


def test_a_fixed_batch_is_asked_at_that_size_only(tmp_path: Path) -> None:
    split = split_of(10)
    found = invariance(
        mlp_file(tmp_path / "m.onnx", batch="4"), split, cases_of(split), batch_sizes=[8], threads=3
    )
    assert (found.batch_sizes, found.threads) == ((4,), (1, 3))
    assert dict(found.changed) == {"3 threads": 0}
    assert "in batches of 4, the only size that the file takes, and with 1 and 3 threads" in (
        invariance_check(found).reason
    )


def test_a_fixed_batch_that_is_normalized_over_is_never_approved(tmp_path: Path) -> None:
    path = saved(tmp_path, CENTRED)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    path.write_bytes(model.SerializeToString())
    split = split_of(10)
    cases = Cases(kind="multiclass", split="validation", targets=split.targets, labels=tuple("abcdefgh"))
    check = invariance_check(invariance(path, split, cases, threads=2))
    assert check.status is Status.INCONCLUSIVE
    assert "ReduceMean mean gives depends on the whole batch" in check.reason


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    split, path = split_of(4), mlp_file(tmp_path / "m.onnx")
    for wrong in ({"threads": 1}, {"cases_limit": 0}):
        with pytest.raises(ValueError, match="threads must be at least 2, and cases_limit"):
            invariance(path, split, cases_of(split), **wrong)  # type: ignore[arg-type]
    with pytest.raises(IntegrityError):
        invariance(tmp_path / "gone.onnx", split, cases_of(split))


def test_the_reason_lists_every_way() -> None:
    found = Invariance(
        cases=256,
        batch_sizes=(1, 2, 4, 32),
        threads=(1, 4),
        changed={"batch 2": 0, "batch 32": 3, "4 threads": 1, "batch 32, 4 threads": 3},
        max_abs_error=0.1234,
        batch_statistics=tuple(f"BatchNormalization bn{i}" for i in range(7)),
    )
    reason = invariance_check(found).reason
    assert reason.startswith(
        "of 256 cases, 3 in batch 32, 1 with 4 threads and 3 in batch 32, 4 threads are decided differently "
        "than alone with one thread (numbers differ by 0.12 at most); what BatchNormalization bn0, "
    )
    assert "bn4 and 2 more gives depends on the whole batch" in reason


MIXING = {
    "mean": "axes = Constant <value_ints = [0]> ()  output = ReduceMean (input, axes)",
    "mean over all": "output = ReduceMax (input)",
    "mean counted from the back": "axes = Constant <value_ints = [-2]> ()  output = ReduceMean (input, axes)",
    "softmax": "output = Softmax <axis = 0> (input)",
    "training": "output, m, v = BatchNormalization <training_mode = 1> (input, ones, zeros, zeros, ones)",
    "layer norm": "output = LayerNormalization <axis = 0> (input, ones)",
    "dynamic quantization": "output, s, z = DynamicQuantizeLinear (input)",
    "turned": """t = Transpose <perm = [1, 0]> (input)
                 axes = Constant <value_ints = [1]> ()  output = ReduceMean (t, axes)""",
    "wider": """front = Constant <value_ints = [0]> ()  t = Unsqueeze (input, front)
                axes = Constant <value_ints = [1]> ()  output = ReduceMean (t, axes)""",
    "narrower": """front = Constant <value_ints = [0]> ()  t = Unsqueeze (input, front)
                   u = Squeeze (t, front)  output = ReduceMean (u, front)""",
    "after a sum": """last = Constant <value_ints = [1]> ()  t = ReduceSum <keepdims = 0> (input, last)
                      axes = Constant <value_ints = [0]> ()  output = ReduceL2 (t, axes)""",
    "instances turned": """two = Constant <value_ints = [1]> ()  wide = Unsqueeze (input, two)
                           t = Transpose <perm = [1, 2, 0]> (wide)
                           output = InstanceNormalization (t, ones, zeros)""",
}
HARMLESS = {
    "inference": "output = BatchNormalization (input, ones, zeros, zeros, ones)",
    "other axis": "axes = Constant <value_ints = [1]> ()  output = ReduceMean (input, axes)",
    "last axis": "axes = Constant <value_ints = [-1]> ()  output = ReduceMean (input, axes)",
    "softmax": "output = Softmax (input)",
    "layer norm": "output = LayerNormalization (input, ones)",
    "turned": """t = Transpose <perm = [1, 0]> (input)
                 axes = Constant <value_ints = [0]> ()  output = ReduceMean (t, axes)""",
    "of weights": """axes = Constant <value_ints = [0]> ()  m = ReduceMean (ones, axes)
                     output = Mul (input, m)""",
    "of shapes": """shape = Shape (input)  axes = Constant <value_ints = [0]> ()
                    size = ReduceProd (shape, axes)  output = Expand (input, shape)""",
    "nothing to do": "output = ReduceSum <noop_with_empty_axes = 1> (input)",
    "wider": """front = Constant <value_ints = [0]> ()  t = Unsqueeze (input, front)
                output = ReduceMean (t, front)""",
    "reshaped": """to = Constant <value_ints = [1, -1]> ()  t = Transpose <perm = [1, 0]> (input)
                   u = Reshape (t, to)  front = Constant <value_ints = [0]> ()
                   output = ReduceMean (u, front)""",
}


@pytest.mark.parametrize("which", MIXING)
def test_nodes_that_look_at_the_batch_are_found(tmp_path: Path, which: str) -> None:
    (found,) = batch_statistic_nodes(saved(tmp_path, MIXING[which], infer=True))
    assert found.split(" ")[0] in MIXING[which]
    assert found.endswith(" output")


@pytest.mark.parametrize("which", HARMLESS)
def test_nodes_that_do_not_are_left_alone(tmp_path: Path, which: str) -> None:
    assert batch_statistic_nodes(saved(tmp_path, HARMLESS[which], infer=True)) == ()


def test_axes_of_older_operator_sets_are_attributes(tmp_path: Path) -> None:
    graph = "output = ReduceMean <axes = [0]> (input)"
    assert batch_statistic_nodes(saved(tmp_path, graph, opset=13)) == ("ReduceMean output",)


def test_axes_may_be_an_initializer(tmp_path: Path) -> None:
    path = saved(tmp_path, "output = ReduceMean (input, which)")
    model = onnx.load(path)
    for raw in (True, False):
        axes = onnx.numpy_helper.from_array(np.array([0]), "which")
        if not raw:
            axes = onnx.helper.make_tensor("which", onnx.TensorProto.INT64, [1], [0])
        del model.graph.initializer[2:]
        model.graph.initializer.append(axes)
        path.write_bytes(model.SerializeToString())
        assert batch_statistic_nodes(path) == ("ReduceMean output",)


def test_a_normalization_layer_exported_in_training_mode_is_named(tmp_path: Path) -> None:
    """A layer that keeps no statistics uses those of the batch, in evaluation mode as well."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(8, 6), torch.nn.BatchNorm1d(6, track_running_stats=False), torch.nn.Linear(6, 3)
    )
    x = torch.randn(4, 8)
    path = exported(net, x, tmp_path / "batch.onnx")
    assert len(batch_statistic_nodes(path)) >= 1
    kept = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3))
    assert batch_statistic_nodes(exported(kept, x, tmp_path / "kept.onnx")) == ()


class Attention(torch.nn.Module):
    """Transposes, softmax and layer norm, as a transformer has them."""

    def __init__(self) -> None:
        super().__init__()
        self.block = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.block(x.reshape(-1, 4, 8)).mean(dim=1))
        return out


def test_usual_networks_raise_no_alarm(tmp_path: Path) -> None:
    conv = torch.nn.Sequential(
        *(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.GroupNorm(2, 8)),
        *(
            torch.nn.InstanceNorm2d(8),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(8, 3),
        ),
    )
    assert batch_statistic_nodes(exported(conv, torch.randn(2, 3, 8, 8), tmp_path / "conv.onnx")) == ()
    path = exported(Attention(), torch.randn(2, 4, 8), tmp_path / "attention.onnx")
    assert batch_statistic_nodes(path) == ()


@pytest.mark.parametrize("broken", [b"", b"\x00" * 40, b"not a model"])
def test_what_is_no_model_is_refused(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(broken)
    with pytest.raises(IntegrityError):
        batch_statistic_nodes(path)
