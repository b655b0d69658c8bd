"""Flower's command line, loaded once: a resident child process runs its commands one by one.

A `flwr` process spends three seconds of CPU on imports, a command itself a few milliseconds.
In: the arguments of one `flwr` command. Out: its exit code and what it printed.
Guarantees: the child is the program beside this interpreter; it ends when this process does, for
its input closes; it is started anew if it dies or hangs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import select
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import PeerError


@dataclass(frozen=True)
class Printed:
    """What a command left: its exit code and its output, both streams together."""

    code: int
    text: str


class FlowerCli:
    """Commands of the program `flwr` in one child; one at a time, from any thread."""

    def __init__(
        self, program: str, environment: Mapping[str, str], folder: Path, timeout_s: float
    ) -> None:
        self._command = [sys.executable, "-P", "-m", "server.flower.command_line", program]
        roots = [str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
        self._environment = {**environment, "PYTHONPATH": os.pathsep.join(filter(None, roots))}
        self._folder = folder
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def run(self, arguments: Sequence[str]) -> Printed:
        """Return what the command left; raises PeerError if it does not end in time."""
        with self._lock:
            for _ in range(2):
                child = self._running()
                try:
                    line = self._ask(child, json.dumps(list(arguments)))
                except OSError:
                    line = ""
                if line:
                    answer = json.loads(line)
                    return Printed(int(answer["code"]), str(answer["text"]))
                self._end()  # it died: once more with a new one
        raise PeerError(f"flwr {arguments[0]}: the program ends without an answer", code="E-FLOWER")

    def close(self) -> None:
        """End the child; the next command starts another."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[str]:
        """The child, started if there is none."""
        if self._child is None or self._child.poll() is not None:
            self._end()
            self._child = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        return self._child

    def _ask(self, child: subprocess.Popen[str], line: str) -> str:
        """One line in, one line out, within the time."""
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(line + "\n")
        child.stdin.flush()
        if not select.select([child.stdout], [], [], self._timeout_s)[0]:
            self._end()
            raise PeerError(f"flwr: no answer within {self._timeout_s:g} s", code="E-FLOWER")
        return child.stdout.readline()

    def _end(self) -> None:
        """Kill the child, if any."""
        child = self._child
        if child is None:
            return
        self._child = None
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def serve(program: str) -> None:
    """Run commands from standard input until it closes (the child's whole life)."""
    # Answers go where standard output went; what else prints goes nowhere.
    answers = os.fdopen(os.dup(1), "w")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    app = runpy.run_path(program, run_name="resident")["app"]
    for line in sys.stdin:
        answers.write(json.dumps(_run(app, json.loads(line))) + "\n")
        answers.flush()


def _run(app: Any, arguments: list[str]) -> dict[str, object]:
    """One command, with everything it prints caught.

    Flower writes its JSON to the interpreter's first output.
    """
    out = io.StringIO()
    first = sys.__stdout__, sys.__stderr__
    sys.__stdout__ = sys.__stderr__ = out  # type: ignore[misc,assignment]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            app(arguments, prog_name="flwr")
    except SystemExit as leaving:
        code = exit_code(leaving)
    except Exception as error:
        out.write(f"{type(error).__name__}: {error}")
        code = 1
    finally:
        sys.__stdout__, sys.__stderr__ = first  # type: ignore[misc]
    return {"code": code, "text": out.getvalue()}


def exit_code(leaving: SystemExit) -> int:
    """Return the exit code of a program that leaves: a text instead of a number means 1."""
    if isinstance(leaving.code, int):
        return leaving.code
    return int(leaving.code is not None)


if __name__ == "__main__":
    serve(sys.argv[1])
