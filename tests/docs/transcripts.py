"""Reads and runs the transcripts of a guide: its fenced `console` blocks, in order, in one folder.

    ```console                  each `$ command` is run, its output compared with the lines below;
    $ kohort-site status        `...` stands for anything, alone on a line for any lines
    ...
    ```
    <!-- exit 3 -->             before a block: its last command ends with 3
    <!-- not run: why -->       before a block: shown only
    <!-- run: command -->       run, and shown to nobody
    ```csv title="/data/x.csv"  a file that is written before the next command

Absolute paths of the guide are below the folder: /var/lib/kohort is FOLDER/var/lib/kohort.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

Doings = Mapping[str, Callable[[Path], None]]
Program = Callable[[list[str]], int]  # takes arguments, returns its exit code

FENCE = re.compile(
    r"<!-- (?P<note>(?:exit|not run|run)[^\n]*?) -->"
    r"|^```(?P<kind>\w+)(?P<info>[^\n]*)\n(?P<body>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
TITLE = re.compile(r'title="(/[^"]+)"')
ROOTS = ("/var/lib/", "/data/", "/srv/")


@dataclass(frozen=True)
class Step:
    """One command with the output that the guide shows; `shown` None: whatever it prints."""

    command: str
    shown: str | None
    code: int
    line: int


@dataclass(frozen=True)
class File:
    """A file that the guide shows whole."""

    path: str
    text: str


Runner = Callable[[Step, Path, str], str]


def read_guide(text: str) -> Iterator[Step | File]:
    """Yield what a guide does, in order."""
    note = ""
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match["note"]:
            note = match["note"]
            if note.startswith("run:"):
                yield Step(note.removeprefix("run:").strip(), None, 0, line)
                note = ""
            continue
        title = TITLE.search(match["info"] or "")
        if title:
            yield File(title[1], match["body"])
        elif match["kind"] == "console" and not note.startswith("not run"):
            code = int(note.removeprefix("exit ")) if note.startswith("exit ") else 0
            yield from steps_of(match["body"], code, line)
        note = ""


def steps_of(body: str, code: int, line: int) -> Iterator[Step]:
    """Yield the commands of one block; the last one ends with `code`."""
    parts = re.split(r"^\$ ", body, flags=re.MULTILINE)
    assert not parts[0].strip(), f"line {line}: a console block begins with `$ command`"
    for number, part in enumerate(parts[1:], start=2):
        command, _, shown = part.partition("\n")
        while command.endswith("\\"):
            more, _, shown = shown.partition("\n")
            command = command.removesuffix("\\") + more.removeprefix("> ")
        yield Step(command, shown, code if number == len(parts) else 0, line)


def below(folder: Path, text: str) -> str:
    """Return a command with the guide's absolute paths below `folder`."""
    for root in ROOTS:
        text = re.sub(rf"(?<![\w/]){root}", f"{folder}{root}", text)
    return text


def run(step: Step, folder: Path, page: str) -> str:
    """Run one command as a reader would type it; return what it prints, with the guide's paths."""
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",  # output and errors in the order in which a terminal shows them
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "COLUMNS": "100",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-c", below(folder, step.command)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    printed = done.stdout.replace(str(folder), "")
    assert done.returncode == step.code, (
        f"{page}:{step.line}: `{step.command}` ended with {done.returncode}, "
        f"expected {step.code}:\n{printed}"
    )
    return printed


def run_here(
    step: Step, folder: Path, page: str, programs: Mapping[str, Program], doings: Doings
) -> str:
    """Run one command as `run` does, a program of ours within this process: that takes no second.

    `doings`: what the guide's hidden commands of that name do.
    """
    name, *arguments = shlex.split(below(folder, step.command))
    if step.command in doings:
        doings[step.command](folder)
        return ""
    if name not in programs:
        return run(step, folder, page)
    out = io.StringIO()
    with chdir(folder), redirect_stdout(out), redirect_stderr(out):
        code = programs[name](arguments)
    printed = out.getvalue().replace(str(folder), "")
    assert code == step.code, f"{page}:{step.line}: `{step.command}` ended with {code}:\n{printed}"
    return printed


def fits(printed: str, shown: str) -> bool:
    """Return whether an output is the one that is shown, `...` standing for anything."""
    pattern = ""
    for line in shown.strip().splitlines():
        if line.strip() == "...":
            pattern += r"(?:[^\n]*\n)*"
        else:
            pattern += (
                ".*?".join(re.escape(part) for part in line.rstrip().split("...")) + r"[ ]*\n"
            )
    return re.fullmatch(pattern, printed.strip() + "\n" if printed.strip() else "") is not None


def play(pages: dict[str, str], folder: Path) -> int:
    """Do everything that a guide's pages do; return how many commands were compared."""
    return sum(play_page(name, text, folder) for name, text in pages.items())


def play_page(name: str, text: str, folder: Path, runner: Runner = run) -> int:
    """Do everything that one page does; return how many commands were compared."""
    compared = 0
    for step in read_guide(text):
        if isinstance(step, File):
            path = Path(below(folder, step.path))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text)
            continue
        printed = runner(step, folder, name)
        if step.shown is not None:
            compared += 1
            assert fits(printed, step.shown), (
                f"{name}:{step.line}: `{step.command}` printed\n{printed}\n"
                f"the guide shows\n{step.shown}"
            )
    return compared
