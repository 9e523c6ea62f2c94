"""What every conversion of a float ONNX file shares: checks, replacing nodes, writing, the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper, version_converter

from pastille.errors import InferenceError, PreconditionError, UsageError
from pastille.files import produce_atomic
from pastille.quantization.nodes import bodies, drop_unused_
from pastille.references import one_line
from pastille.runtime import check_self_contained, load

CONTRIB: Final = "com.microsoft"
MIN_OPSET: Final = 18
_MIN_IR: Final = 8  # that of opset 18
_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", CONTRIB})
_QUANTIZED: Final = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"),
        *("DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits"),
        *("GatherBlockQuantized", "QAttention", "QGemm"),
    }
)
_RANDOM: Final = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a conversion did to a file.

    Attributes:
        changed: Name of a node -> what computes it now.
        left: Name of a node that stayed float -> why.
        bytes_before: Size of the source.
        bytes_after: Size of the target.
        notes: What its user must know, a sentence each.
    """

    changed: Mapping[str, str]
    left: Mapping[str, str]
    bytes_before: int
    bytes_after: int
    notes: tuple[str, ...] = ()


def float_model(source: Path) -> Any:
    """Read a float ONNX file that may be rewritten.

    Args:
        source: Self-contained; an older opset is raised to 18.

    Returns:
        An ``onnx.ModelProto``, whose weights are no inputs.

    Raises:
        IntegrityError: It is missing, no ONNX model, or keeps weights in another file.
        PreconditionError: It is quantized already, uses operators of an unknown domain, or an opset that
            cannot be raised.
    """
    check_self_contained(source)
    model = onnx.load(source, load_external_data=False)
    _refuse_unfit(model, source.name)
    model = _raised(model, source.name)
    _fix_weights_(model)
    return model


def refuse_overwriting(source: Path, target: Path) -> None:
    """Keep the float file, which the verdict on the new one rests on.

    Raises:
        UsageError: ``target`` is ``source``.
    """
    if source.resolve() == target.resolve():
        raise UsageError(f"the new file must not replace the float file {source}; give another path")


def _refuse_unfit(model: Any, name: str) -> None:
    known = _DOMAINS | {function.domain for function in model.functions}
    for node in model.graph.node:
        if node.domain not in known:
            raise PreconditionError(
                f"{name} uses operator {node.op_type!r} of the unknown domain {node.domain!r}; "
                f"ONNX Runtime has the operators of ONNX and of {CONTRIB}"
            )
        if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear"):
            raise PreconditionError(
                f"{name} is quantized already: it holds {node.op_type}; start from the float file"
            )


def _raised(model: Any, name: str) -> Any:
    """A copy in opset 18; the model itself where it is new enough."""
    opset = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), MIN_OPSET)
    if opset >= MIN_OPSET:
        return model
    try:
        return version_converter.convert_version(model, MIN_OPSET)
    except Exception as error:  # the converter raises RuntimeError and its own kinds
        raise PreconditionError(
            f"{name} is of opset {opset} and cannot be raised to {MIN_OPSET}: {one_line(error)}; "
            f"export it anew with opset {MIN_OPSET} or later"
        ) from error


def _fix_weights_(model: Any) -> None:
    """Older exporters list weights among the inputs too, where a caller could give others."""
    weights = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in weights]
    if len(inputs) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = max(model.ir_version, _MIN_IR)  # before 4, weights had to be inputs


def first_output(node: Any) -> str:
    """The first output of a node that has a name; optional ones may have none."""
    return next(str(name) for name in node.output if name)


def node_name(node: Any) -> str:
    """The name of a node, or of its first output where it has none."""
    return str(node.name) or first_output(node)


