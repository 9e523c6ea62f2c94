"""Where int8 begins: against costs that are counted on the torch modules, cut by cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from quantization_nets import Batch, Function, answer, quantized, to_tensors
from torch import Tensor, nn

from pastille.export import export_onnx
from pastille.quantization.rewrites import rewritten
from pastille.quantization.rewrites.beginning import beginning
from pastille.runtime import kernels

SILU, CROSSING = 16, 20


def images(size: int, n: int = 8) -> Batch:
    return {"input": np.random.default_rng(0).normal(size=(n, 3, size, size)).astype(np.float32)}


def exported(net: nn.Module, data: Batch, folder: Path) -> Any:
    export_onnx(net.eval(), to_tensors(data), folder / "float.onnx")
    return onnx.shape_inference.infer_shapes(onnx.load(folder / "float.onnx"))


def thin(*layers: tuple[int, int, int, int]) -> nn.Sequential:
    """Convolutions of ``(outputs, kernel, stride, groups)``, each with a SiLU."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    width = 3
    for outputs, kernel, stride, groups in layers:
        parts += [nn.Conv2d(width, outputs, kernel, stride, kernel // 2, groups=groups), nn.SiLU()]
        width = outputs
    return nn.Sequential(*parts, nn.Conv2d(width, 4, 1))


def last_float_layer(net: nn.Sequential, x: Tensor) -> int:
    """The module up to which float costs least; -1 where that is none."""
    cost, costs = 0, [0]
    for module in net:
        x = module(x)
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            cost += x[0].numel() * module.weight[0].numel()
        cost -= SILU * x[0].numel() * isinstance(module, nn.SiLU)
        costs.append(cost + CROSSING * x[0].numel() * (module is not net[-1]))
    return int(np.argmin(costs)) - 1


NETS = {
    "thin": thin((8, 1, 1, 1), (8, 3, 1, 8), (16, 3, 2, 1), (32, 3, 2, 1), (32, 3, 1, 1)),
    "all thin": thin((8, 1, 1, 1), (8, 3, 1, 8), (8, 3, 1, 8), (8, 1, 1, 1)),
    "thick": thin((16, 3, 2, 1), (32, 3, 2, 1), (64, 3, 2, 1)),
    "thick, then thin": thin((16, 5, 1, 1), (16, 3, 1, 16), (16, 3, 1, 16)),
}


@pytest.mark.parametrize(("name", "begins"), [("thin", True), ("all thin", True), ("thick", False)])
def test_int8_begins_where_the_cost_is_least(name: str, begins: bool, tmp_path: Path) -> None:
    net, data = NETS[name], images(16)
    graph = exported(net, data, tmp_path).graph
    last = last_float_layer(net, torch.from_numpy(data["input"]))
    modules = [node for node in graph.node if node.op_type != "Sigmoid"]  # one node for each module
    found = [at for at, node in enumerate(modules) if node.output[0] in beginning(graph)]
    assert found == list(range(last + 1))
    assert (last >= 0) == begins


def test_what_comes_first_alone_counts(tmp_path: Path) -> None:
    net, data = NETS["thick, then thin"], images(16)
    assert last_float_layer(net, torch.from_numpy(data["input"])) == -1
    assert not beginning(exported(net, data, tmp_path).graph)


def test_relus_cost_nothing(tmp_path: Path) -> None:
    layers = [nn.ReLU() if isinstance(module, nn.SiLU) else module for module in NETS["thin"]]
    assert not beginning(exported(nn.Sequential(*layers), images(16), tmp_path).graph)


@pytest.mark.parametrize("skip", [False, True])
def test_what_is_read_far_behind_crosses_too(skip: bool, tmp_path: Path) -> None:
    """Per number: 3 for the first convolution, -16 for each of two SiLUs, 20 for each tensor that crosses."""

    def calls(net: Any, x: Tensor) -> Tensor:
        first = net.act(net.first(x))
        y = net.last(net.thick(net.act(net.depth(first))))
        return net.head(y + first if skip else y)  # type: ignore[no-any-return]

    net = Function(
        calls,
        act=nn.SiLU(),
        first=nn.Conv2d(3, 4, 1),
        depth=nn.Conv2d(4, 4, 3, 1, 1, groups=4),
        thick=nn.Conv2d(4, 64, 3, 1, 1),
        last=nn.Conv2d(64, 4, 3, 1, 1),
        head=nn.Conv2d(4, 4, 1),
    )
    assert len(beginning(exported(net, images(8), tmp_path).graph)) == (0 if skip else 6)


@pytest.mark.parametrize(("width", "begun"), [(8, True), (64, False)])
@pytest.mark.parametrize("tokens", [False, True], ids=["Gemm", "MatMul"])
def test_linear_layers_count_too(width: int, begun: bool, tokens: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Linear(width, 9 * width),
    ]
    data = {"input": np.zeros((4, 5, width) if tokens else (4, width), np.float32)}
    graph = exported(nn.Sequential(*layers, nn.SiLU(), nn.Linear(9 * width, 4)), data, tmp_path).graph
    assert {"MatMul" if tokens else "Gemm"} == {n.op_type for n in graph.node} & {"MatMul", "Gemm"}
    assert bool(beginning(graph)) == begun


def test_unknown_sizes_are_no_reason(tmp_path: Path) -> None:
    graph = exported(NETS["thin"], images(16), tmp_path).graph
    assert beginning(graph)
    del graph.value_info[:]
    assert not beginning(graph)


def blocks(depth: int = 24) -> nn.Module:
    """As EfficientNet begins: depthwise convolutions, a gate, an expansion; then a thick end."""
    torch.manual_seed(0)

    def calls(net: Any, x: Tensor) -> Tensor:
        x = net.act(net.stem(x))
        x = net.act(net.depth(x))
        x = x * torch.sigmoid(net.up(net.act(net.down(x.mean(dim=(2, 3), keepdim=True)))))
        x = net.act(net.thick(net.narrow(x)))
        return net.head(net.act(net.more(x)).mean(dim=(2, 3)))  # type: ignore[no-any-return]

    return Function(
        calls,
        act=nn.SiLU(),
        stem=nn.Conv2d(3, depth, 1),
        depth=nn.Conv2d(depth, depth, 3, 1, 1, groups=depth),
        down=nn.Conv2d(depth, 4, 1),
        up=nn.Conv2d(4, depth, 1),
        narrow=nn.Conv2d(depth, 16, 1),
        thick=nn.Conv2d(16, 32, 3, 2, 1),
        more=nn.Conv2d(32, 32, 3, 1, 1),
        head=nn.Linear(32, 4),
    )


def test_a_file_is_float_to_there_and_int8_from_there(tmp_path: Path) -> None:
    data = images(64, n=16)
    source, target = quantized(blocks().eval(), data, tmp_path)
    model = onnx.load(source)
    graph = onnx.shape_inference.infer_shapes(model).graph
    begun = beginning(graph)
    floats = sum(node.op_type == "Conv" and node.output[0] in begun for node in graph.node)
    assert floats == 4, "stem, depthwise, and the two of the gate"
    used = {
        (use.operator, use.precision): use.count for use in kernels(target, {"input": data["input"][:1]}).uses
    }
    assert used["Conv", "float"] == 4
    assert used["QLinearConv", "int8"] == 3
    assert not [node for node in rewritten(model).graph.node if node.op_type == "Pad"], (
        "the stem reads colours"
    )
    assert np.corrcoef(answer(source, data).ravel(), answer(target, data).ravel())[0, 1] > 0.995
