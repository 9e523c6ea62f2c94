"""Where a training stands, kept on disk: a training that was killed goes on as if it had not been."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, final

import numpy as np

from pastille.data.split import Split
from pastille.errors import IntegrityError, OutputError
from pastille.files import produce_atomic
from pastille.recipe import Train
from pastille.task.digest import state_digest, tensors_digest

if TYPE_CHECKING:
    from torch import Tensor, nn

FILE: Final = "training.safetensors"
_SCHEMA: Final = 1
_SOON_S, _LATEST_S = 1.0, 60.0  # between two: at least, at the end of an epoch; at most, within one
_TIMES: Final = 20.0  # times as long as writing takes, at least: large models may have short epochs


class Kept(Protocol):
    """Something that changes from step to step and that a kill must not lose, as tensors by name."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """What it remembers."""
        ...

    def load_state_dict(self, tensors: Mapping[str, Tensor], /) -> object:
        """Remember what `state_dict` gave."""
        ...


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a training stands.

    Attributes:
        tensors: Part -> name -> tensor, on the CPU.
        numbers: Everything else; what JSON can hold.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    numbers: Mapping[str, Any]


def key_of(
    settings: Train, seed: int, model: nn.Module, splits: Mapping[str, Split], *, what: str = ""
) -> str:
    """What tells one training from another: a checkpoint of another one is of no use.

    Args:
        settings: As asked.
        seed: Of everything random.
        model: As it was given.
        splits: Told apart by their size and targets.
        what: Name of the training.
    """
    targets = {name: _array_digest(split.targets) for name, split in splits.items()}
    asked = [_SCHEMA, what, seed, settings.model_dump(mode="json"), state_digest(model), targets]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _array_digest(array: np.ndarray) -> str:
    return hashlib.sha256(f"{array.shape} {array.dtype}".encode() + array.tobytes()).hexdigest()


@final
@dataclass(kw_only=True)
class Checkpoint:
    """The file of one training.

    Attributes:
        folder: Of this training alone; made where it is missing.
        key: From `key_of`.
        clock: In seconds.
    """

    folder: Path
    key: str
    clock: Callable[[], float] = time.monotonic
    _last: float = field(init=False)
    _took: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._last = self.clock()

    def due(self, *, ends_epoch: bool) -> bool:
        """Whether it is time to write."""
        least = max(_SOON_S if ends_epoch else _LATEST_S, _TIMES * self._took)
        return self.clock() - self._last >= least

    def write(self, standing: Standing) -> None:
        """Replace what was there, whole or not at all.

        Raises:
            OutputError: It cannot be written.
        """
        from safetensors.torch import save_file

        began = self.clock()
        # A copy of each: safetensors refuses tensors that share memory (tied weights, views).
        tensors = {
            f"{part}/{name}": x.detach().cpu().clone().contiguous()
            for part, of in standing.tensors.items()
            for name, x in of.items()
        }
        numbers = json.dumps(dict(standing.numbers))
        about = {"key": self.key, "numbers": numbers, "digest": _digest(tensors, numbers)}
        produce_atomic(self.folder / FILE, lambda draft: save_file(tensors, draft, metadata=about))
        self._last = self.clock()
        self._took = self._last - began

    def read(self) -> Standing | None:
        """Where an earlier process stood; None if there was none, or it did another training.

        Raises:
            IntegrityError: What it left is damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = self.folder / FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise IntegrityError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None
        if about.get("key") != self.key:
            return None
        if about.get("digest") != _digest(tensors, about.get("numbers", "")):
            raise IntegrityError(f"{path} is damaged: its tensors are not those that were written")
        return Standing(tensors=_by_part(tensors), numbers=json.loads(about["numbers"]))

    def remove(self) -> None:
        """The training is over.

        Raises:
            OutputError: It cannot be removed.
        """
        path = self.folder / FILE
        try:
            path.unlink(missing_ok=True)
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()
        except OSError as error:
            raise OutputError(f"cannot remove {path}: {error.strerror}") from error


def _digest(tensors: Mapping[str, Tensor], numbers: str) -> str:
    ordered = {name: tensors[name] for name in sorted(tensors)}
    return hashlib.sha256((tensors_digest(ordered) + numbers).encode()).hexdigest()


def _by_part(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = value
    return parts
