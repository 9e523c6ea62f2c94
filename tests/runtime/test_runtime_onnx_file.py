from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from runtime_models import linear_model, quantized_model, saved

from pastille.errors import IntegrityError
from pastille.runtime import check_self_contained, load, onnx_file

MODELS = [linear_model().SerializeToString(), quantized_model().SerializeToString()]


def external() -> TensorProto:
    tensor = TensorProto(name="far", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def sparse(tensor: TensorProto) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=tensor, dims=[4])


def with_attribute(**value: Any) -> Callable[[onnx.ModelProto], None]:
    def add(model: onnx.ModelProto) -> None:
        model.graph.node[0].attribute.append(onnx.AttributeProto(name="extra", **value))

    return add


def graph_with(tensor: TensorProto) -> onnx.GraphProto:
    return onnx.GraphProto(name="inner", initializer=[tensor])


def graph_in_graph(tensor: TensorProto) -> onnx.GraphProto:
    inner = onnx.AttributeProto(name="body", type=onnx.AttributeProto.GRAPH, g=graph_with(tensor))
    return onnx.GraphProto(name="outer", node=[onnx.NodeProto(op_type="Loop", attribute=[inner])])


def function_with(tensor: TensorProto) -> onnx.FunctionProto:
    node = onnx.NodeProto(op_type="Constant", attribute=[onnx.AttributeProto(name="value", t=tensor)])
    return onnx.FunctionProto(name="f", domain="d", node=[node])


PLACES: dict[str, Callable[[onnx.ModelProto], None]] = {
    "initializer": lambda m: m.graph.initializer.append(external()),
    "sparse initializer": lambda m: m.graph.sparse_initializer.append(sparse(external())),
    "sparse indices": lambda m: m.graph.sparse_initializer.append(
        onnx.SparseTensorProto(indices=external(), dims=[4])
    ),
    "tensor attribute": with_attribute(t=external()),
    "tensors attribute": with_attribute(tensors=[external()]),
    "sparse attribute": with_attribute(sparse_tensor=sparse(external())),
    "sparse attributes": with_attribute(sparse_tensors=[sparse(external())]),
    "subgraph": with_attribute(g=graph_with(external())),
    "subgraphs": with_attribute(graphs=[graph_with(external())]),
    "subgraph of a subgraph": with_attribute(g=graph_in_graph(external())),
    "function": lambda m: m.functions.append(function_with(external())),
    "function default": lambda m: m.functions.append(
        onnx.FunctionProto(attribute_proto=[onnx.AttributeProto(name="a", t=external())])
    ),
    "training": lambda m: m.training_info.append(onnx.TrainingInfoProto(algorithm=graph_with(external()))),
}


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_refused_wherever_it_hides(place: str, tmp_path: Path) -> None:
    model = linear_model()
    check_self_contained(saved(model, tmp_path / "good.onnx"))
    PLACES[place](model)
    with pytest.raises(IntegrityError, match=r"bad\.onnx keeps weights in another file"):
        check_self_contained(saved(model, tmp_path / "bad.onnx"))


@pytest.mark.parametrize(
    "tail",
    [
        b"\x70\x01",  # data_location = 1
        b"\x70\x81\x80\x80\x80\x10",  # data_location = 2**32 + 1, read as 1
        b"\x6a\x00",  # an empty external_data entry
    ],
)
def test_either_sign_of_external_data_is_enough(tail: bytes, tmp_path: Path) -> None:
    tensor = TensorProto(name="t", data_type=1, dims=[0]).SerializeToString() + tail
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x0a\x3a" + bytes([len(graph)]) + graph)
    with pytest.raises(IntegrityError, match="external data"):
        check_self_contained(path)


