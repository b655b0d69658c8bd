"""How a command line ends: an exit code, and an error in words on standard error.

Exit codes: those of kohort/errors.py; 0 is success and 130 is ctrl-C. A fault of ours ends with
70, its traceback in a file that only this user can read.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Callable

import click
import typer.core

from kohort.errors import Bug, ConfigurationError, EnvironmentFault, KohortError

INTERRUPTED = 130
FULL = (errno.ENOSPC, errno.EDQUOT)
MACHINE = (*FULL, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE)
# typer escapes brackets for rich even where its help is plain text
typer.core.HAS_RICH = False


def run_command(program: str, command: Callable[[], None]) -> int:
    """Return the exit code of `command`; a KohortError is printed as error and hint lines."""
    try:
        command()
    except BrokenPipeError:  # who read the output has gone
        return INTERRUPTED
    except OSError as error:  # of a path that nothing else has named
        if error.filename is None and error.errno not in MACHINE:
            return _end_with_bug(program, error)
        reason = error.strerror or type(error).__name__
        what = error.filename or "this machine"
        sys.stderr.write(f"{program}: error: {what}: {reason}\n")
        sys.stderr.write(f"{program}: hint: {_machine_hint(error)}\n")
        return EnvironmentFault.exit_code
    except KohortError as error:
        problems = getattr(error, "problems", ())
        for line in problems or (str(error),):
            sys.stderr.write(plain(f"{program}: error: {line}\n"))
        if error.hint:
            sys.stderr.write(plain(f"{program}: hint: {error.hint}\n"))
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write(f"{program}: interrupted; what was journaled is kept\n")
        return INTERRUPTED
    except Exception as error:
        return _end_with_bug(program, error)
    return 0


def plain(text: str) -> str:
    """Return a text without what steers a terminal: a stranger's words may stand in it."""
    return "".join(one if one.isprintable() or one in "\n\t" else "\ufffd" for one in text)


def warn(program: str, message: str, hint: str) -> None:
    """Print a warning and its hint on standard error; the exit code stays as it is."""
    sys.stderr.write(plain(f"{program}: warning: {message}\n{program}: hint: {hint}\n"))


def _machine_hint(error: OSError) -> str:
    """What to do about an error of the operating system."""
    if error.errno in FULL:
        return "free some space there and start again; what was journaled is kept"
    return "check the path, its owner and this user's rights"


def _end_with_bug(program: str, error: Exception) -> int:
    """Write the traceback to a file of this user's, and name it; its text may hold what is private.

    Returns the exit code.
    """
    kind = type(error).__name__
    try:
        handle, name = tempfile.mkstemp(prefix=f"{program}-fault-", suffix=".txt")
        with os.fdopen(handle, "w") as file:
            file.write("".join(traceback.format_exception(error)))
        where = f"read {name}, which stays on this machine; report it without what is private"
    except OSError:
        where = "its traceback could not be written"
    sys.stderr.write(
        f"{program}: error: a fault of kohort itself ({kind}); what was journaled is kept\n"
    )
    sys.stderr.write(f"{program}: hint: {where}\n")
    return Bug.exit_code


def run_typer(program: str, command: Callable[[], object]) -> int:
    """Return the exit code of a typer application, usage errors and ctrl-C included."""
    code = 0

    def call() -> None:
        nonlocal code
        try:
            given = command()  # typer returns the code of an Exit, and 130 for ctrl-C
        except click.exceptions.Abort as error:
            raise KeyboardInterrupt from error
        except click.exceptions.NoArgsIsHelpError as error:
            sys.stderr.write(error.format_message() + "\n")
            code = error.exit_code
            return
        except click.ClickException as error:
            raise ConfigurationError(
                error.format_message(), hint=_help_for(program, error)
            ) from error
        code = given if isinstance(given, int) else 0
        if code == INTERRUPTED:
            raise KeyboardInterrupt

    return run_command(program, call) or code


def _help_for(program: str, error: click.ClickException) -> str:
    """Where the right words stand: in the help of the command that was typed, or of the program."""
    context = getattr(error, "ctx", None)
    if context is None or context.parent is None:
        return f"`{program} --help` lists the commands"
    return f"`{program} {context.info_name} --help` lists its arguments and options"
