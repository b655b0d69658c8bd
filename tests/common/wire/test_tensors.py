"""Canonical safetensors in numpy."""

import io
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import EnvironmentFault, RefusedError
from common.storage import files
from common.wire import tensors

ARRAYS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([0.5, -65504], dtype=np.float16),
    "a": np.array(3, np.int64),
    "c": np.zeros((0, 4), np.uint8),
    "d": np.array([1.5], np.float64),
}


def test_round_trip_and_the_reference_library_agrees() -> None:
    data = tensors.dumps(ARRAYS, {"made": "here"})
    for found in (tensors.loads(data, max_bytes=10_000), safetensors.numpy.load(data)):
        assert set(found) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array)
    other = safetensors.numpy.save(ARRAYS)
    assert set(tensors.loads(other, max_bytes=10_000)) == set(ARRAYS)


def test_the_order_of_names_does_not_change_the_bytes() -> None:
    assert tensors.dumps(ARRAYS) == tensors.dumps(dict(reversed(ARRAYS.items())))
    assert tensors.dumps({"x": np.asfortranarray(ARRAYS["b"])}) == tensors.dumps({"x": ARRAYS["b"]})


def header(text: str, body: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + body


def entry(**changes: object) -> str:
    return json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}})


OVERLAP = json.dumps(
    {
        name: {"dtype": "U8", "shape": [2], "data_offsets": [at, at + 2]}
        for name, at in (("x", 0), ("y", 1))
    }
)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        (1 << 60).to_bytes(8, "little") + b"{}",
        header("[]"),
        header("{"),
        header("[" * 5000),
        header(entry(dtype="BF99"), b"1234"),
        header(entry(shape=[2]), b"1234"),
        header(entry(shape=[-1]), b"1234"),
        header(entry(data_offsets=[0, 8]), b"1234"),
        header(entry(data_offsets=[4, 0]), b"1234"),
        header(entry(shape=[1 << 62, 4]), b"1234"),
        header(entry(), b"12345678"),
        header('{"x":3}'),
        header(entry(shape=["1"]), b"1234"),
        header(entry(shape=[True]), b"1234"),
        header(OVERLAP, b"123"),
    ],
)
def test_damaged_files_are_refused(data: bytes) -> None:
    with pytest.raises(RefusedError):
        tensors.loads(data, max_bytes=1 << 20)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255))
def test_no_altered_byte_crashes_the_reader(at: int, value: int) -> None:
    data = bytearray(tensors.dumps(ARRAYS))
    data[at % len(data)] = value
    try:
        tensors.loads(bytes(data), max_bytes=10_000)
    except RefusedError:
        pass


def test_size_caps_hold_before_reading(tmp_path: Path) -> None:
    tensors.write(tmp_path / "x.safetensors", ARRAYS)
    with pytest.raises(RefusedError, match="larger than"):
        tensors.read(tmp_path / "x.safetensors", max_bytes=50)
    assert tensors.shapes(tmp_path / "x.safetensors")["b"] == ("F32", (2, 3))


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.atomic_write(tmp_path / "x", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault, match="No space left") as caught:
        files.atomic_write(tmp_path / "x", b"new")
    assert caught.value.code == "E-DISK-FULL"
    assert "free some space" in caught.value.hint
    assert (tmp_path / "x").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("shape", [[1] * 65, [0] * 65, [0, 2**39, 2**39], [2**39, 0, 2**39]])
def test_a_shape_that_numpy_cannot_make_is_refused(shape: list[int]) -> None:
    size = 4 if all(shape) else 0
    header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(size)
    with pytest.raises(RefusedError, match="damaged description"):
        tensors.loads(data, max_bytes=1 << 20)


def npy(shape: str, data: bytes = b"", descr: str = "|u1", longer: int = 0) -> bytes:
    """An array file with this header, said to be `longer` than it is."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }} \n".encode()
    return b"\x93NUMPY\x01\x00" + (len(text) + longer).to_bytes(2, "little") + text + data


def test_a_row_of_bytes_in_numpys_format_is_read_as_numpy_reads_it() -> None:
    out = io.BytesIO()
    np.save(out, np.arange(200, dtype=np.uint8))
    assert tensors.npy_bytes(out.getvalue()) == bytes(range(200))


@pytest.mark.parametrize("count", [0, 1, 127, 10**6])
def test_a_row_of_any_length_is_read(count: int) -> None:
    out = io.BytesIO()
    np.save(out, np.ones(count, np.uint8))
    assert tensors.npy_bytes(out.getvalue()) == bytes([1]) * count


def test_a_row_is_read_without_pythons_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    # CPython before 3.11.8: threads that parse at once may meet a SystemError, whatever they parse
    def mismatch(*_: object, **__: object) -> None:
        raise SystemError("AST constructor recursion depth mismatch")

    out = io.BytesIO()
    np.save(out, np.arange(200, dtype=np.uint8))
    monkeypatch.setattr("ast.parse", mismatch)
    assert tensors.npy_bytes(out.getvalue()) == bytes(range(200))


NO_ROW = {
    "far more bytes than there are": npy("(1<<40,)"),
    "a count of 2^40": npy("(1099511627776,)", b"x"),
    "a count of 5,000 digits": npy(f"({'9' * 5000},)", b"x"),
    "one byte fewer": npy("(2,)", b"x"),
    "one byte more": npy("(2,)", b"xxx"),
    "a header that is said to be longer": npy("(2,)", b"xx", longer=1),
    "two axes": npy("(1, 1)", b"x"),
    "another type": npy("(1,)", b"xxxx", "<f4"),
    "Python objects": npy("(8,)", bytes(8), "|O"),
    "depth": npy("(" * 5000),
    "nothing": b"",
}


def test_the_cases_differ_from_a_row_in_one_thing_alone() -> None:
    assert tensors.npy_bytes(npy("(2,)", b"xx")) == b"xx"


@pytest.mark.parametrize("case", NO_ROW)
def test_anything_but_a_row_of_bytes_is_refused_without_its_memory(case: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError):
            tensors.npy_bytes(NO_ROW[case])
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_metadata_are_texts_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors.write(path, {"a": np.ones(2, np.float32)}, {"rotations": "r"})
    assert tensors.metadata(path) == {"rotations": "r"}
    tensors.write(path, {"a": np.ones(2, np.float32)})
    assert tensors.metadata(path) == {}
    for text in ('{"__metadata__":{"a":1}}', '{"__metadata__":[]}', '{"__metadata__":"a"}'):
        path.write_bytes(header(text))
        with pytest.raises(RefusedError, match="not texts"):
            tensors.metadata(path)
