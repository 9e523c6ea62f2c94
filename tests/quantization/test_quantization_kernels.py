"""The proof of networks that our own quantization wrote, against counts that are made another way."""

from __future__ import annotations

from pathlib import Path

import pytest
from quantization_nets import NETS, Batch, quantized_net

from pastille.measure import counts
from pastille.runtime import kernels, optimized_operators
from pastille.values import KernelProof


def one(data: Batch) -> Batch:
    return {name: x[:1] for name, x in data.items()}


def total(proof: KernelProof) -> int:
    return sum(use.macs or 0 for use in proof.uses)


@pytest.mark.parametrize("name", NETS)
def test_multiply_accumulates_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    """Where the runtime pads channels, fuses or reorders as well."""
    data, source, target = quantized_net(name, tmp_path)
    for path in (source, target):
        proof = kernels(path, one(data), calls=2)
        assert proof.note == ""
        assert None not in {use.macs for use in proof.uses}
        assert total(proof) == counts.macs(path)


@pytest.mark.parametrize("name", NETS)
def test_the_types_that_were_seen_are_those_that_were_inferred(name: str, tmp_path: Path) -> None:
    data, _, target = quantized_net(name, tmp_path)
    proof, found = kernels(target, one(data), calls=1), optimized_operators(target)
    for kind, listed in (("int8", found.int8), ("float", found.floating), ("conversion", found.conversions)):
        assert {use.operator: use.count for use in proof.uses if use.precision == kind} == listed


@pytest.mark.parametrize("name", ["residual", "depthwise", "1-D"])
def test_whole_networks_run_in_int8(name: str, tmp_path: Path) -> None:
    data, source, target = quantized_net(name, tmp_path)
    assert kernels(target, one(data)).int8_macs == 1.0
    assert kernels(source, one(data)).int8_macs == 0.0


def test_each_float_operator_of_a_transformer_has_its_reason(tmp_path: Path) -> None:
    data, _, target = quantized_net("transformer", tmp_path)
    told = {kernel.name: kernel.reason for kernel in kernels(target, one(data)).floats}
    assert "LayerNormalization node_layer_norm" in told
    assert told["LayerNormalization node_layer_norm"].startswith("no int8 kernel for LayerNormalization")
    assert all(told.values())
