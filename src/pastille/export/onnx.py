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

from pastille.data.split import INPUT
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
    model = copy.deepcopy(model).eval()
    axis = {0: torch.export.Dim.DYNAMIC}
    bare = list(batch) == [INPUT]
    arguments = (batch[INPUT],) if bare else ()
    named = {} if bare else dict(batch)
    shapes = (axis,) if bare else dict.fromkeys(batch, axis)
    with entered_modules(model) as inside, _quiet(), torch.no_grad():
        try:
            program = torch.export.export(model, arguments, named, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise _capture_error(error, inside) from error
    _check_batch_is_free(program, batch)
    return program


def _check_batch_is_free(program: torch.export.ExportedProgram, batch: Mapping[str, Tensor]) -> None:
    names = program.graph_signature.user_inputs
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names and isinstance(node.meta["val"].shape[0], int):
            raise ExportError(
                f"the model cannot be exported: it fixes the batch size to {node.meta['val'].shape[0]} "
                f"(input {node.name!r} of {', '.join(batch)}); use x.shape[0] or -1 instead of a number "
                "where it reshapes",
                operator="batch axis",
            )


@contextlib.contextmanager
def entered_modules(model: nn.Module) -> Iterator[list[str]]:
    """Follow which modules are being called: after an exception, where it was raised.

    Yields:
        Names of the modules entered and not yet left, outermost first.
    """
    inside: list[str] = []
    handles = []
    for name, module in model.named_modules():
        # name=name binds it now; a late binding would give every hook the last name.
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: inside.append(name)))
        handles.append(module.register_forward_hook(lambda *_: (inside.pop(), None)[1]))
    try:
        yield inside
    finally:
        for handle in handles:
            handle.remove()


def _capture_error(error: Exception, inside: list[str]) -> ExportError:
    module = next((name for name in reversed(inside) if name), "") or "the model itself"
    operator, reason = _blame(error)
    return ExportError(
        f"the model cannot be exported: operator {operator} in module {module}: {reason}",
        operator=operator,
        module_name=module,
    )


_CONTROL_FLOW = (
    "a Python branch or loop depends on values in a tensor, which a file cannot hold; "
    "use torch.where or torch.cond"
)


def _blame(error: Exception) -> tuple[str, str]:
    text = str(error)
    line = _users_line(error)
    if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__:
        return line, _CONTROL_FLOW
    found = re.search(r"\b((?:aten|torchvision|prims|[a-z_]+)(?:::|\.)[a-z_0-9]+(?:\.[a-zA-Z_]+)?)\b", text)
    named = found[1] if found and "::" in found[1] else line
    return named, one_line(error, 160)


def _users_line(error: Exception) -> str:
    """The user's own source line on which it happened."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/torch/" not in f.filename and "/pastille/export/" not in f.filename]
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
    operator = found[1] if found else "(unknown)"
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


def _is_operator(node: Any, operator: str) -> bool:
    return node.op == "call_function" and str(node.target).replace("::", ".").startswith(
        operator.replace("::", ".")
    )


def _module_of(node: Any) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    names = [str(entry[0]) for entry in stack if entry[0]]
    return names[-1] if names else "the model itself"


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
