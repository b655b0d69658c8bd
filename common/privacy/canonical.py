"""The canonical JSON of a mechanism, and the check of one of its fields."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from common.errors import ConfigurationError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def canonical_event(kind: str, mechanism: DataclassInstance) -> str:
    """Return the JSON that the ledger hashes: the kind and all fields, sorted, without spaces."""
    fields = {"mechanism": kind, **asdict(mechanism)}
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)


def require(name: str, value: object, holds: bool, expected: str) -> None:
    """Raise ConfigurationError unless the check of a mechanism's field holds."""
    if not holds:
        raise ConfigurationError(f"mechanism: {name}: expected {expected}, got {value!r}")


def is_positive(value: float) -> bool:
    """Return whether a number is positive and finite."""
    return 0.0 < value < math.inf


def is_count(value: object) -> bool:
    """Return whether a value is a whole number from 1."""
    return isinstance(value, int) and value >= 1
