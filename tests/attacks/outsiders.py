"""Outsiders at every path of the server's one port: refused, nothing run, nothing stored.

In: a running server (server.py). Out: a row for each caller and kind of request.
Held means: no answer of success, and to no outsider one of the SuperLink's; the same processes as
before; no row more in any table of the SuperLink and no other file changed; the file that a foreign
run would create is not there.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from server.front.sockets import FLEET, OPERATOR, SOCKETS
from tests.attacks.certificates import Caller
from tests.attacks.knocks import Knock, knocks
from tests.attacks.rows import Row
from tests.attacks.server import Target

ANSWER_CAP = 1 << 16
TIMEOUT_S = 20.0
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
CLOSED = "closed"
NO_TLS = "refused by TLS"
NOBODY = 65_534
# the answers of the fronts' own
REFUSALS = frozenset("400 403 404 405 408 411 413 414 415 429 431 494 501 505".split())
MORE_S = 0.1  # how long a second answer may take


def attempt(port: int, ca: Path, caller: Caller, data: bytes) -> str:
    """Return what came back: the statuses in order, `closed`, or `refused by TLS`."""
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as plain:
            if caller.plain:
                return exchange(plain, data)
            with caller.context(ca).wrap_socket(plain, server_hostname="127.0.0.1") as secured:
                return exchange(secured, data)
    except ssl.SSLError:
        return NO_TLS
    except (OSError, TimeoutError):
        return CLOSED


def exchange(peer: socket.socket, data: bytes) -> str:
    """Send, and read until the front closes or says nothing more."""
    seen = b""
    try:
        peer.sendall(data)
        # after the first answer the rest comes soon, or never
        while len(seen) < ANSWER_CAP:
            block = peer.recv(ANSWER_CAP)
            if not block:
                break
            seen += block
            peer.settimeout(MORE_S)
    except TimeoutError:
        pass
    except ConnectionError:
        pass
    return " ".join(found.decode() for found in STATUS.findall(seen)) or CLOSED


def got_through(outcome: str) -> bool:
    """Whether an answer is not among those of a front: the SuperLink gave it."""
    return any(word.isdigit() and word not in REFUSALS for word in outcome.split())


def is_success(outcome: str) -> bool:
    """Whether an answer of success is among the statuses."""
    return any(word.isdigit() and word.startswith(("1", "2")) for word in outcome.split())


def visit(target: Target, every: int = 1) -> Iterator[Row]:
    """Let every caller try everything; yield a row for each caller and kind of request.

    `every`: of the requests of a kind only each so manieth.
    """
    marker = target.state.root.parent / "code-ran"
    before = (target.processes(), target.settle())
    rows: list[Row] = []
    for caller in target.callers:
        tried = list(knocks(caller.header, marker))
        for kind in dict.fromkeys(knock.kind for knock in tried):
            chosen = [knock for knock in tried if knock.kind == kind][::every]
            rows.append(one_row(target, caller, kind, chosen))
    yield from rows
    yield from aftermath(target, before, marker)


def is_way_in(caller: Caller, knock: Knock, outcome: str) -> bool:
    """Whether an outsider reached the SuperLink, or a member got what is no call of a site."""
    if not caller.member:
        return got_through(outcome)
    return is_success(outcome) and not knock.open_to_members


def one_row(target: Target, caller: Caller, kind: str, chosen: Sequence[Knock]) -> Row:
    """The row of one caller and one kind of request."""
    seen: Counter[str] = Counter()
    ways = []
    for knock in chosen:
        outcome = attempt(target.port, target.ca, caller, knock.data)
        seen[outcome] += 1
        if is_way_in(caller, knock, outcome):
            ways.append(f"{knock.name}: {outcome}")
    told = ", ".join(f"{outcome} ({count})" for outcome, count in seen.most_common())
    outcome = "; ".join(ways) or told
    return Row(f"outsider with {caller.name}", kind, target.front, outcome, not ways, len(chosen))


def aftermath(
    target: Target, before: tuple[dict[int, str], dict[str, int]], marker: Path
) -> Iterator[Row]:
    """Yield a row for what all these attempts may have left behind."""
    who = "all of them"
    processes, stored = before
    # a worker of nginx may be replaced by another
    new = sorted(set(target.processes().values()) - set(processes.values()))
    yield Row(who, "start a process", target.front, str(new or "no new process"), not new)
    now = target.stored()
    changed = sorted(name for name in stored.keys() | now if stored.get(name) != now.get(name))
    yield Row(who, "store a byte", target.front, str(changed or "nothing stored"), not changed)
    ran = marker.exists()
    yield Row(who, "run code", target.front, "code ran" if ran else "no code run", not ran)
    ports = target.ports()
    outcome = "the front's port alone listens" if ports == {target.port} else f"ports {ports}"
    yield Row(who, "find another port", target.front, outcome, ports == {target.port})


SOCKET_PROBE = """
import os, socket, sys
os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
peer = socket.socket(socket.AF_UNIX)
try:
    peer.connect(sys.argv[1])
    peer.sendall(b"POST /v1/control/list-runs HTTP/1.1\\r\\ncontent-length: 0\\r\\n\\r\\n")
    print("open", peer.recv(40))
except PermissionError:
    print("permission denied")
"""


def local_user(target: Target) -> Iterator[Row]:
    """Yield a row for each unix socket that another user of the machine tries."""
    if os.geteuid() != 0:
        return
    # the folder above would stop a stranger already: only that of the sockets is to be judged
    folder = target.state.superlink / SOCKETS
    opened = [path for path in folder.parents if path != Path("/") and path != Path("/tmp")]
    modes = {path: path.stat().st_mode & 0o777 for path in opened}
    for path in opened:
        path.chmod(0o755)
    try:
        for name in (OPERATOR, FLEET):
            command = [sys.executable, "-c", SOCKET_PROBE, str(folder / name), str(NOBODY)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            said = done.stdout.strip() or done.stderr.strip()[-80:]
            held = said == "permission denied"
            yield Row("another user of the machine", "call Flower", name, said, held)
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
