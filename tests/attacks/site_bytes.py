"""Bytes of a hostile site: payload, signature, Flower's records."""

from __future__ import annotations

import json
import os
import pickle  # noqa: TID251  (the attacker's)
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.wire import signing, tensors
from common.wire.messages import Sealed
from tests.attacks.site_cases import Case, Prepare, header, payload, record, signature, spoiled

MARKER = "KOHORT_ATTACK_MARKER"  # the environment's name of a file that only run code creates
CAP = 1 << 30
SIGNATURE = ("E-INTAKE-SIGNATURE",)
RECORD = ("E-RECORD",)
DAMAGED = ("E-REFUSED",)
SPELLING = ("E-GATE-04",)


class Touch:
    """Unpickled, it creates a file: the proof that code ran."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(os.environ[MARKER]),)


def as_safetensors(header: bytes, numbers: bytes = b"") -> bytes:
    """Safetensors bytes of any header."""
    return len(header).to_bytes(8, "little") + header + numbers


def described(dtype: str, shape: list[Any], *offsets: int) -> Prepare:
    """A payload of one tensor with this description and no numbers."""
    entry = {"dtype": dtype, "shape": shape, "data_offsets": offsets or (0, 0)}
    return payload(lambda _: as_safetensors(json.dumps({"critic.a": entry}).encode()))


def with_metadata(text: str) -> Prepare:
    """The honest tensors, with a text beside them."""
    return payload(lambda p: tensors.dumps(tensors.loads(p, max_bytes=CAP), {"from": text}))


def spelled_otherwise(honest: bytes) -> bytes:
    """The same tensors, their header with spaces."""
    end = 8 + int.from_bytes(honest[:8], "little")
    return as_safetensors(json.dumps(json.loads(honest[8:end])).encode(), honest[end:])


def overlapping(_: bytes) -> bytes:
    """Two tensors on the same bytes."""
    entry = {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}
    return as_safetensors(json.dumps({"critic.a": entry, "critic.c": entry}).encode(), bytes(20))


def npy(descr: str, shape: int, numbers: bytes = b"") -> bytes:
    """A file of numpy's with this header."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape},), }}"
    line = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + numbers


def array(
    data: Callable[[], bytes], dtype: str = "uint8", count: int = 1, stype: str = "numpy.ndarray"
) -> Prepare:
    """Flower's own array is another one."""

    def make(content: RecordDict) -> RecordDict:
        made = Array(dtype=dtype, shape=(count,), stype=stype, data=data())
        return RecordDict({"sealed": content["sealed"], "payload": ArrayRecord({"payload": made})})

    return record(make)


def head(**changes: Any) -> Prepare:
    """The record of header and signature is another one."""

    def make(content: RecordDict) -> RecordDict:
        found = dict(content.config_records["sealed"]) | changes
        return RecordDict({"sealed": ConfigRecord(found), "payload": content["payload"]})

    return record(make)


def two_arrays(content: RecordDict) -> RecordDict:
    """An array more than the payload."""
    arrays = dict(content.array_records["payload"])
    arrays["more"] = Array(np.zeros(1, np.uint8))
    return RecordDict({"sealed": content["sealed"], "payload": ArrayRecord(arrays)})


def signed(key: signing.Ed25519PrivateKey | None, namespace: str) -> Prepare:
    """Signed by another key, or for another purpose."""
    return spoiled(
        lambda sealed, own: Sealed(
            sealed.header, sealed.payload, signing.sign(key or own, namespace, sealed.header)
        )
    )


