"""Where a model comes from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from task_files import recipe, section, write_users_files
from torch import nn

from pastille.errors import TaskError, UsageError, WeightsError
from pastille.task import forward
from pastille.task.factory import model_factory
from pastille.task.load import load_model
from pastille.task.torchvision import import_torchvision

import_torchvision()  # before the tests themselves import transformers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_users_files(tmp_path)


def is_one_line(error: BaseException) -> bool:
    return "\n" not in str(error) and len(str(error)) < 500


def test_a_callable_of_a_file(folder: Path) -> None:
    model = model_factory(section(arguments={"width": 5}), folder)()
    assert model.get_parameter("hidden.weight").shape == (5, 4)


def test_a_callable_of_a_package(folder: Path) -> None:
    package = folder / "task_users_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text((folder / "model.py").read_text())
    model = model_factory(section("task_users_package.nets:build"), folder)()
    assert type(model).__module__ == "task_users_package.nets"
    assert str(folder) not in sys.path


def test_a_callable_of_an_installed_package() -> None:
    model = model_factory(
        section("torch.nn:Linear", arguments={"in_features": 4, "out_features": 3}), Path()
    )()
    assert isinstance(model, nn.Linear)


def test_every_build_is_the_same_and_leaves_the_random_numbers_alone(folder: Path) -> None:
    build = model_factory(section(), folder, seed=3)
    state = torch.get_rng_state()
    first, second = build(), build()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.get_parameter("hidden.weight"), second.get_parameter("hidden.weight"))
    other = model_factory(section(), folder, seed=4)()
    assert not torch.equal(first.get_parameter("hidden.weight"), other.get_parameter("hidden.weight"))


def test_a_callable_that_returns_the_same_module_each_time_gives_copies(folder: Path) -> None:
    """Otherwise rebuilding a pruned model would change the baseline."""
    build = model_factory(section("model.py:shared"), folder)
    first, second = build(), build()
    nn.init.zeros_(first.get_parameter("hidden.weight"))
    assert second.get_parameter("hidden.weight").any()
    assert build().get_parameter("hidden.weight").any()


@pytest.mark.parametrize(
    ("model", "arguments", "problem"),
    [
        ("model.py:raises", {}, r"task.model: model.py:raises raised RuntimeError: no such checkpoint"),
        ("model.py:leaves", {}, r"task.model: model.py:leaves raised SystemExit: 3"),
        ("model.py:weights", {}, r"must return a torch.nn.Module, got dict"),
        ("model.py:build", {"depth": 3}, r"raised TypeError: .*'depth'"),
        ("torchvision:resnet18", {"depth": 3}, r"torchvision:resnet18 raised TypeError: .*'depth'"),
    ],
)
def test_a_callable_that_fails(model: str, arguments: dict[str, Any], problem: str, folder: Path) -> None:
    with pytest.raises(TaskError, match=problem) as caught:
        model_factory(section(model, arguments=arguments), folder)()
    assert is_one_line(caught.value)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("model.py:biuld", "no callable 'biuld'; it has: build"),
        ("modle.py:build", "there is no file .*modle.py"),
        ("no_such_package.nets:build", "importing no_such_package.nets failed: ModuleNotFoundError"),
        ("model.py", "must be FILE.py:CALLABLE or package.module:CALLABLE"),
        ("torchvision:resnet81", "torchvision has no model 'resnet81'; closest: resnet1"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no model"),  # would fetch a backbone
        ("timm:resnet81", "timm has no model 'resnet81'; closest: "),
        ("timm:hf-hub:someone/net", "timm has no model"),  # would fetch it
        ("hf:nowhere", "hf:DIR must be a folder that holds config.json, got .*nowhere"),
    ],
)
def test_a_model_that_cannot_be_found_is_named_with_what_is_close(
    model: str, problem: str, folder: Path
) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        model_factory(section(model), folder)
    assert is_one_line(caught.value)


def test_a_file_that_cannot_be_imported(folder: Path) -> None:
    (folder / "model.py").write_text("import no_such_module")
    with pytest.raises(
        UsageError, match=r"importing .*model.py failed: ModuleNotFoundError: .*no_such_module"
    ):
        model_factory(section(), folder)


@pytest.mark.parametrize(
    "model", ["torchvision:mobilenet_v3_small", "torchvision:googlenet", "timm:mobilenetv3_small_050"]
)
def test_library_models_answer_for_the_tasks_labels(model: str) -> None:
    net = model_factory(section(model), Path())().eval()
    assert forward(net, {"input": torch.zeros(2, 3, 32, 32)}).shape == (2, 3)


def test_library_models_of_a_regression_answer_one_number() -> None:
    net = model_factory(section("torchvision:squeezenet1_1", kind="regression", labels=[]), Path())()
    assert forward(net.eval(), {"input": torch.zeros(2, 3, 32, 32)}).shape == (2, 1)


def test_library_models_take_arguments() -> None:
    net = model_factory(section("timm:resnet10t", arguments={"in_chans": 1}), Path())().eval()
    assert forward(net, {"input": torch.zeros(2, 1, 32, 32)}).shape == (2, 3)


def bert(folder: Path) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        num_labels=3,
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    return model  # type: ignore[no-any-return]


def test_a_text_classifier_of_transformers_with_its_weights(tmp_path: Path) -> None:
    original = bert(tmp_path / "bert")
    asked = recipe(model="hf:bert")
    model = load_model(asked, tmp_path, model_factory(asked.task, tmp_path))
    batch = {"input_ids": torch.randint(0, 50, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.int64)}
    batch["attention_mask"][1, 4:] = 0
    torch.testing.assert_close(forward(model, batch), original(**batch).logits)


def vit(folder: Path) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=8,
        num_labels=3,
    )
    model = ViTForImageClassification(config).eval()
    model.save_pretrained(folder)
    return model  # type: ignore[no-any-return]


def test_an_image_classifier_of_transformers_with_its_weights(tmp_path: Path) -> None:
    """Its file names layers otherwise than the module does."""
    original = vit(tmp_path / "vit")
    assert not load_file(tmp_path / "vit" / "model.safetensors").keys() <= original.state_dict().keys()
    asked = recipe(model="hf:vit")
    model = load_model(asked, tmp_path, model_factory(asked.task, tmp_path))
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(forward(model, {"input": x}), original(x).logits)


FRESH = """
import sys
from pathlib import Path
import torch
from pastille.recipe import TaskSection
from pastille.task.factory import model_factory
from pastille.task.weights import load_weights_, read_weights
from pastille.task import forward

