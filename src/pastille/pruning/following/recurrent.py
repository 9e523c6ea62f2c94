"""LSTM, GRU and RNN: the hidden units of every layer and direction, and what they read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from pastille.pruning.following.trace import Even, Use
from pastille.pruning.following.tracer import Account, Call, opaque, tensors_in
from pastille.pruning.whole import FIRST, GIVEN, IDLE, PROJECTED, SHARED

if TYPE_CHECKING:
    from torch import Tensor


def recurrent(account: Account, call: Call) -> None:
    """A call of an `nn.RNNBase`: its layers and directions share one size, so all lose equally many."""
    name = account.modules[-1] if account.modules else ""
    module = account.root.get_submodule(name)
    x = call.first
    if not isinstance(module, nn.RNNBase) or any(id(p) in account.shared for p in module.parameters()):
        opaque(account, call, SHARED)
        return
    directions, size = 1 + module.bidirectional, module.proj_size or module.hidden_size
    made = account.labels.fresh(module.num_layers, directions, size)
    if module.proj_size:
        account.labels.keep(made, PROJECTED)
    account.made(name, made.flatten())
    account.evens.append(Even(labels=made.flatten(), parts=module.num_layers * directions))
    read = account.along(x, -1)
    for layer, units in enumerate(made):
        for direction, own in enumerate(units):
            _cell(account, name, f"l{layer}{'_reverse' * direction}", own, read)
        read = units.flatten()
    _states(account, call, made)


def _cell(account: Account, name: str, suffix: str, own: Tensor, read: Tensor) -> None:
    prefix = f"{name}." if name else ""
    for kind, columns in (("ih", read), ("hh", own)):
        tensor = f"{prefix}weight_{kind}_{suffix}"
        if f"{prefix}weight_hr_{suffix}" in account.names.values():
            # With a projection, what the gates make is not what the layer puts out.
            account.use(Use(tensor=tensor, axis=1, labels=columns, role="reads"))
            continue
        rows = _gates(account, tensor, own)
        account.use(Use(tensor=tensor, axis=0, labels=rows, role="makes"))
        account.use(Use(tensor=tensor, axis=1, labels=columns, role="reads"))
        bias = f"{prefix}bias_{kind}_{suffix}"
        if any(bias == known for known in account.names.values()):
            account.use(Use(tensor=bias, axis=0, labels=rows, role="follows"))


def _gates(account: Account, tensor: str, own: Tensor) -> Tensor:
    """Each unit has a row in every gate, and the gates lie one below the other."""
    rows = account.root.get_parameter(tensor).shape[0]
    return own.repeat(rows // len(own))


def _states(account: Account, call: Call, made: Tensor) -> None:
    output, *states = tensors_in(call.result)
    account.put(output, made[-1].flatten())
    # (layers × directions, N, H), or without N
    labels = made.flatten(0, 1)
    for state in states:
        if state.shape[-1] == labels.shape[-1]:
            account.put(state, labels if state.ndim == 2 else labels[:, None])
        else:
            account.put(state, account.labels.fixed(PROJECTED))
    if (given := _given_states(account)) is not None:
        account.labels.keep(made, IDLE if not any(bool(t.any()) for t in given) else GIVEN)
        account.keep(given, FIRST)


def _given_states(account: Account) -> list[Tensor] | None:
    """The first states that the code gives the module, which makes zeros of the right width by itself."""
    _, *states = account.given[-1]
    found = list(tensors_in(states))
    return found or None


def packed(account: Account, call: Call) -> None:
    """Sequences of several lengths, put one behind the other and back."""
    for result in tensors_in(call.result):
        last = account.along(call.first, -1) if account.of(call.first).any() else torch.zeros(1).long()
        account.put(result, last if result.is_floating_point() else torch.zeros(1).long())


# Their integers are counts of time steps, whatever the values of the sequences.
PACKING = ("pack_padded_sequence", "pad_packed_sequence")

RECURRENT = {
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), recurrent),
    **dict.fromkeys(PACKING, packed),
}
