"""How a command line ends: exit codes, and errors in words."""

import pytest

from common.errors import PolicyError
from kohort.console import run_typer


@pytest.mark.parametrize(("given", "code"), [(None, 0), (0, 0), (4, 4), (130, 130)])
def test_the_code_of_a_command_is_the_code_of_the_program(given: object, code: int) -> None:
    assert run_typer("kohort", lambda: given) == code


def test_an_error_of_ours_has_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise PolicyError("no", hint="ask")

    assert run_typer("kohort-site", refuse) == 3
    assert capsys.readouterr().err == "kohort-site: error: no\nkohort-site: hint: ask\n"
