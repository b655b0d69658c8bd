"""How a command line ends: exit codes, and errors in words."""

from __future__ import annotations

import errno

import pytest

from kohort.console import run_command, run_typer
from kohort.errors import EnvironmentFault, PolicyError


def test_a_path_that_nothing_else_named_ends_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/var/lib/kohort/keys")

    assert run_command("kohort", command) == EnvironmentFault.exit_code
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "kohort: error: /var/lib/kohort/keys: Permission denied"
    assert hint.startswith("kohort: hint: check the path")


def test_an_error_without_a_path_is_a_bug_and_shows_where() -> None:
    def command() -> None:
        raise OSError("no path")

    with pytest.raises(OSError, match="no path"):
        run_command("kohort", command)


@pytest.mark.parametrize(("given", "code"), [(None, 0), (0, 0), (4, 4), (130, 130)])
def test_the_code_of_a_command_is_the_code_of_the_program(given: object, code: int) -> None:
    assert run_typer("kohort", lambda: given) == code


def test_an_error_of_ours_has_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise PolicyError("no", hint="ask")

    assert run_typer("kohort-site", refuse) == 3
    assert capsys.readouterr().err == "kohort-site: error: no\nkohort-site: hint: ask\n"
