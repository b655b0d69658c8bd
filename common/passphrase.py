"""The passphrase that opens protected keys: from a file descriptor or a credential of systemd.

In: a descriptor, or the file `kohort-passphrase` in $CREDENTIALS_DIRECTORY. Out: its bytes.
Guarantees: it stands on no command line and in no environment, where only a descriptor's number
does; children read it from a sealed file in memory.
Not covered: root, and this account before the process has started.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from common.errors import ConfigurationError
from common.storage.files import read_capped

VARIABLE = "KOHORT_PASSPHRASE_FD"
CREDENTIALS = "CREDENTIALS_DIRECTORY"  # systemd sets it
CREDENTIAL = "kohort-passphrase"
CAP_BYTES = 1024
CODE = "E-PASSPHRASE"


def read_descriptor(descriptor: int) -> bytes:
    """Return what a descriptor holds, without the line's end; raises ConfigurationError."""
    found = b""
    try:
        while len(found) <= CAP_BYTES:
            piece = os.read(descriptor, CAP_BYTES + 1)
            if not piece:
                break
            found += piece
    except OSError as error:
        raise ConfigurationError(
            f"descriptor {descriptor}: {error.strerror}",
            hint="open it in the shell: `--passphrase-fd 3` before the command, and `3< FILE`",
            code=CODE,
        ) from error
    return _checked(found, f"descriptor {descriptor}")


def offer(passphrase: bytes) -> None:
    """Keep a passphrase in memory, for this process and for children that inherit it."""
    descriptor = os.memfd_create("kohort", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, passphrase)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    os.environ[VARIABLE] = str(descriptor)


def descriptors() -> tuple[int, ...]:
    """Return what a child must inherit to read the passphrase; nothing without one."""
    text = os.environ.get(VARIABLE, "")
    return (int(text),) if text.isdigit() else ()


def current() -> bytes | None:
    """Return the passphrase that this process was given, or None."""
    for descriptor in descriptors():
        try:
            return _checked(os.pread(descriptor, CAP_BYTES + 1, 0), "passphrase")
        except OSError:
            return None
    folder = os.environ.get(CREDENTIALS, "")
    path = Path(folder) / CREDENTIAL
    if folder and path.is_file():
        return _checked(read_capped(path, CAP_BYTES), str(path))
    return None


def needed(path: Path) -> bytes:
    """Return the passphrase for a protected key; raises ConfigurationError without one."""
    found = current()
    if found is None:
        raise ConfigurationError(
            f"{path}: protected by a passphrase, and none was given",
            hint="give `--passphrase-fd 3` before the command and `3< FILE`, or systemd's "
            f"LoadCredential={CREDENTIAL}:FILE",
            code=CODE,
        )
    return found


def wrong(path: Path) -> ConfigurationError:
    """Return the error of a passphrase that does not open a key."""
    return ConfigurationError(
        f"{path}: the passphrase does not open it",
        hint="give the one with which `protect` closed it",
        code=CODE,
    )


def _checked(found: bytes, where: str) -> bytes:
    """A passphrase without its line's end, of a sensible length."""
    bare = found.rstrip(b"\r\n")
    if len(found) > CAP_BYTES or not bare:
        raise ConfigurationError(
            f"{where}: expected a passphrase of 1 to {CAP_BYTES} bytes, got {len(found)}",
            hint="one line in a file that only its owner reads",
            code=CODE,
        )
    return bare
