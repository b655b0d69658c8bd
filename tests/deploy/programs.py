"""Our programs' commands as data: whether a command line that a file shows can be typed."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path

import click
import typer

from client.cli.main import app as site_app
from kohort.commands import app as researcher_app
from server.cli.main import app as server_app

APPS = {"kohort-site": site_app, "kohort-server": server_app, "kohort": researcher_app}


@cache
def program(name: str) -> click.Command:
    """A program with its commands."""
    return typer.main.get_command(APPS[name])


def check_line(words: list[str]) -> None:
    """Fail unless the words are a program of ours, a command of it, and options that it has."""
    command = program(Path(words[0]).name)
    for word in words[1:]:
        if isinstance(command, click.Group) and not word.startswith("-"):
            inner = command.commands.get(word)
            if inner is not None:
                command = inner
                continue
            assert command.invoke_without_command, f"{shlex.join(words)}: no command {word}"
        if word.startswith("--"):
            known = [option for one in command.params for option in one.opts + one.secondary_opts]
            assert word.partition("=")[0] in [*known, "--help"], f"{shlex.join(words)}: {word}"
    assert not isinstance(command, click.Group) or command.invoke_without_command, words


def is_ours(word: str) -> bool:
    """Whether a word names one of our programs."""
    return Path(word).name in APPS
