"""What may be asked, how it is read, and how a mistake is explained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pastille.errors import RecipeError
from pastille.recipe import DistillStep, Recipe, Train, check_files, parse_recipe, read_recipe, recipe_hash
from pastille.recipe.sections import SourceData

BASE: dict[str, Any] = {
    "name": "r",
    "task": {"kind": "multiclass", "model": "m.py:f", "labels": ["a", "b", "c"]},
    "data": {"source": "d.py:s"},
    "plan": [{"prune": {"sparsity": 0.5}}, {"quantize": {}}],
}


def asked(**changes: Any) -> dict[str, Any]:
    """The base recipe with dotted keys (``__`` for a dot) replaced."""
    recipe: Any = copy.deepcopy(BASE)
    for key, value in changes.items():
        place: Any = recipe
        *path, last = key.split("__")
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = value
    return recipe  # type: ignore[no-any-return]


def refused(**changes: Any) -> str:
    with pytest.raises(RecipeError) as error:
        parse_recipe(asked(**changes))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("25 MB", 25e6), ("25MB", 25e6), ("1 KiB", 1024), (1000, 1000), ("2e3", 2000), ("1.5 GB", 1.5e9)],
)
def test_sizes_carry_units(text: str | int, bytes_: float) -> None:
    assert parse_recipe(asked(requirements={"max_size": text})).requirements.max_size == bytes_


def test_shares_and_times_carry_units() -> None:
    requirements = {"max_drop": {"accuracy": "0.1 %"}, "max_latency": {"p95": "0.05 s", "p50": 3}}
    recipe = parse_recipe(asked(requirements=requirements))
    assert recipe.requirements.max_drop == {"accuracy": 0.001}
    assert dict(recipe.requirements.max_latency.limits()) == {0.95: 50.0, 0.5: 3.0}


@pytest.mark.parametrize(
    "text", ["1 percent", "", "%", "MB", "1 kg", "nan", "inf", "-1 %", "101 %", True, [1]]
)
def test_what_is_no_share_is_refused(text: object) -> None:
    assert "requirements.max_drop.accuracy" in refused(requirements={"max_drop": {"accuracy": text}})


@given(st.floats(0, 1e6, allow_subnormal=False))
def test_a_size_in_a_unit_is_that_many_bytes(value: float) -> None:
    recipe = asked(requirements={"max_size": f"{value:.6f} kB"})
    if round(value, 6) == 0:
        with pytest.raises(RecipeError):
            parse_recipe(recipe)
    else:
        assert parse_recipe(recipe).requirements.max_size == pytest.approx(round(value, 6) * 1e3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"requirments": {}}, "unknown key 'requirments'; did you mean 'requirements'?"),
        ({"task__lables": []}, "unknown key 'task.lables'; did you mean 'labels'?"),
        (
            {"plan__0": {"prune": {"sparsty": 0.5}}},
            "unknown key 'plan.0.prune.sparsty'; did you mean 'sparsity'",
        ),
        (
            {"plan__0": {"prune": {"sparsity": 0.5, "finetune": {"epochs": 1, "lr": 1}}}},
            "unknown key 'plan.0.prune.finetune.lr'; allowed: augment, batch_size",
        ),
        ({"data": {"reader": "npz", "pth": "x"}}, "data.path is missing"),
        ({"data": {"reader": "dicom"}}, "data.reader must be one of source, npz, image_folder, csv_images"),
        ({"plan": [{"shrink": {}}]}, "plan.0 must be one stage with its options, one of: prune, finetune"),
        ({"plan": [{"distill": {}}]}, "plan.0.distill.epochs is missing; plan.0.distill.student is missing"),
        ({"plan": [{"prune": {"sparsity": 0.5}, "quantize": {}}]}, "plan.0 must be one stage"),
        ({"plan": "auto"}, "plan must be a valid list, got 'auto'"),
        ({"requirements": {"risk": "lo"}}, "requirements.risk must be 'critical', 'high', 'medium' or 'low'"),
        ({"task__kind": "detection"}, "task.kind must be 'binary', 'multiclass', 'multilabel', 'regression'"),
        ({"task__kind": "custom", "task__labels": [], "task__positive": []}, "metric must name a callable"),
        ({"task__threshold": "youden"}, "threshold must be a number for a multiclass task"),
        ({"task__threshold": {"sensitivity": "95 %", "specificity": "90 %"}}, "exactly one of sensitivity"),
        ({"task__labels": ["a"]}, "labels must name every class"),
        ({"task__labels": ["a", "a"]}, "labels must differ from each other"),
        ({"task__positive": ["z"]}, "positive must be among the labels"),
        ({"task__positive": ["a", "b", "c"]}, "positive must leave at least one label out"),
        ({"task__kind": "regression"}, "labels and positive must be left out"),
        ({"measure": {"batch_sizes": [8, 1]}}, "batch_sizes must be ascending and begin with 1"),
        ({"name": "../up"}, "name"),
        ({"seed": -1}, "seed must be greater than or equal to 0"),
        (
            {"plan__0__prune__sparsity": 1.0},
            "plan.0.prune.sparsity must be a fraction above 0 and at most 0.95",
        ),
        (
            {"data": {"reader": "image_folder", "path": "x", "size": 8.5}},
            "data.size must be pixels or [height, width]",
        ),
        ({"data": {"reader": "image_folder", "path": None, "size": 8}}, "data.path must be a path, got None"),
        (
            {"data": {"reader": "npz", "path": "x", "split": {"validation": 0.6, "test": 0.5}}},
            "validation and test together must leave something to train on",
        ),
    ],
)
def test_mistakes_are_named_with_what_is_allowed(changes: dict[str, Any], said: str) -> None:
    assert said in refused(**changes)


AT_MOST = "must be a fraction above 0 and at most 0.95, e.g. 0.5, got"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({}, "must say how much: sparsity: 0.5, or budget: {max_latency: {p95: 5 ms}}"),
        ({"sparsity": 0}, f"sparsity {AT_MOST} 0"),
        ({"sparsity": -0.5}, f"sparsity {AT_MOST} -0.5"),
        ({"heads": "100 %"}, f"heads {AT_MOST} '100 %'"),
        ({"blocks": 0}, f"blocks {AT_MOST} 0"),
        ({"method": "unstructured", "sparsity": 1}, f"sparsity {AT_MOST} 1"),
        ({"sparsity": 0.5, "budget": {"max_macs": "3 M"}}, "takes sparsity or budget, not both"),
        ({"layers": {"a": 0.2}, "budget": {"max_macs": "3 M"}}, "takes layers only with sparsity"),
        ({"heads": 0.2, "budget": {"max_macs": "3 M"}}, "takes heads only with sparsity: a budget"),
        ({"blocks": 0.2, "budget": {"max_macs": "3 M"}}, "takes blocks only with sparsity: leave them"),
        ({"layers": {"a": 0, "b": 0.0}}, "takes layers at 0 only beside a sparsity"),
        ({"budget": {}}, "budget must name max_latency, max_size or max_macs"),
        (
            {"sparsity": 0.5, "round_to": "atuo"},
            "round_to must be auto, or a whole number from 1 on, e.g. 8, got 'atuo'",
        ),
        ({"sparsity": 0.5, "round_to": 0}, "round_to must be auto, or a whole number from 1 on"),
        ({"sparsity": 0.5, "round_to": True}, "e.g. 8, got True"),
        ({"sparsity": 0.5, "scan": "scan.json"}, "takes scan only with allocation: sensitivity"),
        ({"sparsity": 0.5, "distill": {}}, "takes distill only with finetune"),
        (
            {"sparsity": 0.5, "criterion": "l1", "fairness": "protect"},
            "takes fairness: protect only with finetune or with criterion: taylor, since l1 looks at no",
        ),
        ({"method": "both"}, "method must be one of structured, unstructured, 2:4, got 'both'"),
        ({"method": "2:4", "sparsity": 0.6}, "takes no sparsity with method 2:4"),
        ({"method": "unstructured"}, "must have sparsity, e.g. 0.8"),
    ],
)
def test_mistakes_in_how_to_prune_are_named_once(section: dict[str, Any], said: str) -> None:
    found = refused(plan=[{"prune": section}])
    assert found.startswith("plan.0.prune")
    assert said in found
    assert ";" not in found


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            {"sparsity": 0.5, "scope": "layer"},
            "'plan.0.prune.scope' with method structured; it belongs to unstructured or 2:4",
        ),
        (
            {"method": "2:4", "round_to": 8},
            "'plan.0.prune.round_to' with method unstructured or 2:4; it belongs to structured",
        ),
        ({"method": "unstructured", "sparsity": 0.5, "scop": "layer"}, "did you mean 'scope'?"),
        ({"sparsity": 0.5, "scoop": 1}, "'plan.0.prune.scoop'; allowed: allocation"),
    ],
)
def test_a_key_of_another_way_to_prune_is_said_to_belong_there(section: dict[str, Any], said: str) -> None:
    assert said in refused(plan=[{"prune": section}])


def test_a_quarter_of_the_original_training_is_spent_over_all_steps() -> None:
    (step,) = asked_plan({"sparsity": 0.5, "steps": 5, "original_epochs": 100})
    assert step.prune.tuning == Train(epochs=5)
    (step,) = asked_plan({"sparsity": 0.5, "steps": 5, "original_epochs": 4})
    assert step.prune.tuning == Train(epochs=1)
    (step,) = asked_plan({"sparsity": 0.5, "finetune": {"epochs": 2}, "original_epochs": 100})
    assert step.prune.tuning == Train(epochs=2)
    (step,) = asked_plan({"sparsity": 0.5})
    assert step.prune.tuning is None


def asked_plan(section: dict[str, Any]) -> Any:
    return parse_recipe(asked(plan=[{"prune": section}])).plan


def test_what_is_written_of_a_prune_is_read_back_the_same() -> None:
    sections: list[dict[str, Any]] = [
        {"sparsity": 0.5, "fairness": "protect", "round_to": "auto", "layers": {"stem.*": "10 %"}},
        {"budget": {"max_latency": {"p95": "5 ms"}, "max_size": "2 MB"}, "steps": 3},
        {"method": "2:4", "train": {"epochs": 3}},
        {"heads": 0.5, "layers": {"stem": 0}},
    ]
    for section in sections:
        recipe = parse_recipe(asked(plan=[{"prune": section}]))
        assert parse_recipe(recipe.model_dump(mode="json")) == recipe


DISTILL: dict[str, Any] = {"epochs": 2, "student": {"width": 0.5}}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"student": "sane"}, "student must be same, a student such as {width: 0.5}, or a list of students"),
        ({"student": {"widht": 0.5}}, "unknown key 'plan.0.distill.student.widht'; did you mean 'width'?"),
        ({"student": [{"width": 0.5}, {"dept": 1}]}, "student.1.dept'; did you mean 'depth'?"),
        ({"student": []}, "plan.0.distill.student must have at least one entry"),
        ({"student": 0.5}, "student must be same, a student such as {width: 0.5}, or a list of students"),
        ({"student": {}}, "student must be one of: {width: 0.5}, {depth: 0.5} or both"),
        ({"student": {"width": 0.5, "max_size": "1 MB"}}, "student must be one of"),
        ({"student": {"width": 0.5, "arguments": {"a": 1}}}, "takes arguments and weights only with model"),
        (
            {"temperature": 0},
            "temperature must be a number above 0 to 100, or {from: NUMBER, to: NUMBER}, got 0",
        ),
        ({"temperature": {"from": 8, "to": -1}}, "temperature must be a number above 0 to 100"),
        ({"alpha": 1.2}, "alpha must be a number from 0 to 1, or {from: NUMBER, to: NUMBER}, got 1.2"),
        ({"alpha": {"from": 0.9, "too": 0.1}}, "alpha must be a number from 0 to 1, or {from: NUMBER"),
        ({"hints": {"layers": 3}}, "hints.layers must be auto, or pairs of modules such as {layer1: layer2}"),
        ({"hints": {"los": "fitnets"}}, "unknown key 'plan.0.distill.hints.los'; did you mean 'loss'?"),
        ({"method": "rkd"}, "method must be 'kl', 'dkd' or 'dist', got 'rkd'"),
        ({"cache": "on"}, "cache must be 'auto' or 'off', got 'on'"),
        ({"cache": {"view": 3}}, "unknown key 'plan.0.distill.cache.view'; did you mean 'views'?"),
        ({"cache": 4}, "cache must be auto, off, or limits such as {max_size: 4 GB, views: 4}"),
        ({"teachers": []}, "plan.0.distill.teachers must have at least one entry"),
        (
            {"teachers": [{"weights": "x.pt"}]},
            "teachers.0 takes arguments and weights only with a model of its own, not baseline",
        ),
        ({"teachers": [{"modle": "before"}]}, "teachers.0.modle'; did you mean 'model'?"),
        ({"temprature": 4}, "unknown key 'plan.0.distill.temprature'; did you mean 'temperature'?"),
    ],
)
def test_mistakes_of_a_distillation_are_told_in_one_line(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        parse_recipe(asked(plan=[{"distill": {**DISTILL, **changed}}]))
    assert said in str(refusal.value)
    assert str(refusal.value).count("plan.0.distill") == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"schedule": "one_cycle", "warmup": 0.1}, "takes warmup only with another schedule"),
        ({"steps_at": [0.9]}, "takes steps_at only with schedule: step, not cosine"),
        ({"focal_gamma": 3}, "takes focal_gamma only with loss: focal, not cross_entropy"),
        ({"loss": "focal", "label_smoothing": 0.1}, "takes label_smoothing only with loss: cross_entropy"),
    ],
)
def test_what_a_training_would_not_look_at_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        parse_recipe(asked(plan=[{"finetune": {"epochs": 1, **changed}}]))
    assert f"plan.0.finetune {said}" in str(refusal.value)


def test_a_distillation_is_read_back_as_it_was_written() -> None:
    sections: list[dict[str, Any]] = [
        {"student": "same", "alpha": {"from": 0.9, "to": 0.5}, "temperature": 4},
        {"student": [{"depth": 0.5}, {"depth": 0.5}], "cache": {"views": 3, "max_size": "1 GB"}},
        {"student": {"max_latency": {"p95": "5 ms"}}, "cache": "off"},
        {"student": {"model": "timm:resnet18", "arguments": {"in_chans": 1}}, "schedule": "step"},
        {
            "student": {"width": 0.5},
            "hints": {"layers": {"layer1": "layer2"}},
            "teachers": [{"model": "before"}],
        },
    ]
    for section in sections:
        recipe = parse_recipe(asked(plan=[{"distill": {**DISTILL, **section}}]))
        assert parse_recipe(recipe.model_dump(mode="json")) == recipe


def test_off_needs_no_quotes(tmp_path: Path) -> None:
    """YAML 1.1 reads it as false."""
    recipe = yaml.safe_dump(asked(plan=[{"distill": DISTILL}]))
    (tmp_path / "r.yaml").write_text(recipe.replace("epochs: 2", "epochs: 2\n    cache: off"))
    (step,) = read_recipe(tmp_path / "r.yaml").plan
    assert isinstance(step, DistillStep)
    assert step.distill.cache == "off"


def test_a_distillation_comes_before_what_it_would_undo() -> None:
    prune: dict[str, Any] = {"prune": {"method": "unstructured", "sparsity": 0.5}}
    quantize: dict[str, Any] = {"quantize": {}}
    with pytest.raises(RecipeError, match="plan must quantize last, but 'distill' comes after it"):
        parse_recipe(asked(plan=[quantize, {"distill": DISTILL}]))
    with pytest.raises(
        RecipeError, match="plan must distill into another student before it prunes unstructured"
    ):
        parse_recipe(asked(plan=[prune, {"distill": DISTILL}]))
    parse_recipe(asked(plan=[prune, {"distill": {**DISTILL, "student": "same"}}, quantize]))
    parse_recipe(asked(plan=[{"distill": DISTILL}, prune, quantize]))


def test_files_of_students_and_teachers_that_are_not_there_are_named(tmp_path: Path) -> None:
    teachers = [{"model": "baseline"}, {"model": "package:large", "weights": "large.safetensors"}]
    one = {**DISTILL, "student": {"model": "small.py:build"}}
    for section, said in (
        (one, r"plan.0.distill.student.model: there is no file .*small.py"),
        (
            {**DISTILL, "student": [{"model": "small.py:build"}]},
            r"plan.0.distill.student.0.model: there is no",
        ),
        ({**DISTILL, "teachers": teachers}, r"plan.0.distill.teachers.1.weights: there is no file .*large"),
    ):
        recipe = parse_recipe(asked(task__model="package.module:build", plan=[{"distill": section}]))
        with pytest.raises(RecipeError, match=said):
            check_files(recipe.model_copy(update={"data": SourceData(source="package:splits")}), tmp_path)


def test_a_scan_that_is_not_there_is_named(tmp_path: Path) -> None:
    prune = {"sparsity": 0.5, "allocation": "sensitivity", "scan": "scan.json"}
    recipe = parse_recipe(asked(task__model="package.module:build", plan=[{"prune": prune}]))
    with pytest.raises(RecipeError, match=r"plan.0.prune.scan: there is no file .*scan.json"):
        check_files(recipe.model_copy(update={"data": SourceData(source="package:splits")}), tmp_path)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"percentile": 99}, "takes percentile only with calibration 'percentile', got calibration 'minmax'"),
        ({"percentile": 99.99, "calibration": "mse"}, "only with calibration 'percentile', got calibration"),
        ({"weight_bits": 7, "scheme": "arm"}, "takes no weight_bits but 8 with scheme 'arm', got 7"),
        (
            {"weight_bits": "auto", "scheme": "tensorrt"},
            "weight_bits but 8 with scheme 'tensorrt', got 'auto'",
        ),
        ({"recover": ["equalisation"]}, "recover must be auto, none, or a list of equalization, smoothquant"),
        ({"recover": "rounding"}, "got 'rounding'"),
        ({"keep_float": 3}, "keep_float must be a valid list, got 3"),
    ],
)
def test_quantization_refuses_what_it_would_not_heed(section: dict[str, Any], said: str) -> None:
    line = refused(plan=[{"quantize": section}])
    assert said in line
    assert ";" not in line or line.count("plan.0.quantize") == 1, "one problem is told once"


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"calibration": "percentile", "percentile": 99},
        {"scheme": "arm"},
        {"scheme": "tensorrt", "weight_bits": 8},
        {"scheme": "x86", "weight_bits": "auto"},
        {"recover": ["rounding", "bias_correction"]},
        {"recover": "none"},
        {"method": "auto", "calibration": "entropy"},
    ],
)
def test_a_section_that_was_written_reads_back(section: dict[str, Any]) -> None:
    recipe = parse_recipe(asked(plan=[{"quantize": section}]))
    again = parse_recipe(recipe.model_dump(mode="json"))
    assert (again, recipe_hash(again)) == (recipe, recipe_hash(recipe))


@pytest.mark.parametrize("method", ["ptq", "mixed", "auto", "dynamic", "int4"])
def test_one_layer_needs_no_list(method: str) -> None:
    step = parse_recipe(asked(plan=[{"quantize": {"method": method, "keep_float": "first"}}])).plan[0]
    assert step.quantize.keep_float == ["first"]  # type: ignore[union-attr]


def test_a_plan_quantizes_once() -> None:
    assert "plan must quantize once" in refused(plan=[{"quantize": {}}, {"quantize": {"method": "bf16"}}])


def test_zeros_are_set_after_channels_are_removed() -> None:
    channels = {"prune": {"sparsity": 0.5}}
    for zeros in ({"prune": {"method": "2:4"}}, {"prune": {"method": "unstructured", "sparsity": 0.8}}):
        parse_recipe(asked(plan=[channels, zeros, {"finetune": {"epochs": 1}}]))
        line = refused(plan=[zeros, {"finetune": {"epochs": 1}}, channels])
        assert f"plan must prune {zeros['prune']['method']} after structured" in line


@pytest.mark.parametrize("later", [{"prune": {"sparsity": 0.5}}, {"finetune": {"epochs": 1}}])
def test_quantization_is_last(later: dict[str, Any]) -> None:
    line = refused(plan=[{"quantize": {}}, later])
    assert "plan must quantize last" in line
    assert "void the ranges that quantization measured" in line


@pytest.mark.parametrize("recipe", [None, 3, [], "text"])
def test_a_recipe_is_a_mapping(recipe: object) -> None:
    with pytest.raises(RecipeError, match="must be a mapping"):
        parse_recipe(recipe)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(["name", "task", "data", "requirements", "plan", "measure", "seed", "output", "other"]),
)
def test_any_value_anywhere_is_read_or_refused_in_one_line(value: object, key: str) -> None:
    try:
        recipe = parse_recipe({**BASE, key: value})
    except RecipeError as error:
        assert str(error)
        assert "\n" not in str(error)
    else:
        assert isinstance(recipe, Recipe)


def test_what_was_read_reads_back() -> None:
    recipe = parse_recipe(asked(requirements={"risk": "low", "max_size": "1 MB"}))
    again = parse_recipe(recipe.model_dump(mode="json", exclude_none=True))
    assert again == recipe
    assert recipe_hash(again) == recipe_hash(recipe)


class TestFile:
    """Reading a recipe from disk."""

    def write(self, tmp_path: Path, text: str) -> Path:
        (tmp_path / "recipe.yaml").write_text(text)
        return tmp_path / "recipe.yaml"

    def test_overrides_replace_and_add(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, yaml.safe_dump(BASE))
        recipe = read_recipe(
            path, ["requirements.risk=low", "plan.0.prune.sparsity=0.3", "task.arguments={width: 8}"]
        )
        assert recipe.requirements.risk == "low"
        assert recipe.plan[0].prune.sparsity == 0.3  # type: ignore[union-attr]
        assert recipe.task.arguments == {"width": 8}

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("risk", "must be KEY=VALUE"),
            ("=1", "must be KEY=VALUE"),
            ("plan.7.prune.sparsity=0.3", "'7' must be an index below 2"),
            ("name.first=x", "nothing lies below"),
            ("data.source=[a, b", "--set data.source: not valid YAML"),
        ],
    )
    def test_malformed_overrides(self, tmp_path: Path, override: str, said: str) -> None:
        path = self.write(tmp_path, yaml.safe_dump(BASE))
        with pytest.raises(RecipeError, match=r".*") as error:
            read_recipe(path, [override])
        assert said in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("text", ["a: [", "\x00", "a: b: c", "!!python/object:os.system {}", "- 1"])
    def test_what_is_no_recipe(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(RecipeError) as error:
            read_recipe(self.write(tmp_path, text))
        assert "\n" not in str(error.value)

    def test_a_huge_file_is_not_parsed(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match="at most 1 MiB"):
            read_recipe(self.write(tmp_path, "#" * (1 << 20) + "\n"))

    def test_deep_nesting_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError):
            read_recipe(self.write(tmp_path, "[" * 20_000))

    def test_a_folder_is_no_recipe(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match="cannot read the recipe"):
            read_recipe(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task__model": "lost.py:f"}, "task.model: there is no file"),
        ({"task__weights": "lost.pt"}, "task.weights: there is no file"),
        ({"data": {"source": "lost.py:s"}}, "data.source: there is no file"),
        ({"data": {"reader": "npz", "path": "."}}, "is not a file"),
        ({"data": {"reader": "image_folder", "path": "m.py", "size": 8}}, "is not a folder"),
    ],
)
def test_files_are_looked_for_before_anything_slow(tmp_path: Path, changes: Any, said: str) -> None:
    for name in ("m.py", "d.py"):
        (tmp_path / name).write_text("")
    check_files(parse_recipe(BASE), tmp_path)
    check_files(parse_recipe(asked(task__model="torchvision:resnet18")), tmp_path)
    with pytest.raises(RecipeError, match=r".*") as error:
        check_files(parse_recipe(asked(**changes)), tmp_path)
    assert said in str(error.value)
