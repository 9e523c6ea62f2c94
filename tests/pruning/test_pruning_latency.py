"""The latency table: laws that are known are found again, and layers are told apart in real files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from pruning_nets import NETS

from pastille.export import export_onnx
from pastille.pruning import survey
from pastille.pruning.cost import Costs, costs
from pastille.pruning.latency import (
    LatencyTable,
    Sighting,
    designs,
    fast_multiple,
    fits,
    latency_table,
    layer_tensors,
    network_digest,
)
from pastille.values import Conditions, from_json, to_json

HERE = Conditions(
    device="a CPU", isa="avx2", cores=1, threads=1, runtime="none", runtime_version="1", os="an OS"
)


def costs_of(name: str) -> Costs:
    torch.manual_seed(0)
    model, batch = NETS[name].build().eval(), NETS[name].batch()
    return costs(model, batch, survey(model, batch))


@pytest.fixture(scope="module")
def cost() -> Costs:
    return costs_of("residual")


def sightings(cost: Costs, law: Callable[[np.ndarray, int], float], rest: float) -> list[Sighting]:
    """As if every parameter that multiplies had the kernel ``out of it``, and pooling took ``rest``."""
    used = [i for i, uses in enumerate(cost.uses) if uses]
    seen = []
    for kept in designs(cost.widths, multiple=4):
        shares = cost.shares(kept[None])[0]
        times = {f"out of {cost.parameters[i]}": law(shares[i], i) for i in used}
        tensors = {cost.parameters[i]: f"out of {cost.parameters[i]}" for i in used}
        seen.append(Sighting(kept=kept, times_ms={**times, "pooled": rest}, tensors=tensors))
    return seen


def bilinear(share: np.ndarray, layer: int) -> float:
    first, second = share
    return float(0.1 + 0.2 * first + 0.3 * layer * first * second)


def test_laws_are_found_again_at_widths_that_were_not_timed(cost: Costs) -> None:
    table = latency_table(cost, sightings(cost, bilinear, 0.7), conditions=HERE, precision="fp32")
    unseen = np.array([[20, 28, 32, 40], [32, 32, 32, 64], [3, 1, 2, 5]])[:, : len(cost.groups)]
    unseen = np.minimum(unseen, cost.widths)
    expected = [
        0.7 + sum(bilinear(cost.shares(kept[None])[0, i], i) for i, uses in enumerate(cost.uses) if uses)
        for kept in unseen
    ]
    np.testing.assert_allclose(table.milliseconds(cost, unseen), expected, rtol=1e-6)
    assert table.error < 1e-6


def test_what_fits_no_law_is_owned_up_to(cost: Costs) -> None:
    def stepped(share: np.ndarray, layer: int) -> float:
        return float(np.ceil(share[0] * 2) * np.ceil(share[1] * 2))

    table = latency_table(cost, sightings(cost, stepped, 0.0), conditions=HERE, precision="fp32")
    seen = sightings(cost, stepped, 0.0)
    truth = np.array([sum(each.times_ms.values()) for each in seen])
    wrong = np.abs(table.milliseconds(cost, np.stack([each.kept for each in seen])) / truth - 1).max()
    assert table.error == pytest.approx(wrong)
    assert table.error > 0.01


def test_layers_that_cannot_be_told_are_predicted_by_their_work(cost: Costs) -> None:
    seen = [replace(each, tensors={}) for each in sightings(cost, bilinear, 0.7)]
    table = latency_table(cost, seen, conditions=HERE, precision="fp32")
    assert not table.layers
    full, half = table.milliseconds(cost, np.stack([cost.widths, cost.widths // 2]))
    assert full == pytest.approx(sum(seen[0].times_ms.values()), rel=0.1)
    assert half < full


def test_a_narrower_network_is_never_predicted_slower(cost: Costs) -> None:
    rng = np.random.default_rng(0)
    noisy = sightings(cost, lambda share, layer: bilinear(share, layer) * float(rng.uniform(0.5, 2)), 0.7)
    table = latency_table(cost, noisy, conditions=HERE, precision="fp32")
    kept = rng.integers(2, cost.widths, size=(50, len(cost.widths)))
    assert (table.milliseconds(cost, kept) >= table.milliseconds(cost, kept - 1) - 1e-12).all()


def test_a_table_survives_json_and_knows_what_it_is_of(cost: Costs) -> None:
    table = latency_table(cost, sightings(cost, bilinear, 0.7), conditions=HERE, precision="int8")
    read = from_json(LatencyTable, to_json(table))
    assert read == table
    assert fits(read, cost, HERE, "int8")
    assert not fits(read, cost, HERE, "fp32")
    assert not fits(read, cost, replace(HERE, threads=2), "int8")
    assert not fits(read, cost, replace(HERE, runtime_version="2"), "int8")
    assert not fits(replace(read, schema=0), cost, HERE, "int8")
    assert network_digest(cost) != network_digest(costs_of("mlp"))


@pytest.mark.parametrize("name", ["residual", "mlp"])
def test_layers_are_found_in_a_real_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batch = NETS[name].build().eval(), NETS[name].batch()
    export_onnx(model, batch, tmp_path / "model.onnx")
    found = layer_tensors(tmp_path / "model.onnx", costs_of(name))
    graph = onnx.load(tmp_path / "model.onnx").graph
    named = {
        node.input[1].removeprefix("model."): node.output[0] for node in graph.node if len(node.input) > 1
    }
    expected = {
        weight: tensor for weight, tensor in named.items() if weight in dict(model.named_parameters())
    }
    assert len(expected) >= 3
    assert expected.items() <= found.items()


def test_layers_are_matched_by_size_where_the_file_lacks_some(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = NETS["two answers"]
    model, batch = net.build().eval(), net.batch()
    export_onnx(model, batch, tmp_path / "model.onnx")
    cost = costs_of("two answers")
    found = layer_tensors(tmp_path / "model.onnx", cost)
    assert {"conv.weight", "head.weight"} <= found.keys()
    assert len(found) < len(cost.order), "the second answer is not in the file"


@pytest.mark.parametrize("block", [4, 8, 16, 32])
def test_kernels_in_blocks_want_widths_in_blocks(block: int) -> None:
    found = fast_multiple(lambda width: 0.3 + (-(-width // block)) ** 2 * block**2, precision="int8")
    assert found.multiple == block
    assert "int8 kernels" in found.words


def test_where_any_width_is_fast_the_finest_is_taken() -> None:
    assert fast_multiple(lambda width: float(width**2), precision="fp32").multiple == 4


def test_designs_tell_what_is_read_from_what_is_made() -> None:
    found = np.stack(designs(np.array([64, 64, 64, 64]), multiple=8))
    shares = np.stack([np.ones(len(found)), found[:, 0], found[:, 1], found[:, 0] * found[:, 1]], axis=1)
    assert np.linalg.matrix_rank(shares) == 4
    assert (found % 8 == 0).all()
    assert (found > 0).all()
    assert designs(np.array([3]), multiple=8)[0].tolist() == [3]
