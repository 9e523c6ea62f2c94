"""ONNX Runtime on the CPU: the one file that imports it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final, final

import numpy as np

from pastille.errors import InferenceError
from pastille.runtime.base import UNKNOWN_DIM, Operators, Session
from pastille.runtime.element_types import element_types, precision
from pastille.runtime.faults import reason
from pastille.runtime.onnx_file import check_self_contained
from pastille.runtime.onnx_graph import Graph, count_nodes, read_graph
from pastille.values import TensorSpec

_FATAL: Final = 4  # log severity: what fails is raised here, and need not be printed as well

_DTYPES: Final = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}  # the others read tensor(NAME) with numpy's name


@final
class Stop:
    """Ends one call of a session from another thread."""

    __slots__ = ("options",)

    def __init__(self) -> None:
        self.options = _onnxruntime().RunOptions()

    def set(self) -> None:
        """Make the call fail at its next operator; one operator that hangs is not reached."""
        self.options.terminate = True


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

    def __call__(
        self, inputs: Mapping[str, np.ndarray], *, stop: Stop | None = None
    ) -> dict[str, np.ndarray]:
        """Answer one batch, unless it is stopped; see `Session`."""
        try:
            answers = self.handle.run(None, inputs, stop and stop.options)
        except Exception as error:  # ONNX Runtime's errors share no other base
            raise InferenceError(f"{self.file} cannot run: {reason(error)}") from error
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


def load(path: Path, *, threads: int = 1, lean: bool = False) -> OnnxRuntimeSession:
    """Make an ONNX file ready to be called on the CPU.

    Threads do not spin while they wait: a spinning one steals the core from whatever else runs there.

    Args:
        path: The file; see `check_self_contained` for what is refused.
        threads: That one call may use. ONNX Runtime sees neither affinity nor a container's limit.
        lean: Give memory back after each call; the runtime's own arena keeps what its largest call took.

    Raises:
        IntegrityError: It is missing, not an ONNX model, or keeps weights in another file.
        InferenceError: ONNX Runtime does not take it.
        ValueError: ``threads`` is below 1.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    check_self_contained(path)
    options = _options(threads)
    options.enable_cpu_mem_arena = not lean
    handle = _start(path, options)
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
        raise InferenceError(f"{path.name} cannot be loaded: {reason(error)}") from error


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
    """
    check_self_contained(path)
    with tempfile.TemporaryDirectory(prefix="pastille-") as folder:
        options, optimised = _writing(Path(folder), threads=1)
        _start(path, options)
        return _sorted_by_type(read_graph(optimised))


def _writing(folder: Path, *, threads: int) -> tuple[Any, Path]:
    """Options with which the optimised graph is written, and the file that it is written to."""
    options, optimised = _options(threads), folder / "optimised.onnx"
    options.optimized_model_filepath = str(optimised)
    return options, optimised


def _sorted_by_type(graph: Graph) -> Operators:
    counts: dict[str, Counter[str]] = {"int8": Counter(), "float": Counter(), "conversion": Counter()}
    types = element_types(graph)
    for node in graph.nodes:
        counts.get(precision(node, types), Counter[str]())[node.op] += 1
    listed = {kind: dict(sorted(found.items())) for kind, found in counts.items()}
    return Operators(int8=listed["int8"], floating=listed["float"], conversions=listed["conversion"])


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A file that ran under the runtime's own profiler."""

    optimised: Path  # what was executed
    profile: Path | None  # what the profiler wrote; None where no time was taken
    calls: int


def watch(
    path: Path,
    folder: Path,
    batch: Mapping[str, np.ndarray],
    *,
    threads: int,
    calls: int,
    events: int,
    budget_s: float,
) -> Watched:
    """Run a file with the profiler on, and write what was executed and what the profiler saw.

    Args:
        path: The ONNX file.
        folder: That both files are written to; private to this call.
        batch: ``{name: (N, ...)}``, asked again and again.
        threads: That one call may use.
        calls: To make at most.
        events: That the profiler may see at most: a graph with many operators gets fewer calls, and none
            where even one would be too much.
        budget_s: Seconds after which no further call is made.

    Raises:
        IntegrityError: The file is missing, not an ONNX model, or keeps weights in another file.
        InferenceError: ONNX Runtime does not take it, or cannot run it.
    """
    check_self_contained(path)
    options, optimised = _writing(folder, threads=threads)
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    handle = _start(path, options)
    permitted, made, started = min(calls, events // max(1, count_nodes(optimised))), 0, perf_counter()
    try:
        while made < permitted and (not made or perf_counter() - started < budget_s):
            handle.run(None, batch)
            made += 1
    except Exception as error:  # ONNX Runtime's errors share no other base
        raise InferenceError(f"{path.name} cannot run: {reason(error)}") from error
    finally:
        written = Path(handle.end_profiling())
    return Watched(optimised=optimised, profile=written if made else None, calls=made)
