"""The machines of the runbook: an operator, hospitals and a researcher, each in its own namespaces.

A host has a network of its own at one bridge, and its own /var/lib, /run, /opt, /srv and
/etc/hosts: folders of this machine, mounted for its processes alone. `systemctl` is played: it
starts the unit's own command, confined by the unit's own switches.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.deploy import confined
from tests.deploy.units import Unit
from tests.networks.world import Machine, Place

ROOT = Path(__file__).parents[2]
OWN = ("var/lib", "var/tmp", "opt", "srv", "run")
POST = "srv/post"  # what people send each other
NAME = "kohort.example.org"
STOP_S = 60.0
CLEAN = (0, 130, -signal.SIGTERM)  # what systemd takes for an orderly end, with the units' own
TURN_S = 0.2


@dataclass
class Host(Machine):
    """A computer with the paths of the runbook, and the services that run on it."""

    name: str = ""
    installs: bool = False  # whether the runbook's installation is played here
    opt: Path | None = None  # another machine's /opt, in place of its own
    place_now: str = "/srv"  # where its person stands
    services: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def command(self, text: str) -> list[str]:
        """Return the command that runs a line of shell on this machine."""
        mounts = [f"mount --bind {self.hosts} /etc/hosts"]
        folders = {name: self.folder / name for name in OWN}
        folders["opt"] = self.opt or folders["opt"]
        mounts += [f"mount --bind {folder} /{name}" for name, folder in folders.items()]
        path = "export PATH=/opt/kohort/bin:$PATH"
        script = " && ".join([*mounts, path, f'cd {self.place_now} && exec bash -c "$0"'])
        return self.place.enter(["unshare", "--mount", "bash", "-c", script, text])

    def _variables(self) -> dict[str, str]:
        """The environment of a person at this machine; libraries are compiled once and for all."""
        without = {"PYTHONPYCACHEPREFIX"}
        return {key: value for key, value in super()._variables().items() if key not in without}

    def do(self, text: str, code: int = 0) -> str:
        """Do one line of the runbook; return what it prints."""
        if text.startswith("systemctl "):
            self._systemctl(shlex.split(text)[1:])
            return ""
        if text.startswith("cd "):
            self.place_now = text.removeprefix("cd ")
            return ""
        return self.run(text, code)

    def log(self, unit: str) -> str:
        """What a service has printed."""
        return (self.folder / f"{unit}.log").read_text(errors="replace")

    def _systemctl(self, words: list[str]) -> None:
        """Start, stop or restart a unit."""
        verb, unit = words[0], words[-1]
        if verb in ("stop", "restart"):
            self.stop(unit)
        if verb in ("enable", "start", "restart"):
            self._start(unit)

    def _start(self, unit: str) -> None:
        """Start a unit's own command, confined by its own switches."""
        template, _, instance = unit.partition("@")
        file = f"{template}@.service" if instance else f"{template}.service"
        command = Unit.read(file).one("ExecStart").replace("%i", instance)
        # the confinement is the tests' own program; the command is the unit's
        line = f"{sys.executable} {confined.__file__} {shlex.quote(file)} {command}"
        self.services[unit] = self.start(
            f"env PYTHONPATH={ROOT} {line}", self.folder / f"{unit}.log"
        )

    def stop(self, unit: str) -> None:
        """End a service as systemd does."""
        process = self.services.pop(unit)
        process.send_signal(signal.SIGTERM)
        code = process.wait(STOP_S)
        assert code in CLEAN, self.log(unit)[-2000:]


@dataclass
class Consortium:
    """Everybody who takes part."""

    operator: Host
    hospitals: dict[str, Host]
    researcher: Host

    def all(self) -> Iterator[Host]:
        """Every machine."""
        yield self.operator
        yield from self.hospitals.values()
        yield self.researcher

    def end(self) -> None:
        """End every service."""
        for host in self.all():
            for process in host.services.values():
                process.terminate()
        for host in self.all():
            for process in host.services.values():
                process.wait(STOP_S)

    def until(self, what: Callable[[], Any], timeout_s: float) -> None:
        """Wait until something is true; a service that ended badly ends the wait."""
        deadline = time.monotonic() + timeout_s
        while not what():
            logs = []
            for host in self.all():
                for unit, process in host.services.items():
                    assert process.poll() in (None, 0), (
                        f"{host.name} {unit} ended with {process.poll()}: {host.log(unit)[-3000:]}"
                    )
                    logs.append(f"{host.name}: {host.log(unit)[-500:]}")
            assert time.monotonic() < deadline, "\n".join(logs)
            time.sleep(TURN_S)


@contextmanager
def open_consortium(
    folder: Path, places: dict[str, Place], programs: Path, sites: list[str]
) -> Iterator[Consortium]:
    """Yield the machines; `programs`: the folder of an environment, as /opt/kohort."""

    def host(name: str) -> Host:
        home = folder / name
        for own in OWN:
            (home / own).mkdir(parents=True)
        (home / POST).mkdir()
        (home / "opt" / "kohort").symlink_to(programs)
        (home / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n192.0.2.1 {NAME}\n")
        return Host(places[name], home / "hosts", home, name)

    hosts = {name: host(name) for name in ("operator", *sites, "researcher")}
    everybody = Consortium(
        hosts["operator"], {name: hosts[name] for name in sites}, hosts["researcher"]
    )
    try:
        yield everybody
    finally:
        everybody.end()
