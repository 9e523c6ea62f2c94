"""The profile that the runtime wrote is data from outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pastille.runtime.profiling import Event, ProfileError, read_calls, typical_times


def node(name: str, op: str = "Relu", ts: float = 0, dur: float = 1, **args: Any) -> dict[str, Any]:
    given = {"op_name": op, "output_type_shape": [{"float": [1, 2]}]} | args
    return {"cat": "Node", "ts": ts, "dur": dur, "name": f"{name}_kernel_time", "args": given}


RUN = {"cat": "Session", "name": "model_run", "ts": 0, "dur": 9, "args": {}}


def written(path: Path, *events: Any) -> Path:
    path.write_text("[\n" + ",\n".join(json.dumps(e) for e in events) + "\n]\n")
    return path


def test_events_are_grouped_by_call(tmp_path: Path) -> None:
    path = written(tmp_path / "p", node("a"), node("b"), RUN, node("a"), node("b"), RUN, node("left over"))
    calls = read_calls(path)
    assert [[event.name for event in call] for call in calls] == [["a", "b"], ["a", "b"]]
    assert calls[0][0].outputs == (("float", (1, 2)),)


def test_what_ran_inside_belongs_to_what_it_ran_in(tmp_path: Path) -> None:
    inner = [node("i", ts=12, dur=3), node("j", ts=15, dur=3)]
    path = written(tmp_path / "p", node("a", ts=5, dur=4), *inner, node("if", "If", ts=10, dur=9), RUN)
    ((first, second),) = read_calls(path)
    assert (first.name, second.name, second.took) == ("a", "if", 9)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[[[[" * 50_000,
        "7",
        "9" * 5000,
        json.dumps({"cat": "Node", "name": "a_kernel_time"}),
        json.dumps(node("a", dur=-1)),
        json.dumps(node("a", dur=1e300)),
        json.dumps(node("a", dur=float("nan"))),
        json.dumps(node("a", dur=float("inf"))),
        json.dumps(node("a") | {"dur": "1"}),
        json.dumps(node("a") | {"dur": True}),
        json.dumps(node("a") | {"ts": None}),
        json.dumps(node("a", output_type_shape={})),
        json.dumps(node("a", output_type_shape=[7])),
        json.dumps(node("a", output_type_shape=[{"float": 7}])),
        json.dumps(node("a", output_type_shape=[{"float": [-1]}])),
        json.dumps(node("a", output_type_shape=[{"float": [1 << 50]}])),
        json.dumps(node("a", output_type_shape=[{"float": [1] * 65}])),
        json.dumps(node("a", output_type_shape=[{"float": [1], "int8": [1]}])),
    ],
)
def test_what_the_runtime_does_not_write_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_text(f"[\n{text},\n{json.dumps(RUN)}\n]")
    with pytest.raises(ProfileError):
        read_calls(path)


def test_a_profile_too_large_or_missing_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "p", node("a"), RUN)
    with pytest.raises(ProfileError, match="larger than 10 bytes"):
        read_calls(path, max_bytes=10)
    with pytest.raises(ProfileError, match="cannot be read"):
        read_calls(tmp_path / "nowhere")
    path.write_text("[" + " " * (3 << 20))
    assert read_calls(path) == []


def test_typical_times_are_those_of_the_middle_half() -> None:
    rng = np.random.default_rng(0)
    took = rng.integers(1, 9, (20, 3)).astype(float)
    took[4] = 5000.0
    calls = [[Event("Relu", "", 0.0, t, ()) for t in row] for row in took]
    ordered = np.sort(took, axis=0)[5:15]
    np.testing.assert_allclose(typical_times(calls), ordered.mean(axis=0))
