"""The child processes of the demo: run a command, keep daemons, end them all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import PeerError
from common.process import end_with_parent

STOP_S = 15.0


@dataclass
class Processes:
    """The child processes of one rehearsal and their logs."""

    logs: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """Return the environment of a child: no telemetry, and one thread for each process.

        About twenty processes load the same libraries. Where Python may not keep compiled modules
        beside their source, the demo's own folder keeps them.
        """
        environment = {
            **os.environ,
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
        }
        if sys.dont_write_bytecode:
            environment["PYTHONDONTWRITEBYTECODE"] = ""
            environment["PYTHONPYCACHEPREFIX"] = str(self.logs.parent / "work" / "bytecode")
        return environment

    def do(self, program: str, *arguments: str) -> str:
        """Run one command to its end and return its standard output.

        Raises PeerError, with the end of its standard error, for a command that fails.
        """
        done = subprocess.run(
            _command(program, arguments),
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=end_with_parent,
            env=self.environment(),
        )
        if done.returncode:
            raise PeerError(
                f"`{program} {' '.join(arguments)}` ended with {done.returncode}:\n"
                f"{done.stderr[-2000:].strip()}"
            )
        return done.stdout

    def start(self, name: str, program: str, *arguments: str) -> None:
        """Start a daemon whose output goes to its own log."""
        with open(self.logs / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(
                _command(program, arguments),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=end_with_parent,
                start_new_session=True,
                env=self.environment(),
            )

    def check(self) -> None:
        """Raise PeerError if a daemon ended with an error."""
        for name, process in self.running.items():
            if process.poll() not in (None, 0):
                tail = (self.logs / f"{name}.log").read_text(errors="replace")[-2000:].strip()
                raise PeerError(
                    f"{name} ended with {process.returncode}; the end of its log:\n{tail}"
                )

    def done(self, names: Sequence[str]) -> bool:
        """Return whether these daemons have ended by themselves."""
        return all(self.running[name].poll() == 0 for name in names)

    def stop(self) -> None:
        """End every process that is still there: by SIGTERM, then by SIGKILL."""
        alive = [process for process in self.running.values() if process.poll() is None]
        for process in alive:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for process in alive:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _command(program: str, arguments: Sequence[str]) -> list[str]:
    """The installed console script beside this Python."""
    return [str(Path(sys.executable).parent / program), *arguments]
