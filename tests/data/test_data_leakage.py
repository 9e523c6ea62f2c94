from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, overload

import numpy as np
import pytest
from data_samples import split_of, splits_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pastille.data.leakage import Leak, check_leaks, inspect
from pastille.data.split import Split, Splits
from pastille.errors import DataError, LeakageError
from pastille.progress import SILENT
from pastille.values import TensorSpec


class Failing(Sequence[Any]):
    """Inputs that cannot be read."""

    @overload
    def __getitem__(self, index: int) -> NoReturn: ...

    @overload
    def __getitem__(self, index: slice) -> NoReturn: ...

    def __getitem__(self, index: int | slice) -> NoReturn:
        raise KeyError("no such file\non two lines")

    def __len__(self) -> int:
        return 2


def fixed(dtype: str = "<f4") -> Splits:
    def split(start: int) -> Split:
        inputs = np.arange(start, start + 6, dtype=dtype).reshape(2, 3)
        return Split(inputs=list(inputs), targets=np.array([0, 1], "<i8"))

    return Splits(train=split(0), validation=split(10), test=split(20))


def leaking(n: int) -> tuple[Leak, ...]:
    return tuple(Leak(what="subject", name=f"P{i}", first=("train", i), second=("test", i)) for i in range(n))


def test_sound_splits_have_no_leaks_and_one_spec() -> None:
    found = inspect(splits_of(), progress=SILENT)
    assert found.leaks == ()
    assert found.inputs == (TensorSpec(name="input", shape=(3,), dtype="float32"),)


def test_the_digest_is_the_same_on_every_machine() -> None:
    whole = hashlib.sha256()
    for name, start in (("train", 0), ("validation", 10), ("test", 20)):
        for i in range(2):
            row = struct.pack("<3f", *range(start + 3 * i, start + 3 * i + 3))
            whole.update(f"{name}:".encode() + hashlib.sha256(b"input:float32(3,)" + row).digest())
            whole.update(b"int64()" + struct.pack("<q", i))
    expected = whole.hexdigest()
    assert inspect(fixed(), progress=SILENT).digest == expected
    assert inspect(fixed(">f4"), progress=SILENT).digest == expected  # byte order of the machine
    assert inspect(fixed("<f8"), progress=SILENT).digest != expected


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("what", ["input", "target"])
def test_the_digest_changes_with_every_input_and_target(part: str, what: str) -> None:
    def of(value: int) -> str:
        targets = [0, value if what == "target" else 1, 0, 1]
        inputs = np.arange(12, dtype=np.float32).reshape(4, 3) - 100
        inputs[2, 1] = value if what == "input" else 1
        return inspect(splits_of(**{part: split_of(targets, inputs=inputs)}), progress=SILENT).digest

    assert of(1) == of(1) != of(0)


def test_the_digest_changes_with_the_order_and_the_split() -> None:
    a, b, c = (split_of([0, 1], seed=seed) for seed in range(3))
    digests = {
        inspect(Splits(train=a, validation=b, test=c), progress=SILENT).digest,
        inspect(Splits(train=b, validation=a, test=c), progress=SILENT).digest,
        inspect(Splits(train=a, validation=c, test=b), progress=SILENT).digest,
    }
    assert len(digests) == 3


def test_a_lazy_and_a_stored_input_have_one_digest() -> None:
    lists = splits_of()
    stored = splits_of(train=split_of([0, 1, 0, 1], inputs=[np.array(row) for row in lists.train.inputs]))
    assert inspect(lists, progress=SILENT).digest == inspect(stored, progress=SILENT).digest


def test_named_inputs_have_a_spec_each() -> None:
    def split(seed: int) -> Split:
        rng = np.random.default_rng(seed)
        rows = [{"age": np.array([i + 0.5]), "x": rng.normal(size=(2, 3))} for i in range(2)]
        return Split(inputs=rows, targets=np.array([0, 1]))

    found = inspect(Splits(train=split(0), validation=split(1), test=split(2)), progress=SILENT)
    assert [(spec.name, spec.shape) for spec in found.inputs] == [("age", (1,)), ("x", (2, 3))]


def test_an_identical_input_in_two_splits_is_a_leak() -> None:
    train, test = split_of([0, 1, 0, 1], seed=0), split_of([0, 1, 0, 1], seed=9)
    np.asarray(test.inputs)[3] = train.inputs[1]
    (leak,) = inspect(splits_of(train=train, test=test), progress=SILENT).leaks
    assert (leak.what, leak.first, leak.second) == ("input", ("train", 1), ("test", 3))


def test_duplicates_within_a_split_are_no_leak() -> None:
    same = np.ones((4, 3), np.float32)
    assert inspect(splits_of(train=split_of([0, 1, 0, 1], inputs=same)), progress=SILENT).leaks == ()


