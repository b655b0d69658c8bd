"""One supervised program: started, started again when it dies, ended with everything it started."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from common.errors import EnvironmentFault
from common.process import end_with_parent
from server.flower.logs import cap_log

RESTART_DELAYS_S = (0.5, 1.0, 2.0, 5.0, 15.0)
STOP_TIMEOUT_S = 10.0
STOP_GRACE_S = 1.0  # for its own children; short, as a dead one may wait long to be reaped
log = logging.getLogger(__name__)


def program_path(name: str) -> str:
    """Return the program of this name beside the interpreter."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise EnvironmentFault(
            f"{path}: no such program", hint="install kohort's requirements into this environment"
        )
    return str(path)


@dataclass
class Child:
    """A program that must run, and its present process."""

    name: str
    command: list[str]
    log_file: Path
    descriptors: tuple[int, ...] = ()  # sockets that it inherits
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    next_start: float = 0.0
    groups: list[int] = field(default_factory=list)  # the process groups it ever had

    @property
    def runs(self) -> bool:
        """Whether its process is there."""
        return self.process is not None and self.process.poll() is None

    def keep(self, environment: Mapping[str, str], folder: Path) -> None:
        """Start the program if it does not run and the pause after its last death is over."""
        cap_log(self.log_file)
        if self.runs:
            return
        if self.process is not None:
            self._note_death(self.process.returncode)
        if time.monotonic() < self.next_start:
            return
        try:
            with self.log_file.open("ab") as output:
                self.process = _spawn(self, environment, folder, output)
            self.groups.append(self.process.pid)
        except OSError as error:
            log.error("%s does not start: %s", self.name, error.strerror)
            self.next_start = time.monotonic() + RESTART_DELAYS_S[-1]

    def _note_death(self, code: int) -> None:
        """Set the pause before the next start; it grows with the failures."""
        delay_s = RESTART_DELAYS_S[min(self.failures, len(RESTART_DELAYS_S) - 1)]
        log.warning("%s ended with %s; restart in %g s", self.name, code, delay_s)
        self.failures += 1
        self.next_start = time.monotonic() + delay_s
        self.process = None

    def hang_up(self) -> None:
        """Send SIGHUP, where it runs."""
        if self.process is not None and self.runs:
            self.process.send_signal(signal.SIGHUP)

    def end(self) -> None:
        """Send SIGTERM to everything it ever started, and SIGKILL to what is left in the end."""
        # Ask everything to end.
        for group in self.groups:
            _signal_group(group, signal.SIGTERM)
        if self.process is not None:
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                log.warning("%s does not stop: killed", self.name)
        # Wait for its own children, then end what is left.
        deadline = time.monotonic() + STOP_GRACE_S
        while self._any_group() and time.monotonic() < deadline:
            time.sleep(0.02)
        for group in self.groups:
            _signal_group(group, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
            self.process = None

    def _any_group(self) -> bool:
        """Whether a process of one of its groups is left."""
        return any(_signal_group(group, 0) for group in self.groups)


def _spawn(
    child: Child, environment: Mapping[str, str], folder: Path, output: BinaryIO
) -> subprocess.Popen[bytes]:
    """A child in its own process group that gets SIGTERM when the thread that started it ends."""
    return subprocess.Popen(
        child.command,
        pass_fds=child.descriptors,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )


def _signal_group(group: int, number: int) -> bool:
    """Send a signal to a process group; False if it is gone."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
