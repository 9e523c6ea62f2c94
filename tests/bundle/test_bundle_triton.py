"""A Triton model repository, read with Triton's own schema."""

from __future__ import annotations

import importlib.util
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bundle_parts import FEATURES, LABELS, make_bundle, samples
from google.protobuf import text_format

from pastille.bundle import load_bundle
from pastille.bundle.triton import model_config, write_triton_repository
from pastille.errors import UsageError
from pastille.runtime import load


@cache
def schema() -> ModuleType:
    """Triton's ``ModelConfig``, as its client carries it; imported alone, the package would want gRPC."""
    path = Path(sysconfig.get_path("purelib"), "tritonclient/grpc/model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("triton_model_config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(path: Path) -> Any:
    return text_format.Parse(path.read_text(), schema().ModelConfig())


def test_both_variants_are_written_with_a_configuration_that_triton_reads(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    manifest = load_bundle(bundle).manifest
    written = write_triton_repository(bundle, tmp_path / "models")
    assert [(m.name, m.variant) for m in written] == [
        (manifest.name, "int8"),
        (f"{manifest.name}_fp32", "fp32"),
    ]
    for model in written:
        config = parsed(model.folder / "config.pbtxt")
        assert (config.name, config.backend, config.max_batch_size) == (model.name, "onnxruntime", 64)
        assert [(i.name, list(i.dims)) for i in config.input] == [("input", [FEATURES])]
        assert config.input[0].data_type == schema().DataType.Value("TYPE_FP32")
        assert config.output[0].label_filename == "labels.txt"
        assert (model.folder / "labels.txt").read_text().split("\n")[:-1] == list(LABELS)
        assert config.parameters["pastille.content"].string_value == manifest.content
        file = model.folder / "1/model.onnx"
        answer = load(file)({"input": samples(2, seed=3)})
        expected = load(bundle / manifest.variant(model.variant).file)({"input": samples(2, seed=3)})
        np.testing.assert_array_equal(answer["logits"], expected["logits"])


def test_a_version_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    write_triton_repository(bundle, tmp_path / "models")
    with pytest.raises(UsageError, match="holds version 1 already; give --version a higher one"):
        write_triton_repository(bundle, tmp_path / "models")
    write_triton_repository(bundle, tmp_path / "models", version=2)


def test_a_name_cannot_break_out_of_the_configuration(tmp_path: Path) -> None:
    manifest = load_bundle(make_bundle(tmp_path / "bundle")).manifest
    text = model_config(manifest, manifest.variant("fp32"), name='x"\nmax_batch_size: 9 #')
    config = text_format.Parse(text, schema().ModelConfig())
    assert config.name == 'x"\nmax_batch_size: 9 #'
    assert config.max_batch_size == 64
