"""The audit log: written before the answer, whole after a crash, and every edit of it is found."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_events import answered

from pastille.cli.app import app
from pastille.errors import IntegrityError, UsageError
from pastille.serve.audit import AuditLog, open_audit
from pastille.serve.audit_lines import HEAD, End, head_bytes, read_head
from pastille.serve.audit_lines import written as line_after
from pastille.serve.audit_verify import verify_audit
from pastille.serve.errors import Refused

FIRST = "audit-000001.jsonl"
NEVER = 3600.0  # brought to the disk only where a test asks for it


def fill(log: AuditLog, n: int, start: int = 0) -> None:
    for k in range(start, start + n):
        log.decision(answered(request_id=f"patient-{k}", warnings=("far outside",)))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A log of three files, ended in order: its bytes by file."""
    folder = tmp_path_factory.mktemp("audit")
    log = open_audit(folder, max_bytes=1500, sync_s=NEVER)
    fill(log, 8)
    log.close()
    assert len(list(folder.glob("audit-*.jsonl"))) == 3
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def lay_out(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def records(folder: Path) -> list[dict[str, object]]:
    lines = (path.read_text().splitlines() for path in sorted(folder.glob("audit-*.jsonl")))
    return [json.loads(line) for line in itertools.chain.from_iterable(lines)]


def test_a_decision_is_kept_and_nothing_of_the_patient(tmp_path: Path) -> None:
    log = open_audit(tmp_path, sync_s=NEVER)
    log.decision(answered(("glioma", "no tumour"), request_id="Jane Doe 1970", confidence=(0.91, 0.7)))
    log.note("swapped", model="tiny", version="2")
    log.close()
    found = records(tmp_path)
    assert [r["event"] for r in found] == ["started", "decision", "swapped", "stopped"]
    assert [r["n"] for r in found] == [0, 1, 2, 3]
    decision = found[1]
    assert decision["decisions"] == ["glioma", "no tumour"]
    assert decision["confidence"] == [0.91, 0.7]
    assert (decision["variant"], decision["model"], decision["threshold"]) == ("int8", "tiny", 0.5)
    assert not any(b"Jane" in data for data in contents(tmp_path).values())
    salt = (tmp_path / "salt").read_bytes()
    assert decision["request"] == hashlib.sha256(salt + b"Jane Doe 1970").hexdigest()[:16]
    assert (tmp_path / "salt").stat().st_mode & 0o077 == 0


def test_the_page_on_the_log_shows_a_record_as_it_is(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "explain" / "audit.md"
    (shown,) = re.findall(r"```json\n(.*?)```", page.read_text(), re.DOTALL)
    log = open_audit(tmp_path, sync_s=NEVER)
    fill(log, 1)
    log.close()
    assert list(json.loads(shown)) == list(records(tmp_path)[1])


def test_the_chain_can_be_checked_with_nothing_but_sha256(written: dict[str, bytes]) -> None:
    previous = "0" * 64
    for line in b"".join(written[name] for name in sorted(written) if name.startswith("audit")).splitlines():
        digest = json.loads(line)["hash"]
        assert digest == hashlib.sha256(previous.encode() + line[len(b'{"hash":"",') + 64 :]).hexdigest()
        previous = digest
    assert json.loads(written[HEAD])["hash"] == previous


def test_where_nothing_is_decided_a_digest_of_the_output_stands_in(tmp_path: Path) -> None:
    log = open_audit(tmp_path, sync_s=NEVER)
    event = answered(())
    log.decision(event)
    log.close()
    outputs = np.ascontiguousarray(event.reply.answer.outputs)
    assert records(tmp_path)[1]["output_sha256"] == hashlib.sha256(outputs.tobytes()).hexdigest()


def test_a_request_of_very_many_cases_has_a_line_that_can_be_read(tmp_path: Path) -> None:
    log = open_audit(tmp_path, sync_s=NEVER)
    log.decision(answered(("a label with a long name",) * 60_000))
    log.close()
    assert (verify_audit(tmp_path).broken, verify_audit(tmp_path).decisions) == (None, 1)
    (decision,) = (record for record in records(tmp_path) if record["event"] == "decision")
    assert decision["output_sha256"] == hashlib.sha256(np.zeros((60_000, 3), np.float32).data).hexdigest()
    open_audit(tmp_path, sync_s=NEVER).close()


def test_a_file_begun_while_a_log_is_checked_is_no_truncation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_audit(tmp_path, max_bytes=1500, sync_s=NEVER)

    def read_late(folder: Path) -> End:
        fill(log, 8)
        log.sync()
        return read_head(folder)

    monkeypatch.setattr("pastille.serve.audit_verify.read_head", read_late)
    found = verify_audit(tmp_path)
    assert (found.broken, found.decisions, found.files) == (None, 8, 3)
    log.close()


def test_an_untouched_log_is_intact(written: dict[str, bytes], tmp_path: Path) -> None:
    found = verify_audit(lay_out(tmp_path, written))
    assert found.intact, found.broken
    assert (found.files, found.decisions, found.records, found.starts) == (3, 8, 10, 1)
    assert found.anchored == 9
    assert found.notes == ()


Edit = tuple[str, str, int, int]


@st.composite
def edits(draw: st.DrawFn) -> Edit:
    what = st.sampled_from(
        ["flip", "cut", "insert", "append", "drop line", "swap lines", "repeat line", "unlink"]
    )
    name = st.sampled_from([FIRST, "audit-000002.jsonl", "audit-000003.jsonl", HEAD, "salt"])
    return draw(what), draw(name), draw(st.integers(0, 10**6)), draw(st.integers(1, 255))


def edited(data: bytes, edit: Edit) -> bytes | None:
    """The bytes after one edit; None takes the file away."""
    what, _, place, value = edit
    lines = data.splitlines(keepends=True)
    at, line = place % len(data), place % len(lines)
    match what:
        case "flip":
            return data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]
        case "cut":
            return data[:at]
        case "insert":
            return data[:at] + bytes([value]) + data[at:]
        case "append":
            return data + bytes([value]) * (1 + place % 400)
        case "drop line":
            return b"".join(lines[:line] + lines[line + 1 :])
        case "swap lines":
            other = (line + 1) % len(lines)
            lines[line], lines[other] = lines[other], lines[line]
            return b"".join(lines)
        case "repeat line":
            return b"".join([*lines[: line + 1], *lines[line:]])
        case _:
            return None


@given(edit=edits())
@settings(max_examples=300, deadline=None)
def test_any_single_edit_is_found(written: dict[str, bytes], edit: Edit) -> None:
    name = edit[1]
    changed = edited(written[name], edit)
    if changed == written[name] or (name == "salt" and changed is None):  # who takes the salt away may
        return
    with tempfile.TemporaryDirectory() as folder:
        rest = {key: value for key, value in written.items() if key != name}
        lay_out(Path(folder), rest | ({} if changed is None else {name: changed}))
        found = verify_audit(Path(folder))
    assert found.broken is not None, edit


@pytest.mark.parametrize(
    ("edit", "how", "line"),
    [
        (("flip", FIRST, 500, 1), "changed", 2),
        (("drop line", FIRST, 1, 1), "removed", 2),
        (("swap lines", FIRST, 1, 1), "reordered", 2),
        (("repeat line", FIRST, 1, 1), "reordered", 3),
        (("unlink", "audit-000002.jsonl", 0, 1), "removed", None),
        (("cut", "audit-000003.jsonl", 300, 1), "truncated", None),
    ],
)
def test_the_first_break_is_named(
    written: dict[str, bytes], tmp_path: Path, edit: Edit, how: str, line: int | None
) -> None:
    name = edit[1]
    files = dict(written)
    if (changed := edited(files.pop(name), edit)) is not None:
        files[name] = changed
    broken = verify_audit(lay_out(tmp_path, files)).broken
    assert broken is not None
    assert (broken.file, broken.how, broken.line) == (name, how, line)


def test_a_log_written_anew_is_only_found_by_a_hash_noted_elsewhere(tmp_path: Path) -> None:
    for number, folder in enumerate((tmp_path / "true", tmp_path / "forged")):
        log = open_audit(folder, sync_s=NEVER)
        fill(log, 3, start=number)
        log.close()
    noted = verify_audit(tmp_path / "true").last_hash
    assert verify_audit(tmp_path / "true", noted=noted).intact
    assert verify_audit(tmp_path / "forged").intact
    assert verify_audit(tmp_path / "forged", noted=noted).broken is not None


def test_what_was_added_after_the_end_is_found(written: dict[str, bytes], tmp_path: Path) -> None:
    end = read_head(lay_out(tmp_path, written))
    line, _ = line_after(end.hash, end.n + 1, 0.0, "decision", {"decisions": ["no tumour"]})
    with (tmp_path / "audit-000003.jsonl").open("ab") as file:
        file.write(line)
    broken = verify_audit(tmp_path).broken
    assert broken is not None
    assert broken.how == "added"
    with pytest.raises(IntegrityError, match="goes on after it was closed"):
        open_audit(tmp_path)


def crashed(folder: Path, keep: int) -> Path:
    """A log whose server died in the middle of its last line: ``keep`` bytes of it are there."""
    log = open_audit(folder, sync_s=NEVER)
    fill(log, 2)
    log.sync()
    synced = (folder / FIRST).stat().st_size
    fill(log, 1, start=2)
    files = contents(folder)
    log.close()
    files[FIRST] = files[FIRST][: synced + keep]
    return lay_out(folder, files)


@pytest.mark.parametrize("keep", [1, 9, 100, 400])
def test_a_torn_last_line_is_recognised_and_closed(tmp_path: Path, keep: int) -> None:
    crashed(tmp_path, keep)
    before = verify_audit(tmp_path)
    assert before.intact
    assert "torn" in before.notes[0]
    log = open_audit(tmp_path, sync_s=NEVER)
    fill(log, 1, start=3)
    log.close()
    after = verify_audit(tmp_path)
    assert after.intact, after.broken
    assert (after.torn, after.starts, after.decisions) == (1, 2, 3)
    torn = lay_out(tmp_path, contents(tmp_path)) / FIRST
    data = torn.read_bytes()
    at = data.rindex(b'"event":"torn"') - keep - 110
    torn.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert verify_audit(tmp_path).broken is not None


def test_a_last_line_without_its_end_is_whole(tmp_path: Path) -> None:
    log = open_audit(tmp_path, sync_s=NEVER)
    fill(log, 1)
    files = contents(tmp_path)
    log.close()
    lay_out(tmp_path, files | {FIRST: files[FIRST][:-1]})
    log = open_audit(tmp_path, sync_s=NEVER)
    log.close()
    found = verify_audit(tmp_path)
    assert found.intact, found.broken
    assert (found.torn, found.decisions) == (0, 1)


def test_a_crash_between_two_files_loses_nothing(tmp_path: Path) -> None:
    log = open_audit(tmp_path, sync_s=NEVER)
    fill(log, 2)
    files = contents(tmp_path)
    log.close()
    lay_out(tmp_path, files | {"audit-000002.jsonl": b""})
    assert verify_audit(tmp_path).intact
    log = open_audit(tmp_path, sync_s=NEVER)
    fill(log, 1, start=2)
    log.close()
    found = verify_audit(tmp_path)
    assert found.intact, found.broken
    assert (found.decisions, found.files, found.starts) == (3, 2, 2)


def test_a_log_that_was_cut_off_is_not_gone_on_with(tmp_path: Path) -> None:
    log = open_audit(tmp_path, sync_s=NEVER)
    fill(log, 3)
    log.close()
    whole = (tmp_path / FIRST).read_bytes()
    (tmp_path / FIRST).write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(IntegrityError, match="was cut off or changed: record 4 is gone"):
        open_audit(tmp_path)
    (tmp_path / FIRST).unlink()
    with pytest.raises(IntegrityError, match="audit-000001"):
        open_audit(tmp_path)


def test_a_killed_server_leaves_a_log_that_holds(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from serving_events import answered\n"
        "from pastille.serve.audit import open_audit\n"
        "log = open_audit(Path(sys.argv[1]))\n"
        "for k in range(50): log.decision(answered(request_id=str(k)))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert verify_audit(tmp_path).decisions == 50
    open_audit(tmp_path).close()
    found = verify_audit(tmp_path)
    assert found.intact, found.broken
    assert (found.decisions, found.starts, found.torn) == (50, 2, 0)


def test_one_server_writes_to_a_log(tmp_path: Path) -> None:
    log = open_audit(tmp_path)
    with pytest.raises(UsageError, match="another server writes"):
        open_audit(tmp_path)
    log.close()
    open_audit(tmp_path).close()


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond ``limit`` bytes: a write of more is taken in part."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_cannot_be_logged_is_not_answered(tmp_path: Path) -> None:
    log = open_audit(tmp_path, sync_s=NEVER)
    fill(log, 2)
    size = (tmp_path / FIRST).stat().st_size
    with full_disk(size + 100):
        with pytest.raises(Refused, match="cannot be written") as refused:
            fill(log, 1)
        assert refused.value.status == 503
        assert (tmp_path / FIRST).stat().st_size == size  # the half line was taken back
        assert "no answer may go unlogged" in str(log.problem())
        with pytest.raises(Refused):
            log.check()
    fill(log, 1)  # the disk has room again
    assert log.problem() is None
    log.check()
    log.close()
    found = verify_audit(tmp_path)
    assert found.intact, found.broken
    assert (found.decisions, found.lost) == (3, 0)


def test_readiness_finds_out_by_itself_that_the_disk_has_room_again(tmp_path: Path) -> None:
    log = open_audit(tmp_path, sync_s=NEVER)
    with full_disk((tmp_path / FIRST).stat().st_size + 10), pytest.raises(Refused):
        fill(log, 1)
    assert log.problem() is None
    log.close()
    assert [r["event"] for r in records(tmp_path)] == ["started", "writable_again", "stopped"]


def test_where_answers_may_go_unlogged_the_log_says_how_many_did(tmp_path: Path) -> None:
    log = open_audit(tmp_path, required=False, sync_s=NEVER)
    with full_disk((tmp_path / FIRST).stat().st_size + 10):
        fill(log, 5)
        log.check()
        assert log.problem() is None
    fill(log, 1)
    log.close()
    found = verify_audit(tmp_path)
    assert found.intact, found.broken
    assert (found.decisions, found.lost) == (1, 5)
    assert found.notes == ("5 records could not be written, as the log itself says",)


def test_a_clock_that_goes_back_is_noted_and_the_order_stays(tmp_path: Path) -> None:
    times = iter([1000.0, 2000.0, 500.0, 2001.0, 2002.0])
    log = open_audit(tmp_path, sync_s=NEVER, clock=lambda: next(times))
    fill(log, 3)
    log.close()
    found = records(tmp_path)
    assert [r["n"] for r in found] == [0, 1, 2, 3, 4]
    assert [r.get("clock_back_s") for r in found] == [None, None, 1500.0, None, None]
    assert verify_audit(tmp_path).clock_back == 1


def test_the_head_reaches_the_disk_by_itself(tmp_path: Path) -> None:
    log = open_audit(tmp_path, sync_s=0.01)
    fill(log, 3)
    for _ in range(500):
        if read_head(tmp_path).n == log.end.n:
            break
        signal.sigtimedwait([], 0.01)
    assert (tmp_path / HEAD).read_bytes() == head_bytes(log.end)
    log.close()


def test_a_log_may_be_checked_while_it_is_written(tmp_path: Path) -> None:
    log = open_audit(tmp_path, max_bytes=4000, sync_s=0.0)
    for k in range(20):
        fill(log, 20, start=20 * k)
        found = verify_audit(tmp_path)
        assert found.intact, found.broken
        assert found.decisions == 20 * (k + 1)
    log.close()
    assert verify_audit(tmp_path).files > 20


def test_no_audit_log_is_a_fault_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no audit log"):
        verify_audit(tmp_path)
    os.mkfifo(tmp_path / FIRST)
    hostile = json.dumps({"schema": 1, "file": [], "size": 0, "n": "0", "hash": 7, "closed": 1}) + "\n"
    for head in (b"[" * 4000, b"null", hostile.encode()):
        (tmp_path / HEAD).write_bytes(head)
        assert verify_audit(tmp_path).broken is not None


def test_the_command_names_the_break_and_ends_with_5(
    written: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(lay_out(tmp_path, written))
    assert main(["audit", "verify", folder]) == 0
    assert "10 records in 3 files, 8 of them decisions" in capsys.readouterr().out
    (tmp_path / FIRST).write_bytes(written[FIRST].replace(b"glioma", b"benign", 1))
    assert main(["audit", "verify", folder]) == 5
    assert f"{FIRST}, line 2: record 1 is not as it was written" in capsys.readouterr().err
    assert main(["audit", "verify", folder, "--json"]) == 5
    found = json.loads(capsys.readouterr().out)
    assert found["intact"] is False
    assert found["broken"]["how"] == "changed"
    assert main(["audit", "verify", str(tmp_path / "elsewhere")]) == 2


def main(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        app(arguments)
    return int(ended.value.code or 0)
