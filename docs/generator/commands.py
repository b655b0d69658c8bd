"""The three command lines, as `--help` prints them."""

from __future__ import annotations

import click
import typer

from docs.generator.markdown import fenced, page

HELP_WIDTH = 96


def command_pages() -> dict[str, str]:
    """Return a page a program, each command with its `--help`."""
    from client.cli.main import app as site
    from kohort.commands import app as researcher
    from server.cli.main import app as operator
    from server.demo.rehearsal import app as demo

    return {
        "kohort-site.md": program_page("kohort-site", site, "Hospital IT runs it"),
        "kohort-server.md": program_page("kohort-server", operator, "The operator runs it"),
        "kohort.md": program_page("kohort", researcher, "A researcher runs it", demo=demo),
    }


def program_page(program: str, app: typer.Typer, who: str, demo: typer.Typer | None = None) -> str:
    """Return the page of one program."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    lines = [f"{who}. Every command takes `--help`.", "", *fenced("text", help_of(group, program))]
    for name, command in group.commands.items():
        if name == "demo" and demo is not None:
            command = typer.main.get_command(demo)
        lines += [f"## {name}", "", *fenced("text", help_of(command, f"{program} {name}"))]
    return page(program, *lines)


def help_of(command: click.Command, called: str) -> str:
    """Return the `--help` of a command at a fixed width."""
    context = click.Context(command, info_name=called, terminal_width=HELP_WIDTH)
    return command.get_help(context)