def test_a_subject_in_two_splits_is_one_leak_per_pair_of_splits() -> None:
    train = split_of([0, 1, 0, 1], seed=0, subjects=np.array([7, 7, 8, 9]))
    test = split_of([0, 1, 0, 1], seed=1, subjects=np.array(["5", "7", "7", "4"]))  # read as text
    validation = split_of([0, 1], seed=2, subjects=np.array([9, 6]))
    leaks = inspect(Splits(train=train, validation=validation, test=test), progress=SILENT).leaks
    assert leaks == (
        Leak(what="subject", name="7", first=("train", 0), second=("test", 1)),
        Leak(what="subject", name="9", first=("train", 3), second=("validation", 0)),
    )


@settings(deadline=None)
@given(st.lists(st.sampled_from(["train", "validation", "test"]), min_size=1, max_size=12))
def test_leaks_are_found_wherever_the_copies_lie(homes: list[str]) -> None:
    def split(name: str, seed: int) -> Split:
        inputs = np.random.default_rng(seed).normal(size=(2 + homes.count(name), 2))
        inputs[2:] = 0.25
        return Split(inputs=list(inputs), targets=np.arange(len(inputs)) % 2)

    splits = Splits(train=split("train", 0), validation=split("validation", 1), test=split("test", 2))
    assert len(inspect(splits, progress=SILENT).leaks) == len(set(homes)) - 1


def test_leaks_stop_the_run_and_are_named() -> None:
    with pytest.raises(LeakageError) as caught:
        check_leaks(leaking(7), allow=False)
    assert str(caught.value) == (
        "the splits leak in 7 places: subject P0 in train[0] and test[0], "
        "subject P1 in train[1] and test[1], subject P2 in train[2] and test[2], "
        "subject P3 in train[3] and test[3], subject P4 in train[4] and "
        "test[4], and 2 more; split by subject and remove duplicates, "
        "or record it instead with --allow-leakage"
    )
    assert caught.value.pairs[0] == ("train[0]", "test[0]")
    assert len(caught.value.pairs) == 7


def test_allowed_leaks_are_recorded_without_naming_patients() -> None:
    sentences = check_leaks(leaking(25), allow=True)
    assert sentences[0] == "The same subject is in train[0] and test[0]."
    assert sentences[20:] == ("There are 5 more leaks.",)
    assert not any("P1" in sentence for sentence in sentences)


@pytest.mark.parametrize("allow", [True, False])
def test_no_leaks_no_sentences(allow: bool) -> None:
    assert check_leaks((), allow=allow) == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(bad: float) -> None:
    test = split_of([0, 1, 0, 1], seed=5)
    np.asarray(test.inputs)[2, :2] = bad
    with pytest.raises(
        DataError, match=r"^input 'input' of test\[2\] holds NaN or infinity in 2 of 3 values; fill"
    ):
        inspect(splits_of(test=test), progress=SILENT)


def rows_with(row: object) -> Split:
    return Split(inputs=[np.zeros(3, np.float32), row], targets=np.array([0, 1]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            np.ones(4, np.float32),
            r"input 'input' of test\[1\] must be float32 \(3,\) like the first, got float32 \(4,\)",
        ),
        (np.ones(3), r"input 'input' of test\[1\] must be float32 \(3,\) like the first, got float64 \(3,\)"),
        ({"x": np.ones(3, np.float32)}, r"test\[1\] must have the inputs input like the first, got x"),
    ],
)
def test_inputs_unlike_the_first_are_named(row: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        inspect(splits_of(test=rows_with(row)), progress=SILENT)


@pytest.mark.parametrize("row", [np.array(["a"]), np.array(1.0), "text", None])
def test_an_input_that_is_no_array_of_numbers(row: object) -> None:
    train = Split(inputs=[row], targets=np.array([0]))
    with pytest.raises(DataError, match=r"input 'input' of train\[0\] must be an array of numbers, got"):
        inspect(splits_of(train=train), progress=SILENT)


def test_an_input_that_cannot_be_read_is_named_in_one_line() -> None:
    broken = Split(inputs=Failing(), targets=np.array([0, 1]))
    with pytest.raises(
        DataError, match=r"input validation\[0\] cannot be read: KeyError: .*two lines'$"
    ) as caught:
        inspect(splits_of(validation=broken), progress=SILENT)
    assert "\n" not in str(caught.value)


def test_nothing_at_all() -> None:
    empty = split_of([])
    with pytest.raises(DataError, match="all splits are empty"):
        inspect(splits_of(train=empty, validation=empty, test=empty), progress=SILENT)


def test_progress_is_told_how_much_there_is() -> None:
    told: list[tuple[str, int | None]] = []

    class Listening:
        def track(self, items: Any, *, what: str, total: int | None = None) -> Iterator[Any]:
            told.append((what, total))
            yield from items

        def note(self, text: str) -> None: ...

    inspect(splits_of(), progress=Listening())
    assert told == [("inspecting data", 12)]
