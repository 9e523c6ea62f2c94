from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from quantization_nets import Batch, in_batches, to_tensors
from recovery_nets import digits, of, trained
from torch import nn

from pastille.devices import this_machine
from pastille.errors import CalibrationError
from pastille.export import export_onnx
from pastille.quantization.layers import kept_float, layers
from pastille.quantization.mixed import Means, Mixed, search_mixed
from pastille.quantization.ranges import minmax, observer
from pastille.quantization.recovery import prepared
from pastille.quantization.recovery.auto import answers, sqnr_db
from pastille.quantization.rewrites import rewritten
from pastille.quantization.sensitivity import gains_db, spared
from pastille.quantization.static import with_ranges
from pastille.quantization.timing import node_times
from pastille.runtime import optimized_operators
from pastille.values import Interval, Speedup

NAMES = ("0", "2", "4", "6", "8")
HERE = this_machine(threads=1, runtime="onnxruntime", runtime_version="1")


def _mlp() -> nn.Sequential:
    widths = (64, 48, 48, 48, 48)
    hidden = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(48, 10))


def _with_dead_giant_(net: nn.Sequential, name: str) -> None:
    """The same function: each neuron of a layer gets a huge weight on an input that is always zero.

    The layer's weights then round to nothing beside it, and no other layer is touched.
    """
    index = int(name)
    before, layer = net[index - 2], net[index]
    assert isinstance(before, nn.Linear)
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        before.weight[0] = 0
        before.bias[0] = -1  # its Relu is always zero
        layer.weight[:, 0] = 300.0


@functools.cache
def net(*planted: str) -> tuple[Any, Batch, Batch]:
    """The float graph, inputs to calibrate on, and inputs held out."""
    torch.manual_seed(0)
    x, y = digits(0)
    x = x.reshape(-1, 64)
    module = _mlp()
    trained(module, x[:1000], y[:1000], epochs=6)
    for name in planted:
        _with_dead_giant_(module, name)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "float.onnx"
        export_onnx(module.eval(), to_tensors({"input": x}), file)
        return prepared(rewritten(onnx.load(file))), {"input": x[:128]}, {"input": x[1000:1256]}


def bounded(model: Any, held: Batch, *, least_db: float) -> Callable[[Any], bool]:
    wanted = answers(model, of(held["input"]))
    return lambda candidate: sqnr_db(wanted, answers(candidate, of(held["input"]))) >= least_db


def product(model: Any, name: str) -> str:
    return next(layer.nodes[0] for layer in layers(model) if layer.name == name)


def in_float(graph: Any, model: Any) -> set[str]:
    """Layers whose product reads no 8-bit weight in this graph: by the graph alone, not by what was said."""
    made = {n.output[0] for n in graph.graph.node if n.op_type == "DequantizeLinear"}
    floats = {n.name for n in graph.graph.node if n.op_type in {"Gemm", "MatMul"} and n.input[1] not in made}
    return {layer.name for layer in layers(model) if layer.nodes[0] in floats}


class Machine:
    """Makes up how long each layer takes in int8; in float each takes 1 ms, and each border 0.1 ms."""

    def __init__(self, model: Any, int8_ms: Mapping[str, float], *, noise: float = 0.0) -> None:
        self.model, self.int8_ms, self.noise = model, int8_ms, noise
        self.compared = 0

    def layer_ms(self, graph: Any) -> dict[str, float]:
        floats = in_float(graph, self.model) if graph is not self.model else set(NAMES)
        return {name: 1.0 if name in floats else self.int8_ms.get(name, 0.5) for name in NAMES}

    def times(self, graph: Any) -> Mapping[str, float]:
        made = {node.name: node.output[0] for node in self.model.graph.node}
        return {made[product(self.model, name)]: ms for name, ms in self.layer_ms(graph).items()}

    def total_ms(self, graph: Any) -> float:
        kinds = [name in in_float(graph, self.model) for name in NAMES]
        borders = sum(a != b for a, b in zip([False, *kinds], [*kinds, False], strict=True))
        return sum(self.layer_ms(graph).values()) + 0.1 * borders

    def speed(self, before: Any, after: Any) -> Speedup:
        self.compared += 1
        ratio = self.total_ms(before) / self.total_ms(after)
        interval = Interval(low=ratio - self.noise - 1e-9, high=ratio + self.noise + 1e-9, confidence=0.95)
        return Speedup(ratio=ratio, interval=interval, pairs=20, batch=1, conditions=HERE)


