"""A real server: what it logs, counts and shows of real requests, and what it does when its disk is full."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving_bundles import cases, tiny_bundle
from serving_process import Running, running, wait_until_ready
from serving_watched import reference

from pastille.serve.audit_verify import verify_audit
from pastille.values.reference import Reference


@dataclass(frozen=True)
class Audited:
    """A server that runs, and where its log is."""

    server: Running
    folder: Path

    def ask(self, request_id: str, *, lost: float = 0.0) -> tuple[int, Any]:
        x = cases(1, seed=3, lost=lost)
        tensor = {"name": "input", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
        return self.server.ask_json("POST", "/v2/models/tiny/infer", {"id": request_id, "inputs": [tensor]})

    def limit(self, size: int) -> None:
        """No file of the server may grow beyond this: its disk is full."""
        hard = resource.prlimit(self.server.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(self.server.pid, resource.RLIMIT_FSIZE, (size, hard))


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    home = tmp_path_factory.mktemp("watched")
    known = Reference(cases=1000, inputs=(), variants=(reference(),))
    bundle = tiny_bundle(home / "bundle", name="tiny", reference=known)
    with running(bundle, args=("--mode", "validate", "--audit", str(home / "audit"))) as server:
        yield Audited(server=server, folder=home / "audit")
    found = verify_audit(home / "audit")  # after it ended in order
    assert found.intact, found.broken
    assert found.notes == ()
    events = [
        json.loads(line)["event"] for line in (home / "audit" / "audit-000001.jsonl").read_text().splitlines()
    ]
    assert events[0] == "started"
    assert events[-1] == "stopped"


def test_each_answer_is_logged_counted_and_shown(audited: Audited) -> None:
    before = verify_audit(audited.folder).decisions
    assert audited.ask("Jane Doe 1")[0] == 200
    assert audited.ask("Jane Doe 2", lost=1)[0] == 200  # fp32 decides otherwise, and wins
    assert verify_audit(audited.folder).decisions == before + 2
    status, headers, text = audited.server.ask("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = [s for family in text_string_to_metric_families(text.decode()) for s in family.samples]
    found = {(s.name, *sorted(s.labels.values())): s.value for s in samples}
    assert found["pastille_requests_total", "1", "200", "infer", "tiny"] == before + 2
    assert sum(v for k, v in found.items() if k[0] == "pastille_compared_total") == before + 2
    assert sum(v for k, v in found.items() if k[0] == "pastille_disagreements_total") == 1
    status, shown = audited.server.ask_json("GET", "/monitor.json")
    assert status == 200
    assert shown["answered"] == before + 2
    assert shown["drift"][0]["state"] == "not_enough_data"
    assert [one["fallback"] for one in shown["recent"]][:2] == ["disagreement", ""]
    logs = "".join(audited.server.logged) + (audited.folder / "audit-000001.jsonl").read_text()
    assert "Jane" not in logs + json.dumps(shown) + text.decode()


def test_a_label_finds_its_answer(audited: Audited) -> None:
    _, answer = audited.ask("r-7")
    told = {"request_id": "r-7", "label": "no tumour", "groups": {"sex": "female"}}
    status, first = audited.server.ask_json("POST", "/feedback", told)
    assert (status, first["counted"]) == (200, True)
    assert first["decision"] in json.dumps(answer)
    assert audited.server.ask_json("POST", "/feedback", told)[1]["counted"] is False
    assert audited.server.ask_json("POST", "/feedback", told | {"request_id": "r-8"})[0] == 404


def test_a_full_disk_stops_the_answers_and_not_the_server(audited: Audited) -> None:
    before = verify_audit(audited.folder).decisions
    audited.limit((audited.folder / "audit-000001.jsonl").stat().st_size + 20)
    status, answer = audited.ask("unlogged")
    assert (status, list(answer)) == (503, ["error"])
    assert "audit log" in answer["error"]
    assert audited.server.ask_json("GET", "/v2/health/ready")[0] == 503
    audited.limit(resource.RLIM_INFINITY)
    wait_until_ready(audited.server)  # it finds out by itself
    assert audited.ask("logged again")[0] == 200
    assert verify_audit(audited.folder).decisions == before + 1


def test_the_alarm_takes_int8_out_of_service_and_is_seen_everywhere(audited: Audited) -> None:
    for k in range(60):
        assert audited.ask(f"other patients {k}", lost=1)[0] == 200
    status, answer = audited.ask("after the alarm")
    assert status == 200
    assert answer["parameters"]["variant"] == "fp32"
    _, shown = audited.server.ask_json("GET", "/monitor.json")
    (pair,) = shown["disagreements"]
    assert pair["state"] == "alarm"
    assert pair["lost"] == pair["disagreed"] > 1
    assert shown["engine"]["degraded"]
    assert ("int8", "alarm") in [(each["what"], each["why"]) for each in shown["fallbacks"]]
    text = audited.server.ask("GET", "/metrics")[2].decode()
    assert 'pastille_alarm{kind="disagreement",model="tiny",version="1"} 1.0' in text
    assert 'pastille_degraded{model="tiny",version="1"} 1.0' in text
    (logged,) = [event for event in audited.server.events() if event["event"] == "alarm"]
    assert logged["kind"] == "disagreement"
    assert '"event":"alarm","kind":"disagreement"' in (audited.folder / "audit-000001.jsonl").read_text()
