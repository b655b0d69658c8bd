"""How a command line ends: exit codes, and errors in words."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pytest

from kohort.console import plain, run_command, run_typer
from kohort.errors import EnvironmentFault, PolicyError


def test_a_path_that_nothing_else_named_ends_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/var/lib/kohort/keys")

    assert run_command("kohort", command) == EnvironmentFault.exit_code
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "kohort: error: /var/lib/kohort/keys: Permission denied"
    assert hint.startswith("kohort: hint: check the path")


FAULTS = [OSError("no path"), ValueError("PATIENT-7"), KeyError("PATIENT-8")]


@pytest.mark.parametrize("error", FAULTS)
def test_a_fault_of_ours_ends_with_70_and_keeps_its_traceback_to_this_user(
    error: Exception,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def command() -> None:
        raise error

    assert run_command("kohort", command) == 70
    said = capsys.readouterr().err
    assert str(error.args[0]) not in said and type(error).__name__ in said
    [file] = tmp_path.iterdir()
    assert str(file) in said
    assert file.stat().st_mode & 0o777 == 0o600
    assert str(error.args[0]) in file.read_text() and "Traceback" in file.read_text()


@pytest.mark.parametrize(("given", "code"), [(None, 0), (0, 0), (4, 4), (130, 130)])
def test_the_code_of_a_command_is_the_code_of_the_program(given: object, code: int) -> None:
    assert run_typer("kohort", lambda: given) == code


def test_an_error_of_ours_has_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise PolicyError("no", hint="ask")

    assert run_typer("kohort-site", refuse) == 3
    assert capsys.readouterr().err == "kohort-site: error: no\nkohort-site: hint: ask\n"


def test_a_full_disk_is_this_machines_fault_and_not_ours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert run_command("kohort", command) == EnvironmentFault.exit_code
    assert "free some space" in capsys.readouterr().err


def test_a_strangers_words_steer_no_terminal() -> None:
    assert plain("a\x1b[2J\x07\ud800\nb\tc") == "a\ufffd[2J\ufffd\ufffd\nb\tc"