def searched(
    model: Any,
    data: Batch,
    held: Batch,
    *,
    int8_ms: Mapping[str, float] | None = None,
    passes: Callable[[Any], bool] = lambda graph: True,
    machine: Machine | None = None,
    harm: Mapping[str, float] | None = None,
    **how: Any,
) -> Mixed:
    machine = machine or Machine(model, int8_ms or {})
    ranges = minmax(observer(model), in_batches(data))
    means = Means(
        quantize=lambda kept: with_ranges(model, ranges, bits=7, keep_float=kept, scheme="x86"),
        passes=passes,
        speed=machine.speed,
        times=machine.times,
        harm=harm,
    )
    return search_mixed(model, of(held["input"]), means, **how)


def floats(found: Mixed) -> list[str]:
    return [layer.name for layer in found.layers if layer.precision == "float"]


@pytest.mark.parametrize("planted", ["4", "6"])
@pytest.mark.parametrize("goal", ["fastest", "smallest"])
def test_the_one_sensitive_layer_becomes_float_and_the_limits_are_kept(planted: str, goal: str) -> None:
    model, data, held = net(planted)
    passes = bounded(model, held, least_db=20)
    found = searched(model, data, held, passes=passes, goal=goal)
    assert found.passes
    assert passes(found.model)
    assert floats(found) == [planted]
    assert in_float(found.model, model) == {planted}
    gains = {layer.name: layer.sqnr_gain_db or 0.0 for layer in found.layers}
    assert max(gains, key=lambda name: gains[name]) == planted
    assert next(x.reason for x in found.layers if x.name == planted) == "accuracy needs float"


def test_a_scan_says_which_layer_to_give_up_first_and_nothing_is_measured() -> None:
    model, data, held = net("4")
    passes = bounded(model, held, least_db=20)
    how: dict[str, Any] = {"passes": passes, "goal": "smallest"}
    found = searched(model, data, held, harm={"0": 0.001, "4": 2.0, "6": -0.001}, **how)
    assert floats(found) == ["4"]
    assert [trial.what for trial in found.trials] == ["4 in float"]
    assert all(layer.sqnr_gain_db is None for layer in found.layers)
    wrong = searched(model, data, held, harm={"0": 2.0, "6": 1.0}, **how)
    assert wrong.trials[0].what == "0 in float"
    assert "8" in wrong.trials[-1].what or "4" in floats(wrong)
    assert passes(wrong.model)  # what it does not know of comes last, yet comes


def test_of_two_sensitive_layers_both_become_float() -> None:
    model, data, held = net("4", "8")
    found = searched(model, data, held, passes=bounded(model, held, least_db=20), goal="smallest")
    assert found.passes
    assert floats(found) == ["4", "8"]


def test_all_stays_int8_where_it_passes_and_is_fastest() -> None:
    model, data, held = net()
    found = searched(model, data, held, passes=bounded(model, held, least_db=20))
    assert (found.keep_float, floats(found), found.trials, found.speedup) == (frozenset(), [], (), None)
    assert found.passes
    assert {layer.reason for layer in found.layers} == {"int8 is accurate enough here"}
    assert [layer.speed_ratio for layer in found.layers] == [2.0] * 5


def test_a_layer_that_is_slower_in_int8_becomes_float() -> None:
    model, data, held = net()
    found = searched(model, data, held, int8_ms={"4": 3.0})
    assert floats(found) == ["4"]
    assert in_float(found.model, model) == {"4"}
    assert found.speedup is not None
    assert found.speedup.ratio == pytest.approx(5.0 / 3.2)
    assert next(x for x in found.layers if x.name == "4").speed_ratio == pytest.approx(1 / 3)


def test_a_gain_that_two_conversions_eat_up_is_refused() -> None:
    model, data, held = net()
    found = searched(model, data, held, int8_ms={"4": 1.15})
    assert floats(found) == []
    assert [(trial.what, trial.kept) for trial in found.trials] == [("4", False)]


def test_neighbours_share_two_conversions_and_are_tried_as_one() -> None:
    model, data, held = net()
    found = searched(model, data, held, int8_ms={"2": 1.15, "4": 1.15, "6": 1.15})
    assert floats(found) == ["2", "4", "6"]


