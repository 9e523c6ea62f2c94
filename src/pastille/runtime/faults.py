"""What ONNX Runtime says of a fault, without its own source lines: what a user can act on."""

from __future__ import annotations

import re
from typing import Final

_LONGEST: Final = 300
_NESTED: Final = r"\([^()]*(?:\([^()]*\)[^()]*)*\)"  # brackets, and brackets in them
_NOISE: Final = (
    re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : "),
    re.compile(r"^Load model from .*? failed: ?"),
    # /path/file.cc:12 type name(arguments) const [with T = float]
    re.compile(rf"\S*/\S+\.(?:h|hpp|cc|cpp):\d+ [^()]*{_NESTED}(?: const)?(?: \[with [^]]*\])? ?"),
    re.compile(r"\b\w+\.(?:h|hpp|cc|cpp):\d+ [\w:~]+ "),  # file.h:12 name
    re.compile(r"^This is an invalid model\. "),
)
_NODE: Final = re.compile(r'In Node, \("([^"]*)", (\w+),.*?\) , Error (.*)')
_CALL: Final = re.compile(r"^Non-zero status code .*? running (\w+) node\. Name:'(.*?)' Status Message: ")
_NEWER: Final = re.compile(r"Opset (\d+) is under development.* domain (\S+) is till opset (\d+)")


def reason(error: Exception) -> str:
    """An error of ONNX Runtime on one line, at most 300 characters: no paths, no C++.

    Args:
        error: As it was raised.

    Example:
        >>> text = "[ONNXRuntimeError] : 1 : FAIL : /src/core/model.cc:256 ort::Model::Model(int&&, bool) "
        >>> reason(RuntimeError(text + "Unsupported model IR version: 99, max supported IR version: 13"))
        'Unsupported model IR version: 99, max supported IR version: 13'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    for noise in _NOISE:
        text = noise.sub("", text)
    if newer := _NEWER.search(text):
        text = f"opset {newer[1]} of {newer[2]} is newer than {newer[3]}, the last that it knows"
    text = _CALL.sub(r"\1 '\2': ", _NODE.sub(r"\2 '\1': \3", text))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
