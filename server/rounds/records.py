"""Sealed messages as Flower records, and back."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common.errors import RefusedError
from common.wire.messages import Sealed
from common.wire.tensors import npy_bytes


def record_of(sealed: Sealed) -> RecordDict:
    """Return the Flower record of one sealed message."""
    head = ConfigRecord({"header": sealed.header, "signature": sealed.signature})
    payload = Array(np.frombuffer(sealed.payload, np.uint8))
    return RecordDict({"sealed": head, "payload": ArrayRecord({"payload": payload})})


def sealed_of(record: RecordDict) -> Sealed:
    """Return the sealed message in a Flower record.

    Raises RefusedError (E-RECORD) for any other content.
    """
    head = record.get("sealed")
    arrays = record.get("payload")
    if len(record) != 2 or not isinstance(head, ConfigRecord) or len(head) != 2:
        raise _refusal("expected one sealed message: header, signature, payload")
    if not isinstance(arrays, ArrayRecord) or len(arrays) != 1:
        raise _refusal("expected one payload")
    header = head.get("header")
    signature = head.get("signature")
    payload = arrays.get("payload")
    if not isinstance(header, bytes) or not isinstance(signature, bytes):
        raise _refusal("header and signature are not bytes")
    if not isinstance(payload, Array) or payload.dtype != "uint8":
        raise _refusal("the payload is not an array of bytes")
    return Sealed(header, _bytes_of(payload), signature)


def _bytes_of(payload: Array) -> bytes:
    """The bytes of an array from outside."""
    if payload.stype != "numpy.ndarray":
        raise _refusal("the payload is not an array")
    try:
        return npy_bytes(payload.data)
    except RefusedError as error:
        raise _refusal("the payload is not an array") from error


def _refusal(what: str) -> RefusedError:
    return RefusedError(f"record: {what}", code="E-RECORD")
