"""Turns what a decoding child answered into bytes, and back: values without files.

In: an outcome: any of the answers of request.py, a reason, or a refusal. Out: bytes, and the same
outcome again.
Guarantees: what comes back equals what went in; only types that are listed here come back, and
nothing of it is code.
Not covered: who wrote the bytes (finished.py seals them).
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.ingest import request
from client.ingest.decode import Refused
from client.ingest.quarantine import Reason, Unusable

ANSWERS: dict[str, Any] = {name: kind for name, kind in vars(request).items() if is_dataclass(kind)}
HEAD_BYTES = 4  # before the JSON: its length


def pack(outcome: object) -> bytes:
    """Return an outcome as bytes: JSON, then the bytes of its arrays. Raises TypeError."""
    arrays: list[NDArray[Any]] = []
    head = json.dumps(_plain(outcome, arrays)).encode()
    parts = [len(head).to_bytes(HEAD_BYTES, "big"), head]
    parts += [np.ascontiguousarray(array).tobytes() for array in arrays]
    return b"".join(parts)


def unpack(data: bytes) -> Any:
    """Return the outcome that was packed into `data`."""
    rest = io.BytesIO(data)
    head = rest.read(int.from_bytes(rest.read(HEAD_BYTES), "big"))
    return _value(json.loads(head), rest)


def _plain(value: object, arrays: list[NDArray[Any]]) -> object:
    """A value as JSON, each type that JSON lacks as [its name, ...]; arrays are set aside."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, tuple):
        return ["tuple", [_plain(item, arrays) for item in value]]
    if isinstance(value, Mapping):
        return ["map", [[_plain(key, arrays), _plain(value[key], arrays)] for key in value]]
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return ["array", value.dtype.str, list(value.shape)]
    if isinstance(value, Reason):
        return ["reason", value.value]
    if isinstance(value, Refused):
        return ["refused", value.reason.value, value.at, value.ends]
    if isinstance(value, Unusable):
        return ["unusable", value.reason.value]
    name = type(value).__name__
    if ANSWERS.get(name) is not type(value):
        raise TypeError(f"{name}: not an answer of a decoding child")
    members = {one.name: getattr(value, one.name) for one in fields(ANSWERS[name])}
    return [name, {key: _plain(member, arrays) for key, member in members.items()}]


def _value(plain: Any, rest: io.BytesIO) -> Any:
    """The value of what `_plain` returned; arrays are read from `rest`, one after the other."""
    if not isinstance(plain, list):
        return plain
    kind, *parts = plain
    if kind == "bytes":
        return bytes.fromhex(parts[0])
    if kind == "tuple":
        return tuple(_value(item, rest) for item in parts[0])
    if kind == "map":
        return {_value(key, rest): _value(item, rest) for key, item in parts[0]}
    if kind == "array":
        dtype, shape = np.dtype(parts[0]), tuple(parts[1])
        return np.frombuffer(rest.read(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
    if kind == "reason":
        return Reason(parts[0])
    if kind == "refused":
        return Refused(Reason(parts[0]), parts[1], ends=parts[2])
    if kind == "unusable":
        return Unusable(Reason(parts[0]))
    return ANSWERS[kind](**{key: _value(member, rest) for key, member in parts[0].items()})
