"""`kohort-site check` on broken set-ups: the fault, its true cause, and a fix that mends it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from client.cli.main import run_command_line
from client.fleet import health as states
from client.fleet.diagnosis import PROXY_VARIABLES
from client.fleet.health import Health
from client.state.folder import State
from client.state.private import close_to_others
from common.errors import ConfigurationError
from common.storage import heartbeat
from common.storage.heartbeat import Heartbeat
from common.storage.journal import Journal
from common.storage.lock import FolderLock
from common.study.bundle import write_bundle
from common.study.plan import load_study
from common.wire import signing
from server.operator.certificates import (
    Authority,
    create_authority,
    issue_server_certificate,
    site_certificate,
    to_pem,
)
from server.operator.config import new_config
from server.operator.enrolment import enrol
from server.operator.state import ServerState
from tests.client.cli.typing_commands import Cli, photographs
from tests.fleet_server import FleetServer
from tests.sites import write_cohort, write_plan

pytestmark = pytest.mark.slow

NOW = datetime.now(UTC)


@dataclass
class Scene:
    """A whole site, and its server; `restore` puts back what was broken."""

    root: Path
    authority: Authority
    server: FleetServer
    undo: list[Callable[[], object]] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.root / "site"

    @property
    def plan(self) -> Path:
        """The folder of the approved plan."""
        return next((self.state / "plans").iterdir())

    @property
    def cohort(self) -> Path:
        """The folder of its cohort."""
        return State(self.state).cohort(load_study(self.root / "plan" / "study.yaml").intake)

    def keep(self, path: Path) -> None:
        """Put a file or folder back at the end, as it is now."""
        copy = self.root / f"kept-{len(self.undo)}"
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copy2(path, copy)

        def back() -> None:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            shutil.move(copy, path)

        self.undo.append(back)

    def edit(self, path: Path, old: str, new: str) -> None:
        """Change a text file."""
        self.keep(path)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def site_yaml(self, old: str, new: str) -> None:
        """Change site.yaml."""
        self.edit(self.state / "site.yaml", old, new)

    def write(self, path: Path, data: bytes) -> None:
        """Replace a file."""
        self.keep(path)
        path.write_bytes(data)

    def remove(self, path: Path) -> None:
        """Remove a file or folder."""
        self.keep(path)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    def patch(self, target: str, value: object) -> None:
        """Change how this machine is, until it is mended."""
        context = pytest.MonkeyPatch()
        context.setattr(target, value)
        self.undo.append(context.undo)

    def environment(self, name: str, value: str) -> None:
        """Set a variable, until it is mended."""
        context = pytest.MonkeyPatch()
        context.setenv(name, value)
        self.undo.append(context.undo)

    def url(self, new: str) -> None:
        """Let the join file name another address."""
        self.edit(self.state / "membership.json", self.server.url, new)

    def certify(self, begin: timedelta, days: float) -> None:
        """Give the site a certificate that begins then, in the file and in the join file."""
        line = (self.state / "keys" / "node.pub").read_text()
        made = site_certificate(
            self.authority, "hospital-a", line, days=days, now=datetime.now(UTC) + begin
        )
        self.write(self.state / "node.crt", made)

    def answer(self, status: int, headers: dict[str, str]) -> None:
        """Let the server answer every greeting so."""
        self.server.instead["send-node-heartbeat"] = lambda request: (status, headers, b"")
        self.undo.append(lambda: self.server.instead.pop("send-node-heartbeat"))

    def serve_with(self, **options: Any) -> None:
        """Let another server stand at the address, with a certificate of its own."""
        authority = options.pop("authority", self.authority)
        days = options.pop("date", 0)
        folder = self.root / f"tls-{len(self.undo)}"
        server = FleetServer(issue_server_certificate(authority, folder, **options))
        if days:
            # its clock is right, and this machine's is wrong
            date = format_datetime(NOW + timedelta(days=days), usegmt=True)
            handler = server._server.RequestHandlerClass
            handler.date_time_string = lambda *_: date  # type: ignore[attr-defined]
        self.undo.append(server.close)
        self.url(server.url)

    def mend(self) -> None:
        """Follow the fix."""
        while self.undo:
            self.undo.pop()()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A site that joined, approved and ingested, and a server that lets it in."""
    root = tmp_path_factory.mktemp("whole")
    data, state, operator = root / "data", root / "site", signing.new_key()
    labels = photographs(data)
    place = ServerState(root / "server")
    authority = create_authority(place.authority)
    server = FleetServer(issue_server_certificate(authority, root / "tls"))

    def run(*arguments: object) -> None:
        assert run_command_line([str(argument) for argument in arguments]) == 0

    run("init", "--state", state, "--site", "hospital-a", "--data", data, "--labels", labels)
    config = new_config("test", server.url, place.config)
    join = root / "join.json"
    public = signing.public_text(operator.public_key())
    join.write_bytes(enrol(state / "hospital-a.request.json", place, config, public))
    run("join", "--state", state, join)
    (root / "plan").mkdir()
    write_bundle(write_plan(root / "plan"), operator, root / "bundle")
    run("approve", "--state", state, root / "bundle", "--yes", "--by", "Dr. Example")
    run("ingest", "--state", state)
    (state / "fleet").mkdir(mode=0o700)
    (state / "fleet" / "node-id").write_text("77\n")
    close_to_others(state)
    yield Scene(root, authority, server)
    server.close()


