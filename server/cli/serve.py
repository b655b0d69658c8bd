"""`run`: serves a study until it is complete, or the front alone between studies."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from common.errors import ConfigurationError, EnvironmentFault
from common.logs import to_environment
from common.notify import READY, STOPPING, Watchdog, notify
from common.storage.files import read_capped
from common.storage.heartbeat import Heartbeat
from common.storage.lock import FolderLock
from common.study.bundle import copy_bundle, open_bundle
from common.study.plan import Study
from common.wire.app_bundle import write_app
from server.cli.authority import issue_for_server
from server.cli.between import serve_front
from server.cli.options import StateFolder
from server.cli.state_folder import load_operator_key, open_record, open_registry
from server.cli.terminal import study_progress, write
from server.front.port import open_door, spell
from server.front.sockets import SOCKETS
from server.operator.authorities import issuer_of, write_trust
from server.operator.certificates import (
    AUTHORITY_KEY,
    check_certificate,
    read_certificate,
)
from server.operator.config import ServerConfig, load_config
from server.operator.expiry import ending_certificates
from server.operator.hand_over import operator_keys
from server.operator.quota import check_quota
from server.operator.renewal import check_server_files
from server.operator.state import ServerState
from server.rounds.metrics import ServerMetrics, shown
from server.rounds.record import StudyRecord
from server.rounds.room import bytes_to_come, largest_reply, sweep_parts, sweep_rounds
from server.rounds.standing import BETWEEN, SEEN

FLWR_VERSION = "1.41.0"
STUDY_FILE_CAP_BYTES = 1 << 20
Served = Annotated[
    Path | None,
    typer.Argument(help="the folder that `kohort-server sign` wrote; without it no study runs"),
]
Port = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help="listen here, not on server.yaml's port (embedded front)"),
]


def run(state: StateFolder, bundle: Served = None, port: Port = None) -> None:
    """Serve a study until it is complete. After any interruption start it again: it resumes.

    Without a bundle it serves no study: sites renew their certificates until it is stopped.
    """
    place = ServerState(state)
    load_operator_key(place)
    check_log(place)
    config = load_config(place.config)
    check_port(port, config)
    check_installation()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with (
        FolderLock(place.lock, "a kohort server"),
        closing(Heartbeat(place.root, "a kohort server")) as heart,
    ):
        heart.enter("starting")
        heart.note(**{BETWEEN: False})
        if bundle is None:
            sweep_sockets(place)
            issue_certificate(place, config)
            serve_front(place, config, heart, port or config.listen.port)
            return
        # The study's folder keeps its own copy of the bundle; both are verified.
        signers = operator_keys(place)
        study = open_bundle(bundle, signers)
        kept = place.study(study.hash()) / "bundle"
        if not (kept / "study.sig").is_file():
            copy_bundle(bundle, signers, kept)
        open_bundle(kept, signers)
        with open_record(place, study) as record:
            sweep(place, record)
            if not record.ended():
                limit = config.limits.studies_gib
                studies = place.root / "studies"
                check_quota(studies, "studies_gib", limit, bytes_to_come(record))
                serve(place, config, study, record, heart, port or config.listen.port)
            else:
                notify(READY)  # a unit that ends before has failed
            abandoned = record.abandoned()
        if abandoned:
            write(f"study {study.name} was abandoned; what was released of it stays\n")
        else:
            write(f"study {study.name} is complete; next: kohort-server release\n")


def check_log(place: ServerState) -> None:
    """Refuse to go on from a log that was changed, or is older than what sites countersigned."""
    with place.open_log() as log:
        log.check(operator_keys(place))


def check_port(port: int | None, config: ServerConfig) -> None:
    """Refuse a port where this program opens none."""
    if port is not None and config.listen.front == "nginx":
        raise ConfigurationError(
            f"--port {port}: nginx listens, on port {config.listen.port} of server.yaml",
            hint="change listen.port in server.yaml, then `kohort-server front` and restart nginx; "
            "leave --port out",
        )


def serve(
    place: ServerState,
    config: ServerConfig,
    study: Study,
    record: StudyRecord,
    heart: Heartbeat,
    port: int,
) -> None:
    """Start Flower and attend to the study until it is complete."""
    # Flower takes a second of CPU to import, which no other command should spend.
    from server.flower.coordinator import Coordinator
    from server.flower.superlink import SuperLink

    root = place.study(study.hash()).resolve()
    app = root / "app"
    # A fresh app bundle and a fresh certificate at every start.
    shutil.rmtree(app, ignore_errors=True)
    pin = write_app(app, read_capped(root / "bundle" / "study.yaml", STUDY_FILE_CAP_BYTES))
    issue_certificate(place, config)
    # The ServerApp's process learns from its environment which study to run.
    environment = {
        "KOHORT_SERVER_STATE": str(place.root.resolve()),
        "KOHORT_STUDY_HASH": study.hash(),
        **to_environment(config.log),
    }
    with (
        shown(ServerMetrics(place, config)),
        open_registry(place) as registry,
        study_progress(study.name, config.log) as (show, say),
        open_door(place.root.resolve(), config, port, largest_reply(record)) as front,
    ):
        say(f"study {study.name}: starting on {spell(config.listen.host, port)}")
        for ending in ending_certificates(place, registry.sites()):
            say(f"{ending.severity}: {ending.line}")
        with SuperLink(
            place.superlink,
            pin,
            front=front,
            environment=environment,
            inbox_gib=config.limits.inbox_gib,
        ) as link:
            signal.signal(signal.SIGHUP, lambda *_: link.reload_front())
            watchdog = Watchdog()

            def turn() -> None:
                watchdog.beat()
                heart.beat()

            coordinator = Coordinator(
                place, link.calls, registry, record, app, config.limits, show, say, turn
            )
            coordinator.note_seen = partial(note_seen, heart)
            heart.enter("running")
            notify(READY)
            try:
                coordinator.run()
            finally:
                notify(STOPPING)


def note_seen(heart: Heartbeat, seen: Mapping[str, float]) -> None:
    """Write when each site was heard last, beside what an earlier server left."""
    before = heart.facts.get(SEEN)
    known = dict(before) if isinstance(before, dict) else {}
    heart.note(**{SEEN: known | dict(seen)})


def sweep(place: ServerState, record: StudyRecord) -> None:
    """Remove what earlier starts left: unfinished files, folders of closed rounds, sockets."""
    parts = sweep_parts(place.root)
    rounds = sweep_rounds(record)
    sweep_sockets(place)
    if parts or rounds:
        write(f"swept {parts} unfinished files and {rounds} folders of closed rounds\n")


def sweep_sockets(place: ServerState) -> None:
    """Remove sockets that nobody listens on any more."""
    for path in (place.superlink / SOCKETS).glob("*.sock"):
        path.unlink(missing_ok=True)


def issue_certificate(place: ServerState, config: ServerConfig) -> None:
    """Make a fresh certificate; where the authority's key is elsewhere, check the one there is."""
    if (place.authority / AUTHORITY_KEY).exists():
        files = issue_for_server(place, config)
        check_certificate(files.certificate, read_certificate(place.authority / "ca.crt"))
    else:
        root = issuer_of(place, read_certificate(place.tls / "server.crt"))
        check_server_files(place.tls, root, config.host)
    # beside it the authority that comes, while the old one is replaced
    write_trust(place)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends the server as ctrl-C does."""
    raise KeyboardInterrupt


def check_installation() -> None:
    """Check that Flower has the pinned version and that our package names are ours.

    The ServerApp's process imports them by name.
    """
    if version("flwr") != FLWR_VERSION:
        raise EnvironmentFault(
            f"flwr {version('flwr')} is installed, expected {FLWR_VERSION}",
            hint=f"install flwr=={FLWR_VERSION} into this environment",
        )
    here = Path(__file__).resolve().parents[2]
    for name in ("client", "common", "server"):
        spec = find_spec(name)
        origin = str(spec.origin) if spec else "not installed"
        if here not in Path(origin).resolve().parents:
            raise EnvironmentFault(
                f"package {name}: expected below {here}, found {origin}",
                hint="install kohort alone, in its own environment",
                code="E-SHADOWED",
            )
