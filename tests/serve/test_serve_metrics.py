"""A scrape is read back by the library's own parser, and what is deployed asks for nothing that it lacks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from serving_events import answered, compared
from serving_watched import Watching, status, watching

from pastille.serve.values import Dropped, Fallback, Faulted, Label, Turned, VariantStatus

DEPLOY = Path(__file__).parents[2] / "deploy"
Samples = dict[str, list[tuple[dict[str, str], float]]]


def busy() -> Watching:
    """A server to which everything has happened at least once."""
    seen = watching(mode="ab", comparison={"share": 0.5})
    fallback = Fallback(preferred="int8", why="non_finite", detail="int8 gave NaN")
    for k in range(60):
        seen.monitor.answered(answered(request_id=str(k), arm="ab"[k % 2], subject="s", total_s=0.004))
    seen.monitor.answered(
        answered(request_id="f", variant="fp32", fallback=fallback, queue_s=0.3, total_s=0.7)
    )
    seen.monitor.turned(Turned(cause="rate", status=429, route="infer", at=0.0))
    seen.monitor.turned(Turned(cause="overload", status=503, route="predict", at=0.0))
    seen.observe(compared([True, False, False]))
    seen.observe(Faulted(variant="int8", why="exception", detail="x", at=0.0))
    seen.observe(Dropped(at=0.0))
    seen.monitor.feedback(Label(request_id="1", label="glioma", groups={"sex": "female"}))
    return seen


def scrape(seen: Watching, **changes: Any) -> Samples:
    found: Samples = {}
    text = seen.monitor.metrics([status(**changes)]).decode()
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        assert family.type != "unknown", family.name
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    fitting = [v for found, v in samples[name] if labels.items() <= found.items()]
    assert len(fitting) == 1, (name, labels, samples.get(name))
    return fitting[0]


def test_a_scrape_says_what_happened() -> None:
    found = scrape(busy(), in_flight=3, queued=1, cache_hits=5, cache_misses=6, cache_bytes=7, degraded=True)
    assert value(found, "pastille_requests_total", route="infer", status="200") == 61
    assert value(found, "pastille_requests_total", route="infer", status="429") == 1
    assert value(found, "pastille_refusals_total", cause="overload") == 1
    assert value(found, "pastille_request_seconds_count", variant="int8") == 60
    assert value(found, "pastille_request_seconds_bucket", variant="int8", le="0.005") == 60
    assert value(found, "pastille_request_seconds_bucket", variant="fp32", le="0.5") == 0
    assert value(found, "pastille_request_seconds_sum", variant="fp32") == pytest.approx(0.7)
    assert value(found, "pastille_compute_seconds_count", variant="int8") == 60
    assert value(found, "pastille_queue_seconds_bucket", le="0.25") == 60
    assert value(found, "pastille_in_flight") == 3
    assert value(found, "pastille_queued") == 1
    assert value(found, "pastille_degraded") == 1
    assert value(found, "pastille_ready") == 1
    assert value(found, "pastille_cache_hits_total") == 5
    assert value(found, "pastille_cache_misses_total") == 6
    assert value(found, "pastille_cache_bytes") == 7
    assert value(found, "pastille_fallbacks_total", preferred="int8", why="non_finite") == 1
    assert value(found, "pastille_faults_total", variant="int8", why="exception") == 1
    assert value(found, "pastille_shadow_dropped_total") == 1
    assert value(found, "pastille_compared_total", served="int8", other="fp32") == 3
    assert value(found, "pastille_disagreements_lost_total") == 1
    assert value(found, "pastille_disagreements_gained_total") == 0
    assert value(found, "pastille_disagreement_alarm_at") == pytest.approx(100)
    assert value(found, "pastille_labelled_positives_total", group="sex=female") == 1
    assert value(found, "pastille_alarm", kind="disagreement") == 0
    assert value(found, "pastille_alarm", kind="comparison") == 0
    assert value(found, "pastille_drift_psi", variant="int8") > value(found, "pastille_drift_psi_limit")


def test_the_breaker_is_in_one_state() -> None:
    variant = VariantStatus(
        name="int8", sha256="ab" * 32, usable=False, reason="resting", breaker="half_open"
    )
    found = scrape(busy(), variants=(variant,))
    assert value(found, "pastille_variant_usable", variant="int8") == 0
    states = {labels["state"]: on for labels, on in found["pastille_breaker_state"]}
    assert states == {"closed": 0, "open": 0, "half_open": 1}


def test_an_alarm_is_a_metric() -> None:
    seen = watching()
    for _ in range(10):
        seen.observe(compared([True]))
    assert value(scrape(seen), "pastille_alarm", kind="disagreement") == 1


def test_a_version_that_was_never_asked_is_scraped_too() -> None:
    found = scrape(watching())
    assert value(found, "pastille_ready") == 1
    assert value(found, "pastille_queue_seconds_count") == 0


def test_labels_of_any_text_are_escaped() -> None:
    seen = busy()
    seen.monitor.feedback(Label(request_id="3", label="glioma", groups={"ward": 'a"\n\\b'}))
    assert value(scrape(seen), "pastille_labelled_positives_total", group='ward=a"\n\\b') == 1


def test_the_library_is_imported_by_the_first_scrape_only() -> None:
    code = (
        "import sys; from pastille.serve.watch import monitor\n"
        "heavy = {'prometheus_client', 'torch', 'onnx', 'scipy.stats'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def names_in(expression: str) -> set[str]:
    """Metrics that a PromQL expression asks for."""
    return set(re.findall(r"\b(?:pastille|process)_[a-z0-9_]+\b", expression))


def labels_in(expression: str) -> set[str]:
    """Labels that it selects, groups or joins by."""
    selected = re.findall(r"([a-z_]+)\s*(?:=~|!=|!~|=)\s*\"", expression)
    grouped = re.findall(r"(?:by|on|without|group_left|ignoring)\s*\(([^)]*)\)", expression)
    return {*selected, *(name.strip() for names in grouped for name in names.split(",") if name.strip())}


def alerts() -> list[dict[str, Any]]:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    return [rule for group in rules["groups"] for rule in group["rules"]]


def panels() -> Iterator[dict[str, Any]]:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", ())


def expressions() -> list[tuple[str, str]]:
    found = [(rule["alert"], rule["expr"]) for rule in alerts()]
    for panel in panels():
        found += [(panel["title"], target["expr"]) for target in panel.get("targets", ())]
    return found


@pytest.mark.skipif(not DEPLOY.is_dir(), reason="an installed package has no deploy/")
def test_alerts_and_dashboard_ask_only_for_metrics_and_labels_that_there_are() -> None:
    found = scrape(busy())
    asked = expressions()
    assert len(asked) > 20
    for where, expression in asked:
        names = names_in(expression)
        assert names, where
        assert names <= found.keys(), (where, names - found.keys())
        known = {label for name in names for labels, _ in found[name] for label in labels} | {
            "job",
            "instance",
        }
        assert labels_in(expression) <= known, (where, labels_in(expression) - known)


@pytest.mark.skipif(not DEPLOY.is_dir(), reason="an installed package has no deploy/")
def test_each_alert_says_what_it_means_and_what_to_do() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in ("page", "ticket"), rule
        assert {"summary", "description"} == rule["annotations"].keys()
        assert re.search(r"[.!]$", rule["annotations"]["description"])
    assert len({rule["alert"] for rule in alerts()}) == len(alerts())


@pytest.mark.skipif(not DEPLOY.is_dir(), reason="an installed package has no deploy/")
def test_panels_do_not_overlap_and_each_is_explained() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
    assert len({panel["id"] for panel in panels()}) == sum(1 for _ in panels())


@pytest.mark.skipif(not DEPLOY.is_dir(), reason="an installed package has no deploy/")
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: rules go unchecked")
def test_rules_and_panels_are_valid_promql(tmp_path: Path) -> None:
    asked = [
        expression.replace("$__rate_interval", "5m").replace("$model|", ".*").replace("$model", ".*")
        for _, expression in expressions()
    ]
    rules = [{"record": f"panel:{i}", "expr": expression} for i, expression in enumerate(asked)]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    for file in (DEPLOY / "prometheus" / "alerts.yaml", tmp_path / "panels.yaml"):
        checked = subprocess.run(
            ["promtool", "check", "rules", file], check=False, capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stderr
