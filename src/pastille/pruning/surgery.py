"""Cutting channels out of a model's tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, final

import torch
from torch import nn

from pastille.pruning.following import Trace, Use
from pastille.pruning.following.labels import distinct
from pastille.pruning.units import Entries, Member
from pastille.pruning.whole import WEIGHTED

if TYPE_CHECKING:
    from torch import Tensor

Place = tuple[str, int]  # a tensor and one of its axes


@final
class Surgery:
    """Removes channels from a model, group after group, and remembers which entries are left."""

    def __init__(self, model: nn.Module, trace: Trace, groups: Sequence[Tensor]) -> None:
        """Prepare.

        Args:
            model: It will be changed.
            trace: Of this model.
            groups: Channels of each group in the order of its units, ``(C_i,)``.
        """
        self._model, self._trace = model, trace
        self._uses: dict[Place, Use] = {(use.tensor, use.axis): use for use in trace.uses}
        self._of = {place: trace.channels.of[use.labels] for place, use in self._uses.items()}
        size = int(trace.channels.of.max()) + 1
        self._unit, group = torch.zeros(size, dtype=torch.int64), torch.full((size,), -1)
        for i, units in enumerate(groups):
            self._unit[units], group[units] = torch.arange(len(units)), i
        self._group = group
        self._places: dict[int, list[Place]] = {}
        for place, of in self._of.items():
            for i in distinct(group[of]):
                self._places.setdefault(i, []).append(place)
        self._gone = torch.zeros(size, dtype=torch.bool)
        self._depthwise = {
            name
            for name, m in model.named_modules()
            if 1 < getattr(m, "groups", 1) == getattr(m, "in_channels", 0)
        }

    def members(self, group: int) -> Iterator[Member]:
        """The weights that a group of channels runs through, by present index."""
        for place in self._places.get(group, []):
            use, of = self._uses[place], self._of[place]
            if use.role != "follows":
                (rows,) = torch.where(self._group[of] == group)
                entries = Entries(parameter=use.tensor, axis=use.axis, indices=rows, blocks=use.blocks)
                yield Member(entries=entries, channels=self._unit[of[rows]], role=use.role)

    def reads(self, group: int, gone: Tensor) -> Iterator[Entries]:
        """Where some channels of a group are read, by present index."""
        going = self._gone.clone().index_fill_(0, gone, value=True)
        for place in self._places.get(group, []):
            use = self._uses[place]
            (indices,) = torch.where(going[self._of[place]])
            if use.role == "reads" and len(indices):
                yield Entries(parameter=use.tensor, axis=use.axis, indices=indices, blocks=use.blocks)

    def remove_(self, group: int, gone: Tensor) -> None:
        """Remove some channels of a group from every tensor that they run along."""
        self._gone[gone] = True
        touched = set()
        for place in self._places.get(group, []):
            left = ~self._gone[self._of[place]]
            if not bool(left.all()):
                _select_(self._model, self._uses[place], left)
                self._of[place] = self._of[place][left]
                touched.add(place[0].rpartition(".")[0])
        for name in touched:
            _resize_(self._model.get_submodule(name), depthwise=name in self._depthwise)
        for size in self._trace.sizes:
            left = ~self._gone[self._trace.channels.of[size.labels]]
            self._set_size_(size.module, size.attribute, int(left.sum()))

    def _set_size_(self, name: str, attribute: str, count: int) -> None:
        module = self._model.get_submodule(name)
        old = getattr(module, attribute)
        setattr(module, attribute, (*old[:-1], count) if isinstance(old, tuple) else count)


def _select_(model: nn.Module, use: Use, left: Tensor) -> None:
    owner_name, _, leaf = use.tensor.rpartition(".")
    owner = model.get_submodule(owner_name)
    old = getattr(owner, leaf)
    new = selected(old.detach(), use.axis, left, use.blocks).clone()
    setattr(
        owner,
        leaf,
        nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new,
    )


def selected(tensor: Tensor, axis: int, left: Tensor, blocks: int = 1) -> Tensor:
    """A tensor with some entries of one axis.

    Args:
        tensor: ``(D_0, …)``.
        axis: Of the tensor.
        left: Which entries stay, ``(blocks · C,)`` bool; equally many of each block.
        blocks: As in `Entries`.

    Example:
        >>> selected(torch.tensor([[1, 2], [3, 4]]), 1, torch.tensor([True, False, False, True]), blocks=2)
        tensor([[1],
                [4]])
    """
    if blocks == 1:
        return tensor.index_select(axis, torch.where(left)[0].to(tensor.device))
    parts = zip(tensor.chunk(blocks), left.chunk(blocks), strict=True)
    return torch.cat([selected(part, axis, stays) for part, stays in parts])


def _resize_(module: nn.Module, *, depthwise: bool) -> None:
    """Let a module say the widths that its tensors now have."""
    if isinstance(module, WEIGHTED):
        _resize_weighted_(module, depthwise=depthwise)
    elif isinstance(module, nn.RNNBase):
        if not module.proj_size:  # then these are the columns of the projection
            module.hidden_size = module.get_parameter("weight_hh_l0").shape[1]
        module.input_size = module.get_parameter("weight_ih_l0").shape[1]
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = len(module.weight if module.affine else module.running_mean)  # type: ignore[arg-type]


def _resize_weighted_(module: nn.Module, *, depthwise: bool) -> None:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    makes, reads = weight.shape[:2]
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = makes, reads
        return
    assert isinstance(module, nn.modules.conv._ConvNd)
    if module.transposed:
        if depthwise:
            module.groups = makes
        module.in_channels, module.out_channels = makes, reads * module.groups
        return
    if depthwise:
        module.groups = module.groups * makes // module.out_channels
    module.out_channels, module.in_channels = makes, reads * module.groups
