"""What this site shows to the DICOMweb server: from a file descriptor or a credential of systemd.

In: a descriptor, or the file `kohort-dicomweb` in $CREDENTIALS_DIRECTORY.
Out: the value of the header Authorization, or None.
Guarantees: it stands on no command line, in no environment and in no message.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

from common.errors import ConfigurationError
from common.storage.files import read_capped

DIRECTORY = "CREDENTIALS_DIRECTORY"  # systemd sets it
NAME = "kohort-dicomweb"
CAP_BYTES = 16_384
BEARER = "Bearer "


def read_credential(descriptor: int | None) -> str | None:
    """Return the header's value; None where no credential is offered. Raises ConfigurationError.

    One line: USER:PASSWORD, or `Bearer TOKEN`.
    """
    if descriptor is not None:
        return _header(_read(descriptor))
    folder = os.environ.get(DIRECTORY)
    if folder and (Path(folder) / NAME).is_file():
        return _header(read_capped(Path(folder) / NAME, CAP_BYTES))
    return None


def _read(descriptor: int) -> bytes:
    """What a descriptor holds, up to one byte above the cap."""
    found = b""
    try:
        while len(found) <= CAP_BYTES and (piece := os.read(descriptor, CAP_BYTES)):
            found += piece
    except OSError as error:
        raise _refuse(f"descriptor {descriptor} cannot be read") from error
    return found


def _header(data: bytes) -> str:
    """The value of Authorization."""
    try:
        line = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise _refuse("the credential is not UTF-8") from error
    if len(data) > CAP_BYTES or not line.isprintable():
        raise _refuse("the credential is not one line")
    if line.startswith(BEARER) and line.isascii() and " " not in line.removeprefix(BEARER):
        return line
    if ":" not in line:
        raise _refuse("the credential is neither USER:PASSWORD nor `Bearer TOKEN`")
    return "Basic " + base64.b64encode(line.encode()).decode()


def _refuse(what: str) -> ConfigurationError:
    hint = "one line, USER:PASSWORD or `Bearer TOKEN`: `--credential-fd 3` and `3< FILE`"
    return ConfigurationError(what, hint=hint, code="E-DICOMWEB")
