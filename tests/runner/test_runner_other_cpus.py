"""The end of a run on other CPUs: what is asked there, what is said, and what is then served."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from pastille.elsewhere import check_isas
from pastille.errors import InferenceError, RecipeError
from pastille.recipe import Recipe, parse_recipe
from pastille.runner import other_cpus
from pastille.runner.other_cpus import differences, noted, portable, validated
from pastille.runtime.emulated import ARM_ROOT
from pastille.values import Conditions, Status, Validation, Verdict

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-x86_64-static") is None, reason="no QEMU here: apt-get install qemu-user-static"
)
PROGRESS: Any = SimpleNamespace(track=lambda items, **_: items)
HERE = Conditions(
    device="cpu", isa="avx512-vnni", cores=1, threads=1, runtime="ort", runtime_version="1", os="Linux"
)


def recipe(*isas: str, kind: str = "multiclass") -> Recipe:
    section: dict[str, Any] = {"kind": kind, "model": "m.py:f"}
    section |= {"labels": ["a", "b"]} if kind == "multiclass" else {}
    return parse_recipe(
        {
            "name": "r",
            "task": section,
            "data": {"source": "d.py:s"},
            "measure": {"isas": list(isas)},
            "plan": [{"quantize": {}}],
        }
    )


def task(*isas: str, n: int = 12, kind: str = "multiclass") -> Any:
    inputs = [np.full((16, 1, 1), 1.0 if i % 2 else 0.0, np.float32) for i in range(n)]
    return SimpleNamespace(
        recipe=recipe(*isas, kind=kind),
        splits=SimpleNamespace(
            test=SimpleNamespace(n=40), validation=SimpleNamespace(inputs=[{"input": x} for x in inputs])
        ),
        cases={"validation": SimpleNamespace(threshold=0.5)},
    )


def candidate(folder: Path, level: int) -> Any:
    """The second class where 16 products add up to more than three quarters of what bright inputs give."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18]>
        g (float[n,16,1,1] input) => (float[n,2] output)
        <float s = {{0.003921569}}, uint8 z = {{0}}, float[1] ws = {{0.01}}, int8[1] wz = {{0}},
         float ys = {{0.1}}, int64[2] flat = {{-1, 1}}, float bar = {{{0.16 * level * 1.5}}}> {{
          q = QuantizeLinear(input, s, z)
          x = DequantizeLinear(q, s, z)
          w = DequantizeLinear<axis=0>(wq, ws, wz)
          c = Conv(x, w)
          yq = QuantizeLinear(c, ys, z)
          y = DequantizeLinear(yq, ys, z)
          row = Reshape(y, flat)
          below = Sub(bar, row)
          output = Concat<axis=1>(below, row)
        }}"""
    )
    weights = np.full((1, 16, 1, 1), level, np.int8)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "wq"))
    file = folder / f"{level}.onnx"
    file.write_bytes(model.SerializeToString())
    profile = SimpleNamespace(latency=(SimpleNamespace(conditions=HERE),), precision="int8")
    return SimpleNamespace(artifact=SimpleNamespace(file=file), profile=profile, threshold=None)


def seen(isa: str, equal: int, cases: int = 100, **changes: Any) -> Validation:
    given = {"emulated": True, "identical": 0, "runtime_version": "1", **changes}
    return Validation(isa=isa, cases=cases, equal_decisions=equal, **given)


@needs_qemu
def test_what_saturates_there_is_found_and_what_does_not_is_not(tmp_path: Path) -> None:
    candidates: Any = {"int8": candidate(tmp_path, 127), "fp32": candidate(tmp_path, 64)}
    found, failed = validated(candidates, task("avx2", n=6), PROGRESS)
    assert failed == ()
    here, there = found["int8"]
    assert (here.isa, here.emulated, here.cases, here.equal_decisions) == ("avx512-vnni", False, 40, 40)
    assert (there.isa, there.emulated, there.cases, there.equal_decisions) == ("avx2", True, 6, 3)
    assert there.identical == 3, "where the inputs are zero"
    assert [v.identical for v in found["fp32"]] == [40, 6]
    said = noted(Verdict(status=Status.APPROVED, reason="passes", checks=(), split="test"), found, failed)
    sentence = "int8 decides otherwise on avx2: 3 of 6 validation cases"
    assert (said.status, said.reason, said.notes) == (Status.APPROVED, f"passes; {sentence}", (sentence,))
    assert portable("int8", "it is faster", found) == ("fp32", sentence)


@needs_qemu
def test_a_spent_budget_leaves_at_least_one_case(tmp_path: Path) -> None:
    found, failed = validated({"int8": candidate(tmp_path, 64)}, task("sse4"), PROGRESS, seconds=0.0)
    assert [v.cases for v in found["int8"]] == [40, 1]
    assert failed == ("int8 is not validated on sse4: 1 cases took 0 s",)


@needs_qemu
def test_values_that_decide_nothing_are_compared_in_steps(tmp_path: Path) -> None:
    """Saturated answers of a task without classes are far off, those to dark inputs are equal."""
    found, _ = validated(
        {"int8": candidate(tmp_path, 127)}, task("avx2", kind="regression", n=9), PROGRESS, cases=4
    )
    assert (found["int8"][1].cases, found["int8"][1].equal_decisions) == (4, 3), "rows 0, 2, 5 and 8"


def test_without_other_cpus_only_this_machine_is_named(tmp_path: Path) -> None:
    found, failed = validated({"int8": candidate(tmp_path, 64)}, task(), PROGRESS)
    assert [v.isa for v in found["int8"]] == ["avx512-vnni"]
    assert failed == ()
    assert portable("int8", "why", found) == ("int8", "why")


def test_a_cpu_that_fails_at_the_end_of_a_run_costs_the_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise InferenceError("isa avx2: killed by signal 9")

    monkeypatch.setattr(other_cpus, "replay_on", fails)
    found, failed = validated({"int8": candidate(tmp_path, 64)}, task("avx2"), PROGRESS)
    assert [v.isa for v in found["int8"]] == ["avx512-vnni"]
    assert failed == ("int8 is not validated on avx2: isa avx2: killed by signal 9",)
    assert portable("int8", "it is faster", found, failed) == ("fp32", failed[0])
    assert portable("fp32", "why", found, failed) == ("fp32", "why")
    said = noted(Verdict(status=Status.APPROVED, reason="passes", checks=(), split="test"), found, failed)
    assert said.notes == failed


@pytest.mark.parametrize(
    ("isa", "equal", "differs"),
    [
        ("avx2", 100, False),
        ("avx2", 99, True),
        ("sse4", 99, True),
        ("aarch64", 99, False),
        ("aarch64", 98, True),
        ("avx512-vnni", 0, False),
    ],
)
def test_x86_must_decide_all_alike_and_arm_99_of_100(isa: str, equal: int, differs: bool) -> None:
    found = {"int8": (seen(isa, equal),), "fp32": (seen(isa, 100),)}
    assert [name for name, _ in differences(found)] == ["int8"] * differs
    assert portable("int8", "why", found)[0] == ("fp32" if differs else "int8")
    assert portable("fp32", "why", found) == ("fp32", "why")


def test_fp32_stays_selected_whatever_it_does_elsewhere_and_it_is_said() -> None:
    found = {"fp32": (seen("avx2", 98),)}
    assert portable("fp32", "nothing was kept", found) == ("fp32", "nothing was kept")
    assert list(differences(found)) == [("fp32", "fp32 decides otherwise on avx2: 2 of 100 validation cases")]


def test_what_cannot_be_emulated_is_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_isas(recipe())
    monkeypatch.setenv("PATH", str(tmp_path))
    words = r"measure\.isas: isa avx2 needs QEMU's user mode: .*, or leave avx2 out"
    with pytest.raises(RecipeError, match=words) as refused:
        check_isas(recipe("avx2"))
    assert refused.value.key == "measure.isas"


@needs_qemu
def test_an_arm_root_that_is_absent_is_refused_before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ARM_ROOT, raising=False)
    with pytest.raises(RecipeError, match=r"measure\.isas: isa aarch64 needs an ARM root"):
        check_isas(recipe("avx2", "aarch64"))