PAYLOADS = [
    Case("a tensor of 70 dimensions", described("F32", [0] * 70), DAMAGED),
    Case("a tensor of 0 × 2^39 × 2^39", described("F32", [0, 1 << 39, 1 << 39]), DAMAGED),
    Case("a tensor of -1 × -1", described("F32", [-1, -1], 0, 4), DAMAGED),
    Case("a shape of false", described("F32", [False]), DAMAGED),
    Case("an unknown dtype", described("O", [0]), DAMAGED),
    Case("offsets that run backwards", described("F32", [0], 4, 0), DAMAGED),
    Case(
        "a tensor of 2^38 bytes that are not there", described("U8", [1 << 38], 0, 1 << 38), DAMAGED
    ),
    Case("a description that is a list", payload(lambda _: as_safetensors(b'{"a":[1]}')), DAMAGED),
    Case(
        "a length of 2^63 before the header",
        payload(lambda p: b"\xff" * 7 + b"\x7f" + p[8:]),
        DAMAGED,
    ),
    Case(
        "a payload that nests 300,000 lists",
        payload(lambda _: as_safetensors(b"[" * 300_000)),
        DAMAGED,
    ),
    Case("metadata beside the tensors", with_metadata("Doe^Jane"), SPELLING),
    Case("a megabyte of metadata", with_metadata("x" * 1_000_000), SPELLING),
    Case("another spelling of the same tensors", payload(spelled_otherwise), SPELLING),
    Case("a byte behind the tensors", payload(lambda p: p + b"\0"), DAMAGED),
    Case("two tensors on the same bytes", payload(overlapping), DAMAGED),
    Case("a payload without a byte", payload(lambda _: b""), DAMAGED),
    Case("a pickle as payload", payload(lambda _: pickle.dumps(Touch())), DAMAGED),
    Case(
        "a payload that changed on the way",
        spoiled(lambda s, _: Sealed(s.header, s.payload[:-1] + b"\x01", s.signature)),
        ("E-DIGEST",),
    ),
    Case("the digest of something else", header(digest="0" * 64), ("E-DIGEST",)),
]
SIGNATURES = [
    Case(
        "a byte that is no ASCII in the signature",
        signature(lambda s: s[:60] + b"\xe9" + s[61:]),
        SIGNATURE,
    ),
    Case("a signature without a byte", signature(lambda _: b""), SIGNATURE),
    Case("a signature of a megabyte", signature(lambda _: b"A" * (1 << 20)), SIGNATURE),
    Case("a signature cut in half", signature(lambda s: s[: len(s) // 2]), SIGNATURE),
    Case("a signature by another key", signed(signing.new_key(), signing.MESSAGE), SIGNATURE),
    Case("a signature made for a plan", signed(None, signing.PLAN), SIGNATURE),
]
RECORDS = [
    Case("an empty record", record(lambda c: RecordDict({})), RECORD),
    Case(
        "a record more",
        record(lambda c: RecordDict({**c, "metrics": MetricRecord({"loss": 0.1})})),
        RECORD,
    ),
    Case(
        "a record of another kind",
        record(lambda c: RecordDict({"sealed": MetricRecord({"a": 1}), "payload": c["payload"]})),
        RECORD,
    ),
    Case("an array more", record(two_arrays), RECORD),
    Case("a header of text", head(header="Doe^Jane"), RECORD),
    Case("a signature of numbers", head(signature=[1, 2]), RECORD),
    Case("a key more beside the header", head(note=b"Doe^Jane"), RECORD),
    Case("ten megabytes beside the header", head(note=b"x" * 10_000_000), RECORD),
    Case("a payload of floats", array(lambda: npy("<f4", 1, bytes(4)), "float32"), RECORD),
    Case(
        "an array of pickled objects", array(lambda: npy("|O", 1, pickle.dumps([Touch()]))), RECORD
    ),
    Case(
        "an array in a stream of pickles",
        array(lambda: pickle.dumps(Touch()), stype="cpickle"),
        RECORD,
    ),
    Case(
        "an array that claims 2^40 bytes", array(lambda: npy("|u1", 1 << 40), count=1 << 40), RECORD
    ),
    Case("an array that is no array", array(lambda: b"Doe^Jane"), RECORD),
]