def test_a_small_loss_between_two_gains_is_bridged() -> None:
    model, data, held = net()
    found = searched(model, data, held, int8_ms={"2": 1.5, "4": 0.95, "6": 1.5})
    assert floats(found) == ["2", "4", "6"]


def test_a_promise_that_the_whole_does_not_keep_is_taken_apart() -> None:
    """The kernels' own times promise three layers; timed as a file, one of them is slow in float."""
    model, data, held = net()

    class Deceptive(Machine):
        def total_ms(self, graph: Any) -> float:
            return super().total_ms(graph) + (5.0 if "6" in in_float(graph, self.model) else 0.0)

    machine = Deceptive(model, {"2": 2.0, "4": 2.0, "6": 2.0})
    found = searched(model, data, held, machine=machine)
    assert floats(found) == ["2", "4"]


def test_a_gain_within_the_noise_changes_nothing() -> None:
    model, data, held = net()
    found = searched(model, data, held, machine=Machine(model, {"4": 3.0}, noise=0.6))
    assert floats(found) == []
    assert not any(trial.kept for trial in found.trials)


def test_what_is_not_faster_all_together_is_given_up() -> None:
    """Each step looks faster than the one before, and the result is slower than all int8."""
    model, data, held = net()

    class Fickle(Machine):
        def speed(self, before: Any, after: Any) -> Speedup:
            found = super().speed(before, after)
            if in_float(before, self.model):
                return found
            late = Interval(low=0.8, high=0.9, confidence=0.95)
            return (
                found
                if self.compared == 1
                else Speedup(ratio=0.85, interval=late, pairs=20, batch=1, conditions=HERE)
            )

    found = searched(model, data, held, machine=Fickle(model, {"4": 3.0}))
    assert floats(found) == []
    assert (found.trials[-1].what, found.trials[-1].kept) == ("all of these", False)
    assert found.speedup is None


def test_for_size_nothing_is_put_in_float_for_speed() -> None:
    model, data, held = net()
    machine = Machine(model, {"4": 3.0})
    assert floats(searched(model, data, held, machine=machine, goal="smallest")) == []
    assert machine.compared == 0


def test_without_time_nothing_is_timed() -> None:
    model, data, held = net()
    found = searched(model, data, held, int8_ms={"4": 3.0}, budget_s=0.0)
    assert (floats(found), found.trials) == ([], ())


@pytest.mark.parametrize("cheap", ["2", "6"])
def test_accuracy_is_bought_where_it_costs_least(cheap: str) -> None:
    """Either of two alike layers would do: the one whose float kernel loses less time is taken."""
    model, data, held = net()

    def passes(graph: Any) -> bool:
        return graph is model or bool(in_float(graph, model) & {"2", "6"})

    found = searched(model, data, held, int8_ms={cheap: 0.95}, passes=passes)
    assert floats(found) == [cheap]


@pytest.mark.parametrize("kept", ["2", "4", "6"])
def test_the_runtime_does_not_quantize_what_was_kept_float(kept: str, tmp_path: Path) -> None:
    """ONNX Runtime rounds float weights between Q/DQ pairs by itself, unless it is kept from that."""
    model, data, _ = net()
    ranges = minmax(observer(model), in_batches(data))
    quantized = with_ranges(model, ranges, bits=7, keep_float=kept_float(model, [kept]), scheme="x86")
    onnx.save(quantized, tmp_path / "mixed.onnx")
    executed = optimized_operators(tmp_path / "mixed.onnx")
    assert {name: n for name, n in executed.floating.items() if "Gemm" in name} in (
        {"Gemm": 1},
        {"FusedGemm": 1},
    )
    assert executed.int8["QGemm"] == 4


def test_layers_that_turn_out_not_to_be_needed_return_to_int8() -> None:
    """Only a layer that looks harmless, and one in the middle, satisfy these limits."""
    model, data, held = net("4")

    def passes(graph: Any) -> bool:
        return graph is model or in_float(graph, model) >= {"0", "6"}

    found = searched(model, data, held, passes=passes, goal="smallest")
    assert floats(found) == ["0", "6"]
    assert any("back in int8" in trial.what and trial.kept for trial in found.trials)


