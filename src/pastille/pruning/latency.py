"""What each layer takes as a function of the widths it keeps, as measured in the target runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
from scipy.optimize import nnls

from pastille.pruning.cost import Costs
from pastille.runtime.onnx_graph import Node, read_graph
from pastille.runtime.wiring import Wiring, wire
from pastille.values import Conditions

SCHEMA: Final = 1
LEVELS: Final = (1.0, 0.75, 0.5, 0.25)  # widths at which whole networks are timed
STAGGERED: Final = (1.0, 0.4)  # every other group: what a layer reads and what it makes come apart
MULTIPLES: Final = (4, 8, 16, 32)
TOLERATED: Final = 0.10  # extra time for the same work at which widths still count as fast
_ALIGNED: Final = (32, 64, 96)
_SHOWING: Final[Mapping[int, tuple[int, ...]]] = {4: (36, 60, 76), 8: (40, 56, 72), 16: (48, 80)}

_WEIGHTS_AT: Final = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "LSTM": 1, "GRU": 1, "RNN": 1}
Law = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sighting:
    """One network of some widths, as its file ran.

    Attributes:
        kept: Its widths, ``(G,)``.
        times_ms: Tensor of the file -> milliseconds of the kernel that makes it.
        tensors: Parameter -> the tensor that is made with it, of layers whose kernel is known.
    """

    kept: np.ndarray
    times_ms: Mapping[str, float]
    tensors: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """How long a network of any widths takes, each layer by itself.

    A layer takes ``a + b·makes + c·reads + d·makes·reads`` milliseconds, ``makes`` and ``reads`` the shares
    of its output and input channels that are left. What is no such layer (additions, pooling, attention)
    takes ``a + b·answers + d·macs``, by the shares of all activations, and of the multiply-accumulates of
    layers whose kernel could not be told.

    Attributes:
        schema: Version of this form.
        conditions: What it was measured on.
        precision: Of the files that were timed.
        network: Digest of the network's parameters and groups.
        layers: Parameter -> its law, in milliseconds.
        rest: Law of all that is no such layer.
        error: Largest relative error of a total among the networks that were timed.
        files: Networks that were timed.
    """

    schema: int = SCHEMA
    conditions: Conditions
    precision: str
    network: str
    layers: Mapping[str, Law]
    rest: Law
    error: float
    files: int

    def milliseconds(self, costs: Costs, kept: np.ndarray) -> np.ndarray:
        """What networks take.

        Args:
            costs: Of the network that the table was made for.
            kept: Widths of ``B`` networks, ``(B, G)``.

        Returns:
            ``(B,)``.
        """
        laws = np.array([self.layers.get(name, (0.0,) * 4) for name in costs.parameters])  # (P, 4)
        shares = costs.shares(kept)
        found: np.ndarray = np.einsum("bpk,pk->b", _of_layers(shares), laws)
        found += _of_rest(costs, shares, self.layers) @ np.array(self.rest)
        return found


def latency_table(
    costs: Costs, seen: Sequence[Sighting], *, conditions: Conditions, precision: str
) -> LatencyTable:
    """Fit a law for every layer to networks that were timed.

    Args:
        costs: Of the network before anything is removed.
        seen: Networks of several widths, as of `designs`.
        conditions: What they ran on.
        precision: Of their files.

    References:
        Non-negative least squares: Lawson & Hanson, Solving Least Squares Problems, 1974.
    """
    kept = np.stack([each.kept for each in seen])
    shares = costs.shares(kept)
    terms = _of_layers(shares)
    told = [name for name in costs.parameters if all(name in each.tensors for each in seen)]
    tensors = {each.tensors[name]: name for each in seen[:1] for name in reversed(told)}
    layers = {}
    for name in tensors.values():
        times = [each.times_ms.get(each.tensors[name], 0.0) for each in seen]
        layers[name] = _fitted(terms[:, costs.parameters.index(name)], np.array(times))
    own = [sum(each.times_ms.get(each.tensors[name], 0.0) for name in layers) for each in seen]
    total = np.array([sum(each.times_ms.values()) for each in seen])
    table = LatencyTable(
        conditions=conditions,
        precision=precision,
        network=network_digest(costs),
        layers=layers,
        rest=_fitted(_of_rest(costs, shares, layers), total - np.array(own)),
        error=0.0,
        files=len(seen),
    )
    error = np.abs(table.milliseconds(costs, kept) / np.maximum(total, 1e-9) - 1).max()
    return LatencyTable(**{**vars(table), "error": float(error)})


def _of_layers(shares: np.ndarray) -> np.ndarray:
    """Shares ``(B, P, 2)`` as the terms of a law, ``(B, P, 4)``."""
    first, second = shares[..., 0], shares[..., 1]
    return np.stack([np.ones_like(first), first, second, first * second], axis=-1)


def _of_rest(costs: Costs, shares: np.ndarray, layers: Mapping[str, Law]) -> np.ndarray:
    """The terms of what is no layer of its own, ``(B, 4)``."""
    unknown = np.array([name not in layers for name in costs.parameters]) * costs.sizes * costs.uses
    answers = shares[..., 0] @ costs.answers / max(costs.answers.sum(), 1.0)
    work = shares.prod(axis=2) @ unknown / max(unknown.sum(), 1.0)
    return np.stack([np.ones_like(answers), answers, np.zeros_like(answers), work], axis=-1)


def _fitted(terms: np.ndarray, times: np.ndarray) -> Law:
    found, _ = nnls(terms, np.maximum(times, 0.0))
    return tuple(float(x) for x in found)  # type: ignore[return-value]


def network_digest(costs: Costs) -> str:
    """Which network a table was measured for: its parameters' sizes and its groups' widths."""
    parts = [*costs.parameters, *costs.groups, *map(str, costs.sizes), *map(str, costs.widths)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def designs(widths: np.ndarray, *, multiple: int | np.ndarray) -> list[np.ndarray]:
    """Widths of the networks that are timed: the same share of every group, and staggered ones.

    Args:
        widths: Of each group, ``(G,)``.
        multiple: That widths kept are rounded up to, of all groups or of each ``(G,)``.

    Example:
        >>> [d.tolist() for d in designs(np.array([64, 32]), multiple=8)]
        [[64, 32], [48, 24], [32, 16], [16, 8], [64, 16], [32, 32]]
    """
    odd = np.arange(len(widths)) % 2 == 1
    high, low = STAGGERED
    shares = [np.full(len(widths), level) for level in LEVELS]
    shares += [np.where(odd, low, high), np.where(odd, high, low)]
    kept = [np.minimum(widths, np.ceil(widths * s / multiple) * multiple).astype(int) for s in shares]
    return [each for i, each in enumerate(kept) if not any(np.array_equal(each, k) for k in kept[:i])]


def layer_tensors(file: Path, costs: Costs) -> Mapping[str, str]:
    """Which tensor of a file each parameter's layer makes.

    Layers multiply in the same order in the file as in the module. Where the file has more or fewer of
    them, those are matched whose sizes follow one another alike.

    Args:
        file: Exported from the module at any widths, or quantized from that.
        costs: Of the module.
    """
    graph = wire(read_graph(file))
    held: dict[str, tuple[str, int]] = {}
    for node in graph.graph.nodes:
        for weight, size in _weight(node, graph):
            held.setdefault(weight, (node.outputs[0], size))
    order = list(dict.fromkeys(costs.order))
    made = list(held.values())
    if len(made) == len(order):
        return {name: tensor for name, (tensor, _) in zip(order, made, strict=True)}
    sizes = dict(zip(costs.parameters, costs.sizes.astype(int).tolist(), strict=True))
    matched = SequenceMatcher(None, [sizes[n] for n in order], [s for _, s in made], autojunk=False)
    return {
        order[block.a + i]: made[block.b + i][0]
        for block in matched.get_matching_blocks()
        for i in range(block.size)
    }


def _weight(node: Node, graph: Wiring) -> Iterator[tuple[str, int]]:
    """The constant that an operator multiplies with, and how many numbers that has."""
    at = _WEIGHTS_AT.get(node.op)
    if at is None or at >= len(node.inputs):
        return
    name = node.inputs[at]
    scaled = graph.made_by(name, "DequantizeLinear")
    name = scaled.inputs[0] if scaled is not None else name
    if name in graph.graph.stored:
        yield name, prod(graph.graph.stored[name].dims)


@dataclass(frozen=True, kw_only=True)
class FastWidths:
    """Of which number widths should be multiples on one machine.

    Attributes:
        multiple: The smallest that costs next to nothing.
        slower: Multiple -> extra time for the same work, against multiples of 32.
        precision: Of the kernels.
    """

    multiple: int
    slower: Mapping[int, float] = field(default_factory=dict)
    precision: str

    @property
    def words(self) -> str:
        """A note for the record."""
        seen = ", ".join(f"{m}: {share:+.0%}" for m, share in self.slower.items())
        return (
            f"widths are multiples of {self.multiple}: time of {self.precision} kernels on this machine for "
            f"the same work, against multiples of {_ALIGNED[0]}: {seen}"
        )


def fast_multiple(clock: Callable[[int], float], *, precision: str) -> FastWidths:
    """Find of which number widths should be multiples, by timing.

    Args:
        clock: Width of a layer (of what it reads and of what it makes) -> milliseconds.
        precision: Of the kernels that are timed.

    Returns:
        The smallest of 4, 8, 16 and 32 whose odd multiples take at most a tenth longer than widths of
        multiples of 32 would for the same number of multiply-accumulates.

    Example:
        >>> blocked = fast_multiple(lambda width: (-(-width // 16) * 16) ** 2, precision="fp32")
        >>> blocked.multiple
        16
    """
    work = [width**2 for width in _ALIGNED]
    aligned = [clock(width) for width in _ALIGNED]
    slower = {
        multiple: float(np.mean([clock(w) / np.interp(w**2, work, aligned) for w in widths]) - 1)
        for multiple, widths in _SHOWING.items()
    }
    slower[MULTIPLES[-1]] = 0.0
    fast = next(m for m in MULTIPLES if slower[m] <= TOLERATED)
    return FastWidths(multiple=fast, slower=slower, precision=precision)


def fits(table: LatencyTable, costs: Costs, conditions: Conditions, precision: str) -> bool:
    """Whether a table that was kept is of this network, machine, runtime, threads and precision."""
    known = (table.schema, table.network, table.conditions, table.precision)
    return known == (SCHEMA, network_digest(costs), conditions, precision)