def test_every_way_from_a_model_to_a_tensor_is_walked() -> None:
    def reaches_tensor(kind: Any, seen: frozenset[str] = frozenset()) -> bool:
        if kind.name == "TensorProto":
            return True
        inner = [f.message_type for f in kind.fields if f.message_type and kind.name not in seen]
        return any(reaches_tensor(k, seen | {kind.name}) for k in inner)

    pending, ways = [onnx.ModelProto.DESCRIPTOR], {}
    while pending:
        kind = pending.pop()
        fields = [f for f in kind.fields if f.message_type and kind.name != "TensorProto"]
        ways[kind.name] = {f.number: f.message_type.name for f in fields if reaches_tensor(f.message_type)}
        pending += [f.message_type for f in fields if f.number in ways[kind.name]]
        pending = [k for k in pending if k.name not in ways]
    assert ways == onnx_file._CHILDREN


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it is empty"),
        (b"not a model at all", "not an ONNX model"),
        (b"\x80\x04\x95garbage.", "not an ONNX model"),  # a pickle
        (b"\x08\x0a", "no IR version or no graph"),
        (b"\x3a\x00", "no IR version or no graph"),
        (b"\x08\x0a\x3b", "wire type 3"),  # a group
        (b"\x08\x0a\x3a\xff\xff\xff\xff\x0f", "reaches beyond"),
        (b"\x08" + b"\xff" * 11, "broken number"),
        (b"\x00\x00", "field number 0"),
        (MODELS[0][:-1], "reaches beyond"),
    ],
)
def test_what_is_no_model_is_refused(data: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=why) as error:
        check_self_contained(path)
    assert "\n" not in str(error.value)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(IntegrityError, match="missing or not a plain file"):
            check_self_contained(path)


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = saved(linear_model(), tmp_path / "m.onnx")
    size = path.stat().st_size
    check_self_contained(path, max_bytes=size)
    with pytest.raises(IntegrityError, match=f"at most {size - 1} bytes, but has {size}"):
        check_self_contained(path, max_bytes=size - 1)


def nested(depth: int) -> bytes:
    """A model whose graph holds a node with a graph with a node …"""
    graph = b""
    for _ in range(depth):
        for key in (b"\x32", b"\x2a", b"\x0a"):  # attribute.g, node.attribute, graph.node
            graph = key + _varint(len(graph)) + graph
    return b"\x08\x0a\x3a" + _varint(len(graph)) + graph


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_nesting_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(nested(20))
    check_self_contained(path)
    path.write_bytes(nested(2000))
    with pytest.raises(IntegrityError, match="nests deeper than 100"):
        check_self_contained(path)


def test_the_number_of_parts_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(quantized_model(), tmp_path / "m.onnx")
    monkeypatch.setattr(onnx_file, "MAX_FIELDS", 20)
    with pytest.raises(IntegrityError, match="more than 20 parts"):
        check_self_contained(path)


def accepted(path: Path) -> bool:
    try:
        check_self_contained(path)
    except IntegrityError:
        return False
    return True


def keeps_data_elsewhere(message: Any) -> bool:
    """The same question, asked of protobuf's own parser."""
    if isinstance(message, TensorProto) and (message.data_location or message.external_data):
        return True
    inner = (value for field, value in message.ListFields() if field.message_type)
    flat = (x for value in inner for x in ([value] if hasattr(value, "ListFields") else value))
    return any(keeps_data_elsewhere(x) for x in flat)


def parsed(data: bytes) -> onnx.ModelProto | None:
    try:
        return onnx.ModelProto.FromString(data)
    except Exception:
        return None


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_random_bytes_never_do_more_than_be_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    assert accepted(path) in (True, False)  # and nothing else is raised


@given(
    model=st.sampled_from(sorted(PLACES)),
    edits=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3), st.integers(0, 3)), max_size=3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
def test_what_is_accepted_keeps_nothing_elsewhere(
    tmp_path: Path, model: str, edits: list[tuple[int, bytes, int]]
) -> None:
    proto = linear_model()
    PLACES[model](proto)
    data = proto.SerializeToString()
    for at, put, cut in edits:
        data = data[:at] + put + data[at + cut :]
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    if accepted(path) and (found := parsed(data)) is not None:
        assert not keeps_data_elsewhere(found)


def test_loading_refuses_before_the_runtime_sees_the_file(tmp_path: Path) -> None:
    model = linear_model()
    model.graph.initializer.append(external())
    (tmp_path / "weights.bin").write_bytes(b"\0" * 8)
    with pytest.raises(IntegrityError, match="external data"):
        load(saved(model, tmp_path / "m.onnx"))
