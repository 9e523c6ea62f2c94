"""Networks with fewer heads export, and the file answers like them."""

from __future__ import annotations

from pathlib import Path

import pytest
from attention_nets import ATTENTION_NETS, AttentionNet, lively, removals_of

from pastille.export import check_parity, export_onnx
from pastille.pruning import remove
from pastille.task import forward

# DeiT of timm is its vision transformer, layer for layer.
NETS = {name: net for name, net in ATTENTION_NETS.items() if name != "timm deit"}


@pytest.mark.parametrize("net", NETS.values(), ids=list(NETS))
def test_half_the_heads_leave_and_the_rest_is_exported(net: AttentionNet, tmp_path: Path) -> None:
    model, batch = lively(net.build), net.batch()
    pruned = remove(model, batch, removals_of(net)).model
    scale = float(forward(pruned, batch).detach().abs().max())
    export_onnx(pruned, batch, tmp_path / "model.onnx")
    assert check_parity(pruned, tmp_path / "model.onnx", batch).max_abs_error <= 1e-4 * scale
