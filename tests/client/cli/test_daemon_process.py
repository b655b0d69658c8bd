"""The running daemon from outside: it shows no secret, dumps nothing, writes for its user alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.client.cli.typing_commands import Cli
from tests.notified import listening
from tests.passphrases import descriptor_of
from tests.processes import descendants, limits_of, pieces, seen_from_outside
from tests.transport import until

PASSPHRASE = b"some words of the hospital"


def test_a_daemon_shows_no_key_and_leaves_no_core(joined: tuple[Path, Path], cli: Cli) -> None:
    state, bundle = joined
    assert cli("approve", "--state", state, bundle, "--yes", "--by", "Dr. Example")[0] == 0
    assert cli("ingest", "--state", state)[0] == 0
    reader = descriptor_of(PASSPHRASE)
    secrets = [PASSPHRASE]
    assert cli("protect", "--state", state, "--new-passphrase-fd", reader)[0] == 0
    keys = [path for path in (state / "keys").iterdir() if path.suffix != ".pub"]
    secrets += [piece for path in keys for piece in pieces(path)]
    assert len(keys) >= 3
    reader = descriptor_of(PASSPHRASE)
    program = [str(Path(sys.executable).parent / "kohort-site"), "--passphrase-fd", str(reader)]
    command = [*program, "run", "--state", str(state)]
    daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL, pass_fds=(reader,))
    try:
        until((state / "heartbeat.json").exists, timeout_s=60)
        until(lambda: limits_of(daemon.pid) == ("0077", "0 0"), timeout_s=60)
        # it opened its keys and calls the server, which is not there
        until(lambda: "NOTHING-LISTENS" in (state / "heartbeat.json").read_text(), timeout_s=60)
        for pid in descendants(daemon.pid):
            assert limits_of(pid) == ("0077", "0 0")
            shown = seen_from_outside(pid)
            assert b"kohort-site" in shown
            for secret in secrets:
                assert secret and secret not in shown
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)


def test_systemd_hears_that_the_daemon_is_ready_alive_and_ending(
    joined: tuple[Path, Path], cli: Cli
) -> None:
    state, bundle = joined
    assert cli("approve", "--state", state, bundle, "--yes", "--by", "Dr. Example")[0] == 0
    program = str(Path(sys.executable).parent / "kohort-site")
    with listening() as (path, listener):
        daemon = subprocess.Popen(
            [program, "run", "--state", str(state)],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "NOTIFY_SOCKET": path},
        )
        heard: list[str] = []
        try:
            until(lambda: heard.extend(listener.heard()) or "WATCHDOG=1" in heard, timeout_s=60)
            assert heard[0] == "READY=1"
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(60)
        assert listener.heard()[-1] == "STOPPING=1"