folder = Path(sys.argv[1])
section = TaskSection(kind="multiclass", model="hf:.", labels=["a", "b", "c"])
model = model_factory(section, folder)().eval()
load_weights_(model, read_weights(folder / "model.safetensors"), source="model.safetensors")
print(forward(model, {"input": torch.ones(1, 3, 16, 16)}).tolist())
"""


def test_a_fresh_process_loads_a_transformers_folder_and_says_nothing_else(tmp_path: Path) -> None:
    """Where torchvision was built for another torch, importing transformers fails unless it is helped."""
    original = vit(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FRESH, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    expected = original(torch.ones(1, 3, 16, 16)).logits.tolist()
    assert (done.stdout.strip(), done.stderr) == (str(expected), "")


@pytest.mark.parametrize("names", ["of the file", "of the module"])
def test_transformers_weights_that_do_not_fit_are_listed(names: str, tmp_path: Path) -> None:
    original = vit(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path) if names == "of the file" else original.state_dict()
    state.pop("vit.layernorm.bias")
    state |= {"pooler": torch.zeros(2), "classifier.bias": torch.zeros(7)}
    save_file(state, path)
    asked = recipe(model="hf:.")
    with pytest.raises(WeightsError) as caught:
        load_model(asked, tmp_path, model_factory(asked.task, tmp_path))
    error = caught.value
    assert error.missing == ("model.vit.layernorm.bias",)
    assert error.unexpected == ("model.pooler",)
    assert error.mismatched == ("model.classifier.bias: file (7,), model (3,)",)


def test_weights_given_beside_a_transformers_folder(tmp_path: Path) -> None:
    original = bert(tmp_path / "bert")
    save_file({n: x + 1 for n, x in original.state_dict().items()}, tmp_path / "better.safetensors")
    asked = recipe(model="hf:bert", weights="better.safetensors")
    model = load_model(asked, tmp_path, model_factory(asked.task, tmp_path))
    name = "classifier.bias"
    torch.testing.assert_close(model.get_parameter(f"model.{name}"), original.get_parameter(name) + 1)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "no-such-type"}, "cannot read .*config.json: ValueError.*no-such-type"),
        ({"architectures": None}, r"must name one model of transformers under architectures, got \[\]"),
        ({"architectures": ["NoSuchModel"]}, "got .*NoSuchModel"),
        ({"architectures": ["pipeline"]}, "must name one model"),  # a function, which could fetch things
        ({"architectures": ["BertConfig"]}, "must name one model"),
        ({"hidden_size": 15}, "raised ValueError.*multiple"),
    ],
)
def test_a_config_that_is_wrong(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    path = tmp_path / "bert" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(TaskError, match=problem) as caught:
        model_factory(section("hf:bert"), tmp_path)()
    assert is_one_line(caught.value)


def test_a_config_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TaskError, match=r"cannot read .*config.json") as caught:
        model_factory(section("hf:."), tmp_path)
    assert is_one_line(caught.value)


def test_code_that_comes_with_a_transformers_folder_is_not_run(tmp_path: Path) -> None:
    """``trust_remote_code`` would import a file of the folder."""
    bert(tmp_path / "bert")
    (tmp_path / "bert" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    path = tmp_path / "bert" / "config.json"
    config = {**json.loads(path.read_text()), "model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    path.write_text(json.dumps(config))
    with pytest.raises(TaskError) as caught:
        model_factory(section("hf:bert"), tmp_path)
    assert is_one_line(caught.value)
    assert not (tmp_path / "ran").exists()


def test_arguments_beside_a_transformers_folder_are_refused(tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    with pytest.raises(TaskError, match=r"task.arguments must be left out with hf:bert"):
        model_factory(section("hf:bert", arguments={"num_labels": 3}), tmp_path)


def test_a_transformers_model_without_a_head_says_what_to_bring(tmp_path: Path) -> None:
    bert(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["BertModel"]}))
    model = model_factory(section("hf:."), tmp_path)().eval()
    with pytest.raises(TaskError, match="a BertModel answers without logits; bring a model with a head"):
        forward(model, {"input_ids": torch.zeros(1, 3, dtype=torch.int64)})