def constant_values(model: Any, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The values of those tensors that depend on no input.

    Exporters leave weights behind a transposition, or stack a recurrent layer's from slices.

    Args:
        model: An ``onnx.ModelProto``.
        names: Tensors of its main graph.

    Returns:
        Tensor name -> value, for those of ``names`` that are constant.
    """
    graph = model.graph
    stored = {t.name: t for t in graph.initializer}
    fixed, nodes = set(stored) - {i.name for i in graph.input}, []
    for node in graph.node:
        if not bodies(node) and node.op_type not in _RANDOM and all(not n or n in fixed for n in node.input):
            fixed.update(node.output)
            nodes.append(node)
    wanted = set(names) & fixed
    direct = {name: numpy_helper.to_array(stored[name]) for name in wanted if name in stored}
    return direct | _computed(model, nodes, sorted(wanted - set(direct)))


def _computed(model: Any, nodes: Sequence[Any], names: Sequence[str]) -> dict[str, np.ndarray]:
    if not names:
        return {}
    import onnxruntime as ort

    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.input[:], part.graph.output[:]
    part.graph.node.extend(nodes)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    drop_unused_(part.graph)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(list(names), {}), strict=True))


@dataclass(frozen=True, kw_only=True)
class Part:
    """What some nodes of a graph become.

    Attributes:
        nodes: First output of a node -> what stands in its place, possibly nothing.
        tensors: Initializers that the new nodes read.
        changed: As in `Conversion`.
        left: As in `Conversion`.
    """

    nodes: Mapping[str, Sequence[Any]]
    tensors: Sequence[Any]
    changed: Mapping[str, str]
    left: Mapping[str, str]


def convert(
    model: Any, parts: Sequence[Part], source: Path, target: Path, *, what: str, notes: tuple[str, ...] = ()
) -> Conversion:
    """Put the parts in place, and write the file once ONNX Runtime has taken it.

    Args:
        model: From `float_model`; not modified.
        parts: Of different nodes.
        source: Where the model came from.
        target: Written whole or not at all.
        what: Can be converted, for the error.
        notes: For the report.

    Raises:
        PreconditionError: The parts change nothing, or ONNX Runtime has no kernel for something.
        OutputError: The file cannot be written.
        UsageError: ``target`` is ``source``.
    """
    refuse_overwriting(source, target)
    changed = {name: how for part in parts for name, how in part.changed.items()}
    left = {name: why for part in parts for name, why in part.left.items()}
    if not changed:
        why = "".join(f": {name}: {reason}" for name, reason in list(left.items())[:1])
        raise PreconditionError(f"{source.name} has no {what} to convert{why}{_static_hint(model)}")
    new = applied(model, parts)
    return Conversion(
        changed=changed,
        left=left,
        bytes_before=source.stat().st_size,
        bytes_after=write_loadable(new, target),
        notes=(*notes, *_stored_twice(model.graph, new.graph)),
    )


def _static_hint(model: Any) -> str:
    convolves = any(node.op_type == "Conv" for node in model.graph.node)
    return "; static quantization is what runs convolutions in 8 bits" if convolves else ""


def _stored_twice(before: Any, after: Any) -> tuple[str, ...]:
    """A note on matrices that were converted for some of their readers only."""
    old, new = (Counter(name for n in graph.node for name in n.input) for graph in (before, after))
    floats = [t for t in after.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2]
    return tuple(
        f"{t.name} is stored twice, in fewer bits and in float32, as {_reader(after, t.name)} reads it; "
        "if that looks up embeddings, embeddings=True writes them in 8 bits"
        for t in floats
        if 0 < new[t.name] < old[t.name]
    )


def _reader(graph: Any, name: str) -> str:
    return node_name(next(node for node in graph.node if name in node.input))


def applied(model: Any, parts: Sequence[Part]) -> Any:
    """A model with the parts in place.

    Args:
        model: An ``onnx.ModelProto``; not modified.
        parts: Of different nodes.

    Returns:
        A new ``onnx.ModelProto``.
    """
    nodes = {output: new for part in parts for output, new in part.nodes.items()}
    return replaced(model, nodes, [tensor for part in parts for tensor in part.tensors])


def replaced(model: Any, nodes: Mapping[str, Sequence[Any]], tensors: Iterable[Any]) -> Any:
    """A model with some nodes replaced by others, and nothing in it that is not used.

    Args:
        model: An ``onnx.ModelProto``; not modified.
        nodes: First output of a node -> what stands in its place, possibly nothing. Where something new
            has the name of something in the file, it is given another, in place.
        tensors: Initializers to add; of several with one name the first.

    Returns:
        A new ``onnx.ModelProto``.
    """
    added = list({t.name: t for t in reversed(list(tensors))}.values())
    _rename_clashing_(model.graph, nodes, added)
    new = onnx.ModelProto()
    new.CopyFrom(model)
    kept = [n for old in model.graph.node for n in nodes.get(next(filter(None, old.output), ""), [old])]
    del new.graph.node[:], new.graph.value_info[:]
    new.graph.node.extend(kept)
    new.graph.initializer.extend(added)
    drop_unused_(new.graph)
    if CONTRIB not in {o.domain for o in new.opset_import}:
        new.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))
    return new


def _rename_clashing_(graph: Any, nodes: Mapping[str, Sequence[Any]], tensors: Sequence[Any]) -> None:
    """ONNX Runtime takes one of two weights of a name without a word, and the answers are wrong."""
    going = [node for node in graph.node if first_output(node) in nodes]
    made = [node for new in nodes.values() for node in new]
    kept_names = {name for node in going for name in node.output}
    stored = {x.name for x in (*graph.initializer, *graph.input)}
    taken = stored | {name for node in graph.node for name in node.output}
    own = ({t.name for t in tensors} | {name for node in made for name in node.output}) - kept_names
    fresh = {name: _free(name, taken | own) for name in own & taken}
    for tensor in tensors:
        tensor.name = fresh.get(tensor.name, tensor.name)
    labels = {node.name for node in graph.node} - {node.name for node in going}
    for node in made:
        node.input[:] = [fresh.get(name, name) for name in node.input]
        node.output[:] = [fresh.get(name, name) for name in node.output]
        node.name = _free(node.name, labels)


def _free(name: str, taken: set[str]) -> str:
    return next(tried for i in range(len(taken) + 1) if (tried := name + "_" * i) not in taken)


def write_loadable(model: Any, target: Path) -> int:
    """Write a model once ONNX Runtime has taken it.

    Args:
        model: An ``onnx.ModelProto``.
        target: Written whole or not at all.

    Returns:
        Size in bytes.

    Raises:
        PreconditionError: ONNX Runtime has no kernel for something in it.
        OutputError: The file cannot be written.
    """
    data = model.SerializeToString(deterministic=True)

    def produce(draft: Path) -> None:
        draft.write_bytes(data)
        try:
            load(draft)
        except InferenceError as error:
            raise PreconditionError(
                f"{target.name} cannot be run by ONNX Runtime here: {one_line(error, 400)}"
            ) from error

    produce_atomic(target, produce)
    return len(data)
