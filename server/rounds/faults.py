"""Whose fault an exception is while a site's bytes are handled: the site's, or this machine's.

The site goes into quarantine for its own; what this machine lacks, or a broken invariant of ours,
ends the study's process, which is started again.
"""

from __future__ import annotations

import struct

from google.protobuf.message import DecodeError

from common.errors import Bug, EnvironmentFault

CODE = "E-INTAKE-BUG"
TOO_LARGE = "E-INTAKE-SIZE"
OURS = (MemoryError, OSError, Bug, EnvironmentFault)
# what unpacking hostile objects raises inside Flower
UNPACKING = (
    LookupError,
    AttributeError,
    ValueError,
    TypeError,
    ArithmeticError,
    AssertionError,
    RecursionError,
    struct.error,
    DecodeError,
)


class Oversized(ValueError):
    """A reply holds more objects or bytes than any reply may; it was not assembled."""


def code_of(error: BaseException) -> str:
    """Return the code under which a site goes into quarantine for what its objects raised."""
    if isinstance(error.__cause__, Oversized):
        return TOO_LARGE
    return CODE