def test_limits_that_not_even_float_keeps_are_said_to_fail() -> None:
    model, data, held = net()
    found = searched(model, data, held, passes=lambda graph: False)
    assert not found.passes
    assert (found.trials[-1].what, found.trials[-1].passes) == ("everything in float", False)
    assert floats(found) == []


def test_limits_that_only_float_keeps_give_the_float_graph() -> None:
    model, data, held = net()
    found = searched(model, data, held, passes=lambda graph: graph is model, goal="smallest")
    assert found.passes
    assert found.model is model
    assert floats(found) == list(NAMES)


def test_what_was_asked_to_stay_float_stays_float() -> None:
    model, data, held = net("4")
    asked = kept_float(model, ["first", "last"])
    found = searched(
        model, data, held, passes=bounded(model, held, least_db=20), goal="smallest", asked=asked
    )
    assert floats(found) == ["0", "4", "8"]
    reasons = {layer.name: layer.reason for layer in found.layers}
    assert reasons["0"] == reasons["8"] == "float was asked for"


def test_the_same_measurements_give_the_same_file() -> None:
    model, data, held = net("4")
    passes = bounded(model, held, least_db=20)
    one, two = (searched(model, data, held, int8_ms={"8": 2.0}, passes=passes) for _ in range(2))
    assert floats(one) == ["4", "8"]
    assert one.model.SerializeToString(deterministic=True) == two.model.SerializeToString(deterministic=True)
    assert (one.layers, one.trials) == (two.layers, two.trials)


def test_the_float_graph_is_left_alone() -> None:
    model, data, held = net("4")
    before = model.SerializeToString(deterministic=True)
    searched(model, data, held, passes=bounded(model, held, least_db=20), goal="smallest")
    assert model.SerializeToString(deterministic=True) == before


def test_an_outlier_in_a_tensor_is_charged_to_its_maker_and_its_reader() -> None:
    """One neuron between layers 4 and 6 is 400 times louder than the others: the same function."""
    torch.manual_seed(0)
    x, y = digits(0)
    x = x.reshape(-1, 64)
    module = _mlp()
    trained(module, x[:1000], y[:1000], epochs=6)
    with torch.no_grad():
        module[4].weight[3] *= 400  # type: ignore[index, operator]
        module[4].bias[3] *= 400  # type: ignore[index, operator]
        module[6].weight[:, 3] /= 400  # type: ignore[index, operator]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "float.onnx"
        export_onnx(module.eval(), to_tensors({"input": x}), file)
        model = prepared(rewritten(onnx.load(file)))
    ranges = minmax(observer(model), in_batches({"input": x[:128]}))
    int8 = with_ranges(model, ranges, bits=7, scheme="x86")
    gains = gains_db(model, int8, of(x[1000:1256]), layers(model))
    assert sorted(gains, key=lambda name: -gains[name])[:2] in (["4", "6"], ["6", "4"])
    assert gains["4"] > 6 > max(gains[name] for name in ("0", "2", "8"))


def test_a_graph_whose_every_layer_is_spared_is_the_float_graph() -> None:
    model, data, held = net("4")
    int8 = with_ranges(model, minmax(observer(model), in_batches(data)), bits=7, scheme="x86")
    for layer in layers(model):
        int8 = spared(int8, model, layer)
    wanted, found = (answers(graph, of(held["input"])) for graph in (model, int8))
    assert sqnr_db(wanted, found) > 100


def test_without_held_out_cases_sensitivity_is_refused() -> None:
    model, _, _ = net("4")
    with pytest.raises(CalibrationError, match="no cases to compare on"):
        gains_db(model, model, list, layers(model))


def test_the_clock_gives_the_larger_layer_more_time() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, 4)
    )
    x = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "float.onnx"
        export_onnx(module.eval(), to_tensors({"input": x}), file)
        model = prepared(rewritten(onnx.load(file)))
    int8 = with_ranges(model, minmax(observer(model), of(x)), bits=7, scheme="x86")
    clock = node_times({"input": x[:8]}, calls=10)
    made = {node.name: node.output[0] for node in model.graph.node}
    tensors = [{made[node] for node in layer.nodes} for layer in layers(model)]
    for graph in (model, int8):
        times = clock(graph)
        small, large, last = (sum(times.get(name, 0.0) for name in group) for group in tensors)
        assert large > 2 * max(small, last) > 0
