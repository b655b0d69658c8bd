"""The one exception tree of kohort, split by whose fault it is.

    KohortError
    ├── RefusedError        exit 1   an artefact, payload or signature is not what it claims to be
    ├── ConfigurationError  exit 2   a file, option or argument that somebody wrote is wrong
    ├── PolicyError         exit 3   allowed by nobody here: the site's cap, its policy, an unapproved plan
    ├── PeerError           exit 4   the other side is absent, or answers what it should not
    ├── EnvironmentFault    exit 5   this machine: disk, lock, permission, missing program
    └── Bug                 exit 70  an invariant of ours is broken

A message says what, where, expected against got; `hint` is the fix. `code` is stable and is the only part that may
cross the hospital's line. Exit 130 is ctrl-C. Only `main()` functions print and exit.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator, Sequence
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
def disk_faults_named(what: str, where: Path) -> Iterator[None]:
    """Turn an operating-system error on `where` into an EnvironmentFault that says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = (
            "free some space there and start again; nothing was lost"
            if full
            else "check the path and its owner"
        )
        reason = error.strerror or type(error).__name__
        raise EnvironmentFault(
            f"{what} {where}: {reason}", hint=hint, code="E-DISK-FULL" if full else None
        ) from error


def run_command(program: str, command: Callable[[], None]) -> int:
    """Return the exit code of `command`, with a KohortError printed as `program: error:` and `program: hint:` lines."""
    try:
        command()
    except KohortError as error:
        problems = getattr(error, "problems", ())
        for line in problems or (str(error),):
            sys.stderr.write(f"{program}: error: {line}\n")
        if error.hint:
            sys.stderr.write(f"{program}: hint: {error.hint}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write(f"{program}: interrupted; what was journaled is kept\n")
        return 130
    return 0