@pytest.fixture
def scene(whole: Scene, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """The whole site, to be broken; it is whole again after the test."""
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield whole
    whole.mend()


@contextmanager
def answering(status: bytes) -> Iterator[int]:
    """A proxy that answers every request with one status; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.recv(65536)
                    client.sendall(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def proxy(scene: Scene, status: bytes) -> None:
    """Let a proxy that answers so stand in the way."""
    stack = ExitStack()
    port = stack.enter_context(answering(status))
    scene.undo.append(stack.close)
    scene.site_yaml("network:\n  proxy: null", f'network:\n  proxy: "http://127.0.0.1:{port}"')


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def few_patients(scene: Scene) -> None:
    """Leave three people in the cohort."""
    scene.remove(scene.cohort)
    write_cohort(scene.cohort, load_study(scene.root / "plan" / "study.yaml"), 3)


def older_state(scene: Scene) -> None:
    """Sign something, and lose what it was."""
    journal = scene.state / "journal.sqlite"
    for path in scene.state.glob("journal.sqlite*"):
        scene.keep(path)
    with closing(Journal(journal)) as book:
        book.append("a/train/gan/0/0", "answered", {"sealed": ["ab" * 32]})


def hung_daemon(scene: Scene) -> None:
    """A daemon holds its lock, and gives no sign of life."""
    heart = Heartbeat(scene.state, "kohort-site run")
    heart.enter("running")
    path = scene.state / heartbeat.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"time": 1000.0}))
    os.utime(path, (1000, 1000))
    scene.undo.append(path.unlink)
    scene.undo.append(heart._lock.release)


def second_process(scene: Scene) -> None:
    lock = FolderLock(scene.state / "lock", "kohort-site ingest")
    scene.undo.append(lock.release)


def no_gpu(scene: Scene) -> None:
    """A GPU is asked for, and this machine has none."""

    def ask(compute: object) -> None:
        raise ConfigurationError("compute.device: no GPU here", hint="use cpu", code="E-DEVICE")

    scene.site_yaml('device: "auto"', 'device: "cuda"')
    scene.patch("client.daemon.device._ask", ask)


def unreadable(scene: Scene) -> None:
    """The data folder may not be entered by this account."""
    scene.patch("client.cli.inspection.configuration._can_enter", lambda _: False)


def full_disk(scene: Scene) -> None:
    usage = shutil.disk_usage(scene.state)._replace(free=100 << 20)
    scene.patch("client.cli.inspection.machine.shutil.disk_usage", lambda _: usage)


def other_name(scene: Scene) -> None:
    """Let the server be called by a name that its certificate has not."""
    resolve = socket.getaddrinfo

    def find(host: str, *rest: Any, **options: Any) -> Any:
        return resolve("127.0.0.1" if host == "kohort.test" else host, *rest, **options)

    scene.patch("socket.getaddrinfo", find)
    scene.url(scene.server.url.replace("127.0.0.1", "kohort.test"))


class Row(NamedTuple):
    """What is broken, and what `check` must say: code, cause, fix."""

    break_it: Callable[[Scene], object]
    code: str
    cause: str
    fix: str


def state_file(name: str, data: bytes) -> Callable[[Scene], None]:
    return lambda s: s.write(s.state / name, data)


DAY = timedelta(days=1)
BROKEN: dict[str, Row] = {
    "the data folder is not there": Row(
        lambda s: s.site_yaml('/data"', '/gone"'), "E-DATA-FOLDER", "no such folder", "mount it"
    ),
    "the data folder may not be read": Row(
        unreadable, "E-DATA-FOLDER", "not a folder that can be read", "let this account read"
    ),
    "the labels file is not there": Row(
        lambda s: s.remove(s.root / "labels.csv"), "E-LABELS-FILE", "no such file", "put it there"
    ),
    "the labels file has other columns": Row(
        lambda s: s.write(s.root / "labels.csv", b"name,diagnosis\n1,none\n"),
        "E-LABELS-FILE",
        "labels.csv",
        "column",
    ),
    "a key can be read by others": Row(
        lambda s: (
            (s.state / "keys" / "sign.key").chmod(0o644),
            s.undo.append(lambda: (s.state / "keys" / "sign.key").chmod(0o600)),
        ),
        "E-KEY-OPEN",
        "sign.key: readable by others",
        "chmod 600",
    ),
    "site.yaml has an unknown key": Row(
        lambda s: s.site_yaml("min_k: 5", "min_kk: 5"), "E-CONFIG", "min_kk: unknown key", "min_k"
    ),
    "the approved plan was altered": Row(
        lambda s: s.edit(s.plan / "study.yaml", "A small study", "A larger study"),
        "E-REFUSED",
        "the signed bytes were changed",
        "ask the operator for the bundle again",
    ),
    "the plan asks for more than the policy gives": Row(
        lambda s: s.site_yaml("max_epsilon: 10.0", "max_epsilon: 2.0"),
        "E-POLICY-PLAN",
        "privacy.epsilon is 8, policy.max_epsilon is 2",
        "ask the operator for another plan",
    ),
    "a checkpoint of the plan is damaged": Row(
        lambda s: s.write(s.plan / "checkpoints" / "gan.safetensors", b"damaged"),
        "E-REFUSED",
        "gan.safetensors",
        "",
    ),
    "the cohort was never taken in": Row(
        lambda s: s.remove(s.cohort), "E-COHORT-MISSING", "no cohort yet", "kohort-site ingest"
    ),
    "the cohort has fewer patients than a group needs": Row(
        few_patients, "E-COHORT-SMALL", "fewer patients than k=5", "ingest --refresh"
    ),
    "the CA file is of another consortium": Row(
        lambda s: s.write(
            s.state / "ca.crt",
            to_pem(create_authority(s.root / "other-ca").certificate),
        ),
        "E-CONFIG",
        "not issued by",
        "join",
    ),
    "the site's own certificate has expired": Row(
        lambda s: s.certify(-40 * DAY, 30),
        "CLIENT-CERTIFICATE-DATES",
        "has expired",
        "ask the operator for a new join file",
    ),
    "this machine's clock is behind: its certificate is not valid yet": Row(
        lambda s: s.certify(40 * DAY, 30), "CLOCK-OFF", "clock differs", "NTP"
    ),
    "this machine's clock is 60 days ahead: the server's certificate looks expired": Row(
        lambda s: s.serve_with(now=NOW - 60 * DAY, days=30, date=-60),
        "CLOCK-OFF",
        "60 days ahead of the server's",
        "NTP",
    ),
    "the server's certificate has really expired": Row(
        lambda s: s.serve_with(now=NOW - 60 * DAY, days=30),
        "SERVER-CERTIFICATE-EXPIRED",
        "the server's certificate has expired",
        "ask the operator to renew it",
    ),
    "the server's certificate is of another CA": Row(
        lambda s: s.serve_with(authority=create_authority(s.root / "third-ca")),
        "SERVER-CA-UNKNOWN",
        "not signed by the CA of the join file",
        "if a proxy inspects TLS",
    ),
    "the server's certificate is for another name": Row(
        other_name,
        "SERVER-NAME-WRONG",
        "for another name",
        "new join file",
    ),
    "the server's name is unknown": Row(
        lambda s: s.url("https://no-such-host.invalid:9443"),
        "NAME-UNKNOWN",
        "cannot be resolved",
        "DNS",
    ),
    "nothing listens at the server's address": Row(
        lambda s: s.url(f"https://127.0.0.1:{unused_port()}"),
        "NOTHING-LISTENS",
        "nothing answers at the server's address",
        "firewall",
    ),
    "the server listens at the other loopback address": Row(
        lambda s: s.url(s.server.url.replace("127.0.0.1", "[::1]")),
        "NOTHING-LISTENS",
        "but at 127.0.0.1 something does",
        "join file with the address",
    ),
    "the way out is a proxy that only the environment names": Row(
        lambda s: (
            s.environment("HTTPS_PROXY", "http://user:secret@proxy:3128"),
            s.url(f"https://127.0.0.2:{unused_port()}"),
        ),
        "NOTHING-LISTENS",
        "HTTPS_PROXY is set here, and kohort does not use it",
        "network.proxy",
    ),
    "the proxy is dead": Row(
        lambda s: s.site_yaml(
            "network:\n  proxy: null", f'network:\n  proxy: "http://127.0.0.1:{unused_port()}"'
        ),
        "PROXY-UNREACHABLE",
        "the proxy of `network.proxy` does not answer",
        "correct `network.proxy`",
    ),
    "the proxy's name is unknown": Row(
        lambda s: s.site_yaml(
            "network:\n  proxy: null", 'network:\n  proxy: "http://no-such-proxy.invalid:3128"'
        ),
        "PROXY-NAME-UNKNOWN",
        "the name of the proxy",
        "network.proxy",
    ),
    "the proxy wants a login": Row(
        lambda s: proxy(s, b"407 Proxy Authentication Required"),
        "PROXY-LOGIN",
        "wants a login",
        "USER:PASSWORD",
    ),
    "the proxy refuses": Row(
        lambda s: proxy(s, b"403 Forbidden"), "PROXY-REFUSED", "refuses", "ask for CONNECT"
    ),
    "the proxy cannot reach the server": Row(
        lambda s: proxy(s, b"503 Service Unavailable"), "PROXY-NO-WAY", "cannot reach", "CONNECT"
    ),
    "the site was revoked": Row(
        lambda s: s.answer(401, {}),
        "KEY-UNKNOWN",
        "no longer knows this site's key",
        "ask the operator whether the site was revoked",
    ),
    "the disk is full": Row(full_disk, "E-DISK-FULL", "100 MiB free", "free some space"),
    "the state folder is older than what left of it": Row(
        older_state, "E-ROLLBACK", "older than", "newest copy"
    ),
    "the GPU of site.yaml is not there": Row(no_gpu, "E-DEVICE", "no GPU here", "use cpu"),
    "another command works on the folder": Row(
        second_process, "E-LOCKED", "another process", "stop it first"
    ),
    "a daemon hangs": Row(hung_daemon, "UNRESPONSIVE", "no sign of life since", "restart it"),
    "the join file is damaged": Row(
        state_file("membership.json", b"{"), "E-CONFIG", "not a join file", "join file again"
    ),
    "no plan is approved": Row(
        lambda s: s.patch("client.state.plans.Plans.is_approved", lambda *_: False),
        "E-PLAN-UNAPPROVED",
        "no plan is approved",
        "kohort-site approve",
    ),
}


@pytest.mark.parametrize("sentence", BROKEN)
def test_check_names_the_fault_its_cause_and_a_fix_that_mends_it(
    sentence: str, scene: Scene, cli: Cli
) -> None:
    row = BROKEN[sentence]
    row.break_it(scene)
    code, _, errors = cli("check", "--state", scene.state)
    assert code == 2, errors
    found = [line for line in errors.splitlines() if f"error: {row.code}: " in line]
    assert found, errors
    assert row.cause in found[0] and row.fix in found[0], found[0]
    assert re.search(r" \([^()]*(\([^()]*\)[^()]*)*\)$", found[0]), "no fix stands at its end"
    assert "secret" not in errors
    assert len(set(found)) == len(found), "named once, though several looks meet it"
    # nothing else is blamed for it
    others = [line for line in errors.splitlines() if "error: " in line and line not in found]
    assert not others, others
    scene.mend()
    code, said, errors = cli("check", "--state", scene.state)
    assert code == 0, errors
    assert "to repair" not in said


def test_check_names_every_fault_of_a_site_that_has_several(scene: Scene, cli: Cli) -> None:
    several = (
        "the data folder is not there",
        "the labels file is not there",
        "a key can be read by others",
        "the plan asks for more than the policy gives",
        "the cohort was never taken in",
        "the disk is full",
        "the state folder is older than what left of it",
        "another command works on the folder",
        "the proxy is dead",
    )
    for sentence in several:
        BROKEN[sentence].break_it(scene)
    code, _, errors = cli("check", "--state", scene.state)
    assert code == 2
    assert [s for s in several if f"{BROKEN[s].code}: " not in errors] == []
    assert "9 problems" in errors or errors.count("error: ") == len(several)


def test_check_monitor_says_everything_on_one_line_and_ends_as_a_plugin_does(
    scene: Scene, cli: Cli
) -> None:
    # nothing is broken, but no daemon runs: it has never run here
    code, said, _ = cli("check", "--state", scene.state, "--monitor")
    assert (code, said.count("\n")) == (0, 1)
    assert said.startswith("OK: hospital-a: not running")
    BROKEN["the proxy is dead"].break_it(scene)
    code, said, errors = cli("check", "--state", scene.state, "--monitor")
    assert (code, said.count("\n"), errors) == (2, 1, "")
    assert said.startswith("CRITICAL: PROXY-UNREACHABLE")
    (scene.state / "site.yaml").write_text("site: [")
    code, said, errors = cli("check", "--state", scene.state, "--monitor")
    assert (code, said.count("\n"), errors) == (2, 1, "")
    assert said.startswith("CRITICAL: E-CONFIG")


@contextmanager
def running(scene: Scene, state: str) -> Iterator[Heartbeat]:
    """A daemon that runs beside, in a connection state."""
    health = Health()
    health.set(states.STATES[state])
    health.record_heartbeat()
    lock = FolderLock(scene.state / "lock", "kohort-site run")
    try:
        with closing(Heartbeat(scene.state, "kohort-site run")) as heart:
            heart.note_later(**health.to_dict())
            heart.enter("running")
            yield heart
    finally:
        lock.release()
        (scene.state / heartbeat.FILE).unlink()


def test_beside_a_healthy_daemon_check_says_that_it_runs_and_ends_with_0(
    scene: Scene, cli: Cli
) -> None:
    with running(scene, "CONNECTED"):
        asked = len(scene.server.calls)
        code, said, errors = cli("check", "--state", scene.state)
        assert code == 0, errors
        assert "kohort-site run is running (process" in said
        assert "the daemon says: connected to the server" in said
        # a second greeting with the same key would only disturb
        assert len(scene.server.calls) == asked
        code, said, _ = cli("check", "--state", scene.state, "--monitor")
        assert code == 0 and said.startswith("OK: hospital-a: running")


def test_beside_a_daemon_without_connection_check_says_what_that_daemon_sees(
    scene: Scene, cli: Cli
) -> None:
    with running(scene, "PROXY-LOGIN"):
        code, _, errors = cli("check", "--state", scene.state)
        assert code == 2 and "PROXY-LOGIN: the proxy wants a login" in errors
        code, said, _ = cli("check", "--state", scene.state, "--monitor")
        assert code == 2 and said.startswith("CRITICAL: PROXY-LOGIN")


def test_a_proxy_that_the_environment_names_is_said_though_the_way_is_open(
    scene: Scene, cli: Cli
) -> None:
    scene.environment("https_proxy", "http://user:secret@proxy:3128")
    code, said, _ = cli("check", "--state", scene.state)
    assert code == 0
    assert "https_proxy is set here, and kohort does not use it" in said
    assert "secret" not in said


def test_check_json_has_one_object_a_look(scene: Scene, cli: Cli) -> None:
    BROKEN["the disk is full"].break_it(scene)
    code, said, _ = cli("check", "--state", scene.state, "--json", "--offline")
    facts = json.loads(said)
    assert (code, facts["format"]) == (2, "kohort-site-check/1")
    (look,) = [look for look in facts["looks"] if look["faults"]]
    assert look["look"] == "machine"
    assert set(look["faults"][0]) == {"severity", "code", "text", "fix"}
