"""To ONNX: one self-contained file, dynamic batch axis, the same bytes each time."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pastille.errors import ExportError
from pastille.export.graph import cleaned
from pastille.files import produce_atomic
from pastille.references import one_line
from pastille.task.forward import forward

if TYPE_CHECKING:
    from torch import Tensor, nn

OPSET = 20
OUTPUT = "output"


def export_onnx(model: nn.Module, batch: Mapping[str, Tensor], path: Path) -> None:
    """Export a module in eval mode.

    Inputs keep the names of ``batch``, the output is called ``output``. Batch norms are folded into
    the convolutions before them, and traces of this machine (paths, source lines) are left out.

    Args:
        model: Not modified.
        batch: At least two example inputs, ``{name: (N, ...)}``; a batch of one would be taken for
            a constant.
        path: Written whole or not at all.

    Raises:
        ExportError: The model cannot be exported; names the operator and the module.
        OutputError: The file cannot be written.

    References:
        ONNX opset 20; https://onnx.ai/onnx/operators/
    """
    program = _capture(model, batch)
    exported = _translate(program, batch)
    produce_atomic(path, lambda draft: draft.write_bytes(exported))


def _capture(model: nn.Module, batch: Mapping[str, Tensor]) -> torch.export.ExportedProgram:
    shapes = ({name: {0: torch.export.Dim.DYNAMIC} for name in batch},)
    with _quiet(), torch.no_grad():
        try:
            called = _Called(model).eval()
            return torch.export.export(called, (dict(batch),), dynamic_shapes=shapes, strict=False)
        except ExportError:
            raise
        except Exception as error:
            raise _capture_error(error) from error


class _Called(torch.nn.Module):
    """A copy of the model, called as everywhere else: whatever its signature, and its first output only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        out: object = forward(self.model, batch)
        if not isinstance(out, torch.Tensor):
            raise ExportError(
                "the model cannot be exported: it must return a tensor, or a tuple whose first element is "
                f"one, but returns {type(out).__name__}; return the tensor that is to be judged",
                operator="output",
            )
        return out


def _capture_error(error: Exception) -> ExportError:
    fixed = re.search(r"\['(\w+)'\]\.size\(\)\[0\].*specialized it to be a constant \((\d+)\)", str(error))
    if fixed:
        return ExportError(
            f"the model cannot be exported: it fixes the batch size of input {fixed[1]!r} to {fixed[2]}; "
            "use x.shape[0] or -1 instead of a number where it reshapes",
            operator="batch axis",
        )
    module = _module_at(error) or "the model itself"
    operator, reason = _blame(error)
    return ExportError(
        f"the model cannot be exported: operator {operator} in module {module}: {reason}",
        operator=operator,
        module_name=module,
    )


def _module_at(error: Exception) -> str:
    """Name of the innermost module that was being called, "" where it is the model itself."""
    callers = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    called = [c.model for c in callers if isinstance(c, _Called) and hasattr(c, "model")]
    names = {id(m): name for model in called for name, m in model.named_modules()}
    return next((names[id(c)] for c in reversed(callers) if names.get(id(c))), "")


_CONTROL_FLOW = (
    "a Python branch or loop depends on values in a tensor, which a file cannot hold; "
    "use torch.where or torch.cond"
)


def _blame(error: Exception) -> tuple[str, str]:
    text = str(error)
    line = _users_line(error)
    if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__:
        return line, _CONTROL_FLOW
    found = re.search(r"\b[a-z_]\w*::\w+(?:\.\w+)?", text)
    return found[0] if found else line, one_line(error, 160)


_FORWARD = Path(forward.__code__.co_filename)


def _users_line(error: Exception) -> str:
    """The user's own source line on which it happened."""
    frames = traceback.extract_tb(error.__traceback__)
    others = (Path(torch.__file__).parent, Path(__file__).parent, _FORWARD.parent)
    own = [f for f in frames if not any(Path(f.filename).is_relative_to(folder) for folder in others)]
    return f"`{own[-1].line}` ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else "(unknown)"


def _translate(program: torch.export.ExportedProgram, batch: Mapping[str, Tensor]) -> bytes:
    with _quiet(), torch.no_grad():
        try:
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(batch),
                output_names=[OUTPUT],
                external_data=False,
                verbose=False,
            )
        except Exception as error:
            raise _translation_error(error, program) from error
    assert exported is not None
    model = cleaned(exported.model_proto, inputs=list(batch), output=OUTPUT)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _translation_error(error: Exception, program: torch.export.ExportedProgram) -> ExportError:
    text = _whole_message(error)
    found = re.search(r"No (?:ONNX function|decompositions?)[^']*'?\"?(?:<OpOverload\(op=')?([\w:.]+)", text)
    found = found or re.search(r"OpOverload\(op='([\w.:]+)'", text)
    if found is None:
        return ExportError(
            f"the model cannot be exported to ONNX: {one_line(_root(error), 200)}; replace that operation "
            "by standard operators"
        )
    operator = found[1]
    module = next((_module_of(n) for n in program.graph.nodes if _is_operator(n, operator)), "(unknown)")
    return ExportError(
        f"the model cannot be exported: operator {operator} in module {module} has no ONNX form; "
        "replace it by standard operators",
        operator=operator,
        module_name=module,
    )


def _whole_message(error: BaseException | None) -> str:
    parts = []
    while error is not None:
        parts.append(str(error))
        error = error.__cause__
    return "\n".join(parts)


def _root(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _root(error.__cause__)


def _is_operator(node: Any, operator: str) -> bool:
    return node.op == "call_function" and str(node.target).replace("::", ".").startswith(
        operator.replace("::", ".")
    )


def _module_of(node: Any) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    names = [str(entry[0]).removeprefix("model").removeprefix(".") for entry in stack]
    return next((name for name in reversed(names) if name), "the model itself")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own progress, dumps, logs and warnings are not our user's business."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    unheard = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(unheard),
            contextlib.redirect_stderr(unheard),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def torch_answers(model: nn.Module, batch: Mapping[str, Tensor]) -> Any:
    """What the module itself answers, ``(N, ...)`` float32."""
    with torch.inference_mode():
        return forward(model, batch).float().numpy()
