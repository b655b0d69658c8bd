"""A small internet on this machine: network namespaces, joined by a bridge and a veth pair.

```
   server ──┐                          server   192.0.2.1   2001:db8::1
            │                          west     192.0.2.2   2001:db8::2   two hospitals
   west  ── bridge ── proxy ── east    proxy    192.0.2.3   2001:db8::3   198.51.100.1
                                       east     198.51.100.2              one hospital
```

`east` reaches the proxy and nothing else. A `Machine` is a namespace with a hosts file of its own,
which is mounted over /etc/hosts for its processes alone. As root, or in a user namespace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.process import end_with_parent

TOOLS = ("ip", "unshare", "nsenter", "mount")
READY_S = 20.0
# addresses of the places at the bridge
ON_BRIDGE = {
    "server": ("192.0.2.1/24", "2001:db8::1/64"),
    "west": ("192.0.2.2/24", "2001:db8::2/64"),
    "proxy": ("192.0.2.3/24", "2001:db8::3/64"),
}


@dataclass(frozen=True)
class Place:
    """A network namespace, held open by a process."""

    holder: int
    flags: tuple[str, ...]  # how nsenter enters it

    def enter(self, command: list[str]) -> list[str]:
        """Return the command that runs `command` in this namespace."""
        return ["nsenter", "--target", str(self.holder), *self.flags, "--", *command]


@dataclass
class Machine:
    """A computer in a place: its hosts file and its folder."""

    place: Place
    hosts: Path
    folder: Path

    def command(self, text: str) -> list[str]:
        """Return the command that runs a line of shell on this machine."""
        script = 'mount --bind "$0" /etc/hosts && exec bash -c "$1"'
        private = ["unshare", "--mount", "bash", "-c", script, str(self.hosts), text]
        return self.place.enter(private)

    def run(self, text: str, code: int = 0) -> str:
        """Run a line to its end, which must be `code`; return all that it prints."""
        done = subprocess.run(
            self.command(text),
            cwd=self.folder,
            env=self._variables(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            preexec_fn=end_with_parent,
        )
        assert done.returncode == code, f"`{text}` ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def start(self, text: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a line as a daemon whose output goes to `log`."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command(f"exec {text}"),
                cwd=self.folder,
                env=self._variables(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=end_with_parent,
            )

    def _variables(self) -> dict[str, str]:
        """The environment of a person at this machine."""
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "100",
            "NO_COLOR": "1",
            # some thirty processes load the same libraries
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(self.folder.parent / "bytecode"),
        }


def why_not() -> str:
    """Return why this machine can have no namespaces; empty where it can."""
    missing = [name for name in TOOLS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)}: not installed"
    if not _flags():
        return "neither root nor a user namespace may make networks of IPv4 and IPv6"
    return ""


def _flags() -> list[str]:
    """What `unshare` needs for a network of its own; empty where it cannot be had."""
    script = (
        "ip link add bridge0 type bridge && ip link add leg0 type veth peer name leg1 && "
        "ip link set leg0 master bridge0 && ip address add 2001:db8::9/64 dev leg1 nodad && "
        "mount --bind /etc/hosts /etc/hosts"
    )
    for flags in (["--net"], ["--map-root-user", "--net"]):
        command = ["unshare", *flags, "unshare", "--mount", "sh", "-c", script]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode == 0:
            return flags
    return []


@contextmanager
def open_world(
    bridged: Mapping[str, tuple[str, ...]] = ON_BRIDGE,
) -> Iterator[dict[str, Place]]:
    """Yield the places at the bridge, connected; they end with the block.

    Behind a place `proxy` lies another, `east`.
    """
    flags = _flags()
    entry: tuple[str, ...] = ("--net",)
    if "--map-root-user" in flags:
        entry = ("--user", "--preserve-credentials", "--net")
    holders: list[subprocess.Popen[bytes]] = []
    try:
        world = Place(_hold(["unshare", *flags], holders), entry)
        places = {}
        for name in (*bridged, *(("east",) if "proxy" in bridged else ())):
            places[name] = Place(_hold(world.enter(["unshare", "--net"]), holders), entry)
        script = "\n".join(_wiring({name: place.holder for name, place in places.items()}, bridged))
        subprocess.run(world.enter(["sh", "-ec", script]), check=True)
        yield places
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


def _hold(prefix: list[str], holders: list[subprocess.Popen[bytes]]) -> int:
    """Start a process that keeps a new namespace open; return its id once it is there."""
    holder = subprocess.Popen(
        [*prefix, "sleep", "infinity"], stdin=subprocess.DEVNULL, preexec_fn=end_with_parent
    )
    holders.append(holder)
    deadline = time.monotonic() + READY_S
    while Path(f"/proc/{holder.pid}/comm").read_text().strip() != "sleep":
        assert holder.poll() is None and time.monotonic() < deadline, prefix
        time.sleep(0.01)
    return holder.pid


def _wiring(holders: dict[str, int], bridged: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Yield the shell lines that join the places."""
    yield "ip link add bridge0 type bridge"
    yield "ip link set bridge0 up"
    for name, addresses in bridged.items():
        yield f"ip link add {name} type veth peer name eth0 netns {holders[name]}"
        yield f"ip link set {name} master bridge0 up"
        yield from _leg(holders[name], "eth0", addresses)
    if "proxy" not in bridged:
        return
    yield (
        f"nsenter --target {holders['proxy']} --net "
        f"ip link add eth1 type veth peer name eth0 netns {holders['east']}"
    )
    yield from _leg(holders["proxy"], "eth1", ("198.51.100.1/24",))
    yield from _leg(holders["east"], "eth0", ("198.51.100.2/24",))


def _leg(holder: int, name: str, addresses: tuple[str, ...]) -> Iterator[str]:
    """Yield the shell lines that give an interface its addresses."""
    inside = f"nsenter --target {holder} --net ip"
    for address in addresses:
        nodad = " nodad" if ":" in address else ""
        yield f"{inside} address add {address} dev {name}{nodad}"
    yield f"{inside} link set lo up"
    yield f"{inside} link set {name} up"
