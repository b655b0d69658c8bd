"""The one exception tree, split by whose fault an error is.

    KohortError
    ├── RefusedError        exit 1   an artefact, payload or signature is not what it claims to be
    ├── ConfigurationError  exit 2   a file, option or argument that somebody wrote is wrong
    ├── PolicyError         exit 3   the site's cap, policy or missing approval forbids it
    ├── PeerError           exit 4   the other side is absent, or gives a wrong answer
    ├── EnvironmentFault    exit 5   this machine: disk, lock, permission, missing program
    └── Bug                 exit 70  an invariant of kohort itself is broken

A message says what, where, expected against got; `hint` is the fix.
`code` is stable, and it is the only part that may cross the hospital's line.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class KohortError(Exception):
    """Base of all errors that a person is meant to read."""

    exit_code = 70
    default_code = "E-BUG"

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code or self.default_code


class RefusedError(KohortError):
    """An artefact was checked and refused."""

    exit_code = 1
    default_code = "E-REFUSED"


class ConfigurationError(KohortError):
    """Something that a person wrote is wrong; `problems` lists everything at once."""

    exit_code = 2
    default_code = "E-CONFIG"

    def __init__(
        self, message: str, *, hint: str = "", code: str | None = None, problems: Sequence[str] = ()
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.problems = tuple(problems)


class PolicyError(KohortError):
    """The site's own policy, its budget or its staff has not allowed this."""

    exit_code = 3
    default_code = "E-POLICY"


class PeerError(KohortError):
    """The other side cannot be reached or misbehaves."""

    exit_code = 4
    default_code = "E-PEER"


class EnvironmentFault(KohortError):
    """This machine cannot do it now: disk, lock, permission, missing program."""

    exit_code = 5
    default_code = "E-ENVIRONMENT"


class Bug(KohortError):
    """An invariant of kohort itself is broken."""


@contextmanager
def damage_named(error: KohortError) -> Iterator[None]:
    """Raise `error` for whatever a reader raises over foreign bytes, whoever wrote the reader.

    Our own errors pass, and so does what this machine lacks: memory, or a disk that can be read.
    """
    try:
        yield
    except (KohortError, MemoryError):
        raise
    except OSError as cause:
        if cause.errno is not None:
            raise
        raise error from cause
    except Exception as cause:
        raise error from cause


@contextmanager
def disk_faults_named(what: str, where: Path) -> Iterator[None]:
    """Turn an operating-system error on `where` into an EnvironmentFault that says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        hint = "check the path and its owner"
        code = None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space there and start again; nothing was lost"
            code = "E-DISK-FULL"
        raise EnvironmentFault(f"{what} {where}: {reason}", hint=hint, code=code) from error
