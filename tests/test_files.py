"""Writes are whole or not at all; reads are bounded."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pastille.errors import IntegrityError, OutputError, UsageError
from pastille.files import produce_atomic, read_bounded, sha256_file, write_atomic
from pastille.record import Record, read_record, write_record
from pastille.references import load_callable, one_line


def test_a_write_replaces_whole(tmp_path: Path) -> None:
    write_atomic(tmp_path / "new/file", b"one")
    write_atomic(tmp_path / "new/file", b"two")
    assert (tmp_path / "new/file").read_bytes() == b"two"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_failing_write_leaves_the_old_file(tmp_path: Path, code: int) -> None:
    write_atomic(tmp_path / "file", b"old")

    def half(draft: Path) -> None:
        draft.write_bytes(b"ne")
        raise OSError(code, "no")

    with pytest.raises(OutputError, match=r"cannot write .*file: no"):
        produce_atomic(tmp_path / "file", half)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_error_of_the_producer_is_its_own_and_leaves_nothing(tmp_path: Path) -> None:
    def broken(draft: Path) -> None:
        draft.write_bytes(b"x")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        produce_atomic(tmp_path / "file", broken)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot write"):
        write_atomic(tmp_path / "file/below", b"x")


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    produce_atomic(tmp_path / "file", lambda draft: draft.touch(mode=0o600))
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_reading_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bounded(tmp_path / "file", 5, what="plan") == b"12345"
    with pytest.raises(IntegrityError, match=r"plan .* must be at most 4 bytes"):
        read_bounded(tmp_path / "file", 4, what="plan")
    with pytest.raises(IntegrityError, match="missing or not a plain file"):
        read_bounded(tmp_path, 4, what="plan")


def test_a_hash_is_sha256(tmp_path: Path) -> None:
    import hashlib

    data = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


class TestRecord:
    """``run.json``."""

    def test_reads_back(self, tmp_path: Path) -> None:
        write_record(Record(name="r"), tmp_path / "run.json")
        assert read_record(tmp_path / "run.json") == Record(name="r")

    @pytest.mark.parametrize(
        "text", ["", "{}", "[]", '{"name": 3}', '{"name": "r", "events": [{"event": "nothing"}]}', "[" * 5000]
    )
    def test_garbage_is_refused_in_one_line(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(IntegrityError) as error:
            read_record(tmp_path / "run.json")
        assert "\n" not in str(error.value)

    def test_a_newer_schema_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text('{"name": "r", "schema": 99}')
        with pytest.raises(IntegrityError, match="schema 99"):
            read_record(tmp_path / "run.json")


class TestReferences:
    """``FILE.py:CALLABLE``."""

    def test_neighbours_can_be_imported_and_names_do_not_clash(self, tmp_path: Path) -> None:
        for folder, value in (("one", 1), ("two", 2)):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "model.py").write_text(f"def f():\n    return {value}\n")
        one, two = (load_callable("model.py:f", tmp_path / name, key="k") for name in ("one", "two"))
        assert (one(), two()) == (1, 2)

    @pytest.mark.parametrize(
        ("reference", "said"),
        [
            ("model.py", "must be FILE.py:CALLABLE"),
            (":f", "must be FILE.py:CALLABLE"),
            ("lost.py:f", "there is no file"),
            ("model.py:g", "has no callable 'g'; it has: f"),
            ("model.py:VALUE", "has no callable 'VALUE'"),
            ("broken.py:f", "failed: SyntaxError"),
            ("raises.py:f", "failed: ValueError: at import"),
            ("no.such.package:f", "failed: ModuleNotFoundError"),
        ],
    )
    def test_what_cannot_be_had(self, tmp_path: Path, reference: str, said: str) -> None:
        (tmp_path / "model.py").write_text("from pathlib import Path\nVALUE = 3\ndef f(): ...\n")
        (tmp_path / "broken.py").write_text("def f(:\n")
        (tmp_path / "raises.py").write_text("raise ValueError('at\\nimport')\n")
        with pytest.raises(UsageError) as error:
            load_callable(reference, tmp_path, key="task.model")
        assert said in str(error.value)
        assert "task.model" in str(error.value)
        assert "\n" not in str(error.value)

    def test_one_line_is_bounded(self) -> None:
        assert len(one_line(ValueError("x" * 10_000))) == 300
