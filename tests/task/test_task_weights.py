"""Trained weights: what is read, what is refused, and that nothing that comes with them is run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from pastille.errors import WeightsError
from pastille.stages.contract import state_digest
from pastille.task.weights import load_weights_, read_weights


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


Wrap = Callable[[dict[str, Tensor]], Any]

FORMS: dict[str, Wrap] = {
    "state dict": lambda state: state,
    "under state_dict": lambda state: {"epoch": 3, "state_dict": state, "loss": 0.1},
    "under model": lambda state: {"model": state, "optimizer": {"lr": 0.1, "state": {}}},
    "under model_state_dict": lambda state: {"model_state_dict": state},
    "under model and state_dict": lambda state: {"model": {"state_dict": state}},
    "from DataParallel": lambda state: {f"module.{n}": x for n, x in state.items()},
    "from torch.compile": lambda state: {f"_orig_mod.{n}": x for n, x in state.items()},
    "from DDP of a compiled model": lambda state: {f"module._orig_mod.{n}": x for n, x in state.items()},
    "from DataParallel, wrapped": lambda state: {"state_dict": {f"module.{n}": x for n, x in state.items()}},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_checkpoints_of_torch_are_unwrapped(form: Wrap, zipped: bool, tmp_path: Path) -> None:
    trained, fresh = net(1), net(2)
    path = tmp_path / "best.pt"
    torch.save(form(trained.state_dict()), path, _use_new_zipfile_serialization=zipped)
    load_weights_(fresh, read_weights(path), source="best.pt")
    assert state_digest(fresh) == state_digest(trained)


@pytest.mark.parametrize("name", ["best.safetensors", "BEST.SAFETENSORS"])
def test_safetensors(name: str, tmp_path: Path) -> None:
    trained, fresh = net(1), net(2)
    save_file(trained.state_dict(), tmp_path / name)
    load_weights_(fresh, read_weights(tmp_path / name), source=name)
    assert state_digest(fresh) == state_digest(trained)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    fresh = net()
    save_file(
        {n: x.half() if x.is_floating_point() else x for n, x in net(1).state_dict().items()},
        tmp_path / "w.safetensors",
    )
    load_weights_(fresh, read_weights(tmp_path / "w.safetensors"), source="w")
    assert fresh.get_parameter("0.weight").dtype == torch.float32


def test_a_part_that_is_called_module_is_no_prefix(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    trained, fresh = Wrapped(), Wrapped()
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    load_weights_(fresh, read_weights(tmp_path / "w.pt"), source="w.pt")
    assert state_digest(fresh) == state_digest(trained)


def test_tied_weights_that_are_in_the_file_once(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    trained, fresh = tied(), tied()
    save_model(trained, str(tmp_path / "w.safetensors"))
    load_weights_(fresh, read_weights(tmp_path / "w.safetensors"), source="w")
    assert state_digest(fresh) == state_digest(trained)


def test_every_key_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    state = net().state_dict()
    del state["0.bias"], state["1.running_mean"]
    state |= {"4.weight": torch.zeros(1), "3.weight": torch.zeros(5, 8)}
    fresh = net(2)
    digest = state_digest(fresh)
    with pytest.raises(WeightsError) as caught:
        load_weights_(fresh, state, source="best.pt")
    error = caught.value
    assert set(error.missing) == {"0.bias", "1.running_mean"}
    assert error.unexpected == ("4.weight",)
    assert error.mismatched == ("3.weight: file (5, 8), model (3, 8)",)
    assert str(error) == (
        "task.weights: best.pt does not fit the model: 2 missing (0.bias, 1.running_mean); "
        "1 unexpected (4.weight); 1 of another shape (3.weight: file (5, 8), model (3, 8))"
    )
    assert state_digest(fresh) == digest  # nothing was loaded by halves


def test_long_lists_are_cut_in_the_message_and_whole_in_the_fields() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(10)))
    with pytest.raises(WeightsError, match=r"20 missing \(0.weight, .* and 15 more\)") as caught:
        load_weights_(model, {"x": torch.zeros(1)}, source="best.pt")
    assert len(caught.value.missing) == 20


def test_nan_is_named() -> None:
    state = net().state_dict()
    state["3.bias"][1] = float("nan")
    with pytest.raises(WeightsError, match=r"best.pt holds NaN in 1 tensors \(3.bias\)"):
        load_weights_(net(), state, source="best.pt")


def test_infinity_in_a_mask_is_no_fault() -> None:
    """Attention masks are buffers of minus infinity."""
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2, 2), -torch.inf))
    weights = {**model.state_dict(), "bias": torch.tensor([3.0, 4.0])}
    load_weights_(model, weights, source="best.pt")
    assert model.bias.tolist() == [3.0, 4.0]


class Evil:
    """Creates a file as soon as it is unpickled without protection."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["torch", "legacy", "pickle"])
def test_code_in_a_pickle_is_not_run(kind: str, tmp_path: Path) -> None:
    evil = {"state_dict": net().state_dict(), "extra": Evil(tmp_path / "ran")}
    path = tmp_path / "best.pt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(evil, protocol=2))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    assert not (tmp_path / "ran").exists()
    assert_helps(caught.value, "holds more than tensors")
    assert "weights_only=False" not in str(caught.value)
    pickle.loads(pickle.dumps(Evil(tmp_path / "ran")))  # the trap is armed
    assert (tmp_path / "ran").exists()


def assert_helps(error: WeightsError, problem: str) -> None:
    message = str(error)
    assert problem in message
    assert ".safetensors" in message  # what to do
    assert message.isprintable()  # one line, no colours
    assert len(message) < 500


def test_a_whole_pickled_module_says_to_save_the_state_dict(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "model.pt")
    with pytest.raises(WeightsError) as caught:
        read_weights(tmp_path / "model.pt")
    assert_helps(caught.value, "torch.nn.modules.container.Sequential")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_files_that_are_cut_off(suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"best{suffix}"
    torch.save(net().state_dict(), path) if suffix == ".pt" else save_file(net().state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    assert_helps(caught.value, "best")


def test_files_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello, this is no header at all")
    np.savez(tmp_path / "array.npz", a=np.zeros(3))
    for name in ("text.pt", "text.safetensors", "array.npz"):
        with pytest.raises(WeightsError) as caught:
            read_weights(tmp_path / name)
        assert_helps(caught.value, "cannot be read")


@pytest.mark.parametrize(
    ("held", "named"),
    [
        ([torch.zeros(2)], "list"),
        (torch.zeros(2), "Tensor"),
        ({}, "nothing"),
        ({"epoch": 3, "ema": {"w": torch.zeros(1)}}, "epoch, ema"),
    ],
    ids=["list", "tensor", "empty", "other keys"],
)
def test_files_without_a_state_dict_say_what_they_hold(held: Any, named: str, tmp_path: Path) -> None:
    torch.save(held, tmp_path / "best.pt")
    with pytest.raises(WeightsError) as caught:
        read_weights(tmp_path / "best.pt")
    assert_helps(
        caught.value, f"holds no state dict, itself or under state_dict, model_state_dict, model, but {named}"
    )


@pytest.mark.timeout(20)
def test_a_checkpoint_that_holds_itself_ends(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["model"] = loop
    torch.save(loop, tmp_path / "loop.pt")
    with pytest.raises(WeightsError, match="holds no state dict"):
        read_weights(tmp_path / "loop.pt")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(WeightsError, match=f"task.weights: there is no file {path}"):
            read_weights(path)
