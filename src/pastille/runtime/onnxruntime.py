"""ONNX Runtime on the CPU: the one file that imports it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from pastille.errors import InferenceError, UsageError
from pastille.runtime.base import UNKNOWN_DIM, Operators, Session
from pastille.runtime.onnx_file import check_self_contained
from pastille.values import TensorSpec

_FATAL: Final = 4  # log severity: what fails is raised here, and need not be printed as well

_DTYPES: Final = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}  # the others read tensor(NAME) with numpy's name

_CONVERSIONS: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_INT8_KERNELS: Final = frozenset(
    {
        "ConvInteger",
        "ConvIntegerToFloat",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QAttention",
        "QGemm",
        "QMoE",
    }
)  # and every QLinear*
_FLOAT_RESULTS: Final = frozenset(
    {
        "ConvIntegerToFloat",
        "DequantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat",
        "QAttention",
        "QMoE",
    }
)
_INDEX_RESULTS: Final = frozenset({"ArgMax", "ArgMin", "NonZero", "Shape", "Size"})


@final
@dataclass(frozen=True, kw_only=True)
class OnnxRuntimeSession:
    """A `Session` of ONNX Runtime."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    fixed_batch: int | None
    threads: int
    handle: Any  # onnxruntime.InferenceSession

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer one batch; see `Session`."""
        try:
            answers = self.handle.run(None, inputs)
        except Exception as error:  # ONNX Runtime's errors share no other base
            raise InferenceError(f"{self.file} cannot run: {_one_line(error)}") from error
        return {spec.name: answer for spec, answer in zip(self.outputs, answers, strict=True)}


@final
@dataclass(frozen=True)
class OnnxRuntime:
    """A `Runtime`: ONNX Runtime's CPU kernels."""

    name: str = "onnxruntime"

    @property
    def version(self) -> str:
        """Version of the installed ONNX Runtime."""
        return str(_onnxruntime().__version__)

    def load(self, path: Path, *, threads: int) -> Session:
        """Make an ONNX file ready to be called; see `load`."""
        return load(path, threads=threads)


ONNXRUNTIME: Final = OnnxRuntime()


def load(path: Path, *, threads: int = 1) -> Session:
    """Make an ONNX file ready to be called on the CPU.

    Threads do not spin while they wait: a spinning one steals the core from whatever else runs there.

    Args:
        path: The file; see `check_self_contained` for what is refused.
        threads: That one call may use. ONNX Runtime sees neither affinity nor a container's limit.

    Raises:
        IntegrityError: It is missing, not an ONNX model, or keeps weights in another file.
        InferenceError: ONNX Runtime does not take it.
        ValueError: ``threads`` is below 1.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    check_self_contained(path)
    handle = _start(path, _options(threads))
    inputs, outputs = handle.get_inputs(), handle.get_outputs()
    return OnnxRuntimeSession(
        file=path.name,
        inputs=tuple(_spec(node) for node in inputs),
        outputs=tuple(_spec(node) for node in outputs),
        fixed_batch=next((n.shape[0] for n in inputs if n.shape and isinstance(n.shape[0], int)), None),
        threads=threads,
        handle=handle,
    )


def _onnxruntime() -> Any:
    import onnxruntime  # 0.1 s: only when a file is run

    return onnxruntime


def _options(threads: int) -> Any:
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # What was checked is an ONNX file: never let the bytes be taken for the runtime's own format.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def _start(path: Path, options: Any) -> Any:
    try:
        return _onnxruntime().InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no other base
        raise InferenceError(f"{path.name} cannot be loaded: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:299]}…"


def _spec(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else UNKNOWN_DIM for size in node.shape[1:])
    dtype = _DTYPES.get(node.type) or node.type.removeprefix("tensor(").removesuffix(")")
    return TensorSpec(name=node.name, shape=shape, dtype=dtype)


def optimized_operators(path: Path) -> Operators:
    """What ONNX Runtime executes of a file on this machine, once it has optimised the graph.

    A quantized file says what could run in 8 bits; whether it does is decided by the runtime's fusions.
    The optimised graph is written to a temporary folder and read back. Operators that only move data,
    such as MaxPool or Reshape, count by the type of what they move; arithmetic on shapes is left out.

    Args:
        path: The ONNX file.

    Raises:
        IntegrityError: It is missing, not an ONNX model, or keeps weights in another file.
        InferenceError: ONNX Runtime does not take it.
        UsageError: The `onnx` package, which reads the optimised graph, is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise UsageError(
            "listing a file's operators needs the onnx package: pip install 'pastille[compress]'"
        ) from None
    check_self_contained(path)
    with tempfile.TemporaryDirectory(prefix="pastille-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        options = _options(threads=1)
        options.optimized_model_filepath = str(optimised)
        _start(path, options)
        return _sorted_by_type(onnx.load(optimised).graph, onnx.TensorProto)


def _sorted_by_type(graph: Any, types: Any) -> Operators:
    kinds = {"int8": Counter[str](), "floating": Counter[str](), "conversions": Counter[str]()}
    known = {tensor.name: tensor.data_type for tensor in graph.initializer}
    known |= {value.name: value.type.tensor_type.elem_type for value in graph.input}
    for node in graph.node:  # in topological order
        data = node.input[1:] if node.op_type == "Where" else node.input  # Where's first is its condition
        first = known.get(data[0]) if data else None
        result = _result_type(node, first, types)
        known.update(dict.fromkeys(node.output, result))
        kind = _kind(node.op_type, first, result, types)
        if kind:
            kinds[kind][node.op_type] += 1
    return Operators(**{kind: dict(sorted(counts.items())) for kind, counts in kinds.items()})


def _kind(op: str, first: int | None, result: int | None, types: Any) -> str | None:
    if op in _CONVERSIONS:
        return "conversions"
    if _is_int8_kernel(op) or first in {types.INT8, types.UINT8}:
        return "int8"
    return "floating" if result in {types.FLOAT, types.FLOAT16, types.DOUBLE, types.BFLOAT16} else None


def _is_int8_kernel(op: str) -> bool:
    return op.startswith("QLinear") or op in _INT8_KERNELS


def _result_type(node: Any, first: int | None, types: Any) -> int | None:
    """Element type of a node's outputs: most give what they are given."""
    op = node.op_type
    if op == "Cast":
        return next((int(a.i) for a in node.attribute if a.name == "to"), None)
    if op in _INDEX_RESULTS:
        return int(types.INT64)
    if op in _FLOAT_RESULTS or (op == "QGemm" and len(node.input) < 9):  # QGemm without an output scale
        return int(types.FLOAT)
    if op in _CONVERSIONS or _is_int8_kernel(op):
        return int(types.INT32 if op.endswith("Integer") else types.UINT8)
    return first
