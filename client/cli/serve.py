"""`ingest` and `run`: the cohorts of the approved plans, and the daemon that answers the server."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli.options import StateFolder
from client.cli.state_folder import open_plans, open_site
from client.cli.terminal import write_line
from client.cli.yields import yield_lines
from client.daemon.certificates import CertificateWatch, mend_rotation
from client.daemon.device import find_devices, note_devices
from client.daemon.metrics import SiteMetrics, shown
from client.daemon.site import Site
from client.fleet import health as states
from client.fleet.diagnosis import ignored_proxy
from client.fleet.health import Health
from client.fleet.renewal import Renewal
from client.fleet.settings import fleet_settings
from client.ingest.build import IngestReport
from client.ingest.quarantine import Reason
from client.rehearsal.scratch import remove_pictures, sweep_rehearsal
from client.state.config import load_site
from client.state.folder import State
from client.state.sweep import sweep
from client.state.work import at_work
from common.errors import KohortError, PolicyError
from common.logs import log_to_standard_error
from common.notify import READY, STOPPING, Watchdog, notify
from common.process import STARTED
from common.storage import heartbeat
from common.storage.heartbeat import Heartbeat
from common.storage.lock import FolderLock
from common.storage.reserve import hold_reserve, write_with_reserve
from common.study.plan import Study

if TYPE_CHECKING:
    from client.fleet.client import FleetClient

DELIVERY_WAIT_S = 120.0
DELIVERY_POLL_S = 0.1
STOP_POLL_S = 0.2
LOOK_S = 5.0  # how often the daemon looks after its folder
JOINS_SHOWN = 50  # on the screen of an intake
WORK_S = 60.0  # how often it logs what its child is at
log = logging.getLogger("kohort")

Refresh = Annotated[
    bool, typer.Option("--refresh", help="build the cohorts anew from the files that are there now")
]
UntilDone = Annotated[
    bool, typer.Option("--until-done", help="end when the operator closes the study")
]


def ingest(state: StateFolder, refresh: Refresh = False) -> None:
    """Build the cohorts of all approved plans from the data folder.

    Counts are shown on this screen alone and never logged. --refresh takes in files that came,
    went or changed; the daemon must be stopped for it, and goes on with the new cohort.
    """
    load_site(state)
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    with FolderLock(state / "lock", "kohort-site ingest"), open_site(state, lines=True) as site:
        if refresh:
            remove_pictures(state)
        for plan_hash, study in _require_plans(site).items():
            found[plan_hash] = list(_take_in(site, study, refresh, seen))
        site.intakes.sweep(study.intake for study in site.plans.valid().values())
    for plan_hash, lines in found.items():
        for text in lines:
            write_line(f"{plan_hash[:12]}: {text}")
    for study in open_plans(state).valid().values():
        for text in yield_lines(State(state), study):
            write_line(text)


def _take_in(site: Site, study: Study, refresh: bool, seen: set[str]) -> Iterator[str]:
    """Build or refresh the cohort of one plan; yield what a person reads.

    Plans with the same intake rules share a cohort: it is taken in once. `seen`: such rules.
    """
    rules = study.intake.model_dump_json()
    if rules in seen:
        yield "the same cohort as above"
        return
    seen.add(rules)
    refreshed = site.refresh(study) if refresh else None
    if refreshed is not None:
        yield from refreshed.lines()
        yield from ingest_lines(refreshed.report)
        return
    report = site.cohort(study)
    yield from ingest_lines(report)
    changes = site.intakes.changes(study.intake) if report is None else None
    if changes:
        yield f"files since then: {changes.words()}; kohort-site ingest --refresh takes them in"


def ingest_lines(report: IngestReport | None) -> Iterator[str]:
    """Yield what became of the files; for this screen only."""
    if report is None:
        yield "the cohort is there already"
        return
    yield (
        f"{report.ingested} files of {report.patients} patients ({report.merged} under several "
        f"ids, {report.most_ids} ids at most)"
    )
    for what, count in report.silent.items():
        yield f"{count} files were taken though their headers do not name the {what}"
    for text in report.warnings:
        yield f"warning: {text}"
    yield from report.eyes
    for text in report.joins[:JOINS_SHOWN]:
        yield f"one person: {text}"
    if len(report.joins) > JOINS_SHOWN:
        yield f"and {len(report.joins) - JOINS_SHOWN} joins more: kohort-site persons"
    for code, count in report.quarantined.items():
        yield f"not used: {count} files, {code}: {Reason(code).sentence}"
    if report.quarantined:
        yield "`kohort-site quarantine` lists these files, with what to do"
    yield from report.labels


def run(state: StateFolder, until_done: UntilDone = False) -> None:
    """Connect to the server and take part until stopped.

    Ends on SIGTERM and ctrl-C; what was journaled is kept.
    """
    log_to_standard_error(load_site(state).log)
    with (
        FolderLock(state / "lock", "kohort-site run"),
        closing(Heartbeat(state, "kohort-site run")) as heart,
        _last_words(heart),
        open_site(state, heart.beat_while_starting) as site,
    ):
        heart.note(**{states.STATES_NOW: []})
        # What a killed process left, and room for what must be recorded on a full disk.
        sweep(site.state, STARTED)
        sweep_rehearsal(state)
        mend_rotation(site.state, site.config.site)
        hold_reserve(state)
        # A damaged ledger or a missing cohort must stop the daemon before it connects.
        studies = _require_plans(site)
        _find_devices(site)
        site.ledger().verify()
        for study in studies.values():
            site.cohort(study)
        _serve(site, heart, until_done)


@contextmanager
def _last_words(heart: Heartbeat) -> Iterator[None]:
    """Write down the code of what ends the daemon, for `status`."""
    try:
        yield
    except KohortError as error:
        heart.note(**{states.LAST_ERROR: {"code": error.code, "time": time.time()}})
        raise


def _find_devices(site: Site) -> None:
    """Log where the children will compute; a GPU that is not there ends the run before it spends.

    Raises ConfigurationError (E-DEVICE).
    """
    lines = find_devices(site.config.compute)
    for line in lines:
        log.info("computing on %s", line)
    write_with_reserve(site.state.root, lambda: note_devices(site.state, lines))


def _require_plans(site: Site) -> dict[str, Study]:
    """Return the approved plans by hash; raises PolicyError if there is none that is valid."""
    studies = site.plans.valid()
    if not studies:
        raise PolicyError(
            "no plan is approved here that this version can read", hint="kohort-site approve BUNDLE"
        )
    return studies


def _serve(site: Site, heart: Heartbeat, until_done: bool) -> None:
    """Run the fleet client until a signal, or until the study is closed and all is delivered."""
    health = _health(heart)
    settings = fleet_settings(site.state, site.config, site.membership)
    with shown(SiteMetrics(site, health, settings, site.state.root / heartbeat.FILE)):
        _connect(site, heart, health, until_done)


def _connect(site: Site, heart: Heartbeat, health: Health, until_done: bool) -> None:
    """Run the client in a thread of its own; its error is raised here."""
    watchdog = Watchdog()
    client = _fleet_client(site, health, watchdog.turn)
    certificates = CertificateWatch(
        Renewal(site.state, client.settings, site.config.site), client, site.stop
    )
    client.on_rest = certificates.rest
    heart.enter("running")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: site.stop.set())
    signal.signal(signal.SIGHUP, lambda *_: _reload(client))

    # The transport runs beside this thread, which waits for signals.
    ended: list[BaseException] = []

    def transport() -> None:
        try:
            client.run(site.stop)
        except BaseException as error:
            ended.append(error)
        site.stop.set()

    thread = threading.Thread(target=transport, name="transport")
    thread.start()
    certificates.start()
    log.info("serving %s as %s", site.membership.server_url, site.config.site)
    ignored = ignored_proxy(os.environ) if site.config.network.proxy is None else ""
    if ignored:
        log.warning("%s", ignored)
    notify(READY)

    try:
        _wait(site, health, until_done, watchdog, heart)
    finally:
        notify(STOPPING)
        # whatever ends this thread: nothing goes on once the lock of the folder is free
        site.stop.set()
        thread.join()
    if ended:
        raise ended[0]


def _give_signs(watchdog: Watchdog, heart: Heartbeat, health: Health) -> None:
    """Tell systemd and the heartbeat file that both loops go round."""
    watchdog.feed()
    if not watchdog.stands():
        heart.note_later(**health.to_dict())
        heart.beat()


def _wait(
    site: Site, health: Health, until_done: bool, watchdog: Watchdog, heart: Heartbeat
) -> None:
    """Look after the state folder until the site is stopped."""
    looked = -LOOK_S
    logged = time.monotonic()
    while not site.stop.wait(STOP_POLL_S):
        _give_signs(watchdog, heart, health)
        if time.monotonic() - looked >= LOOK_S:
            looked = time.monotonic()
            _look_around(site.state, health)
        if time.monotonic() - logged >= WORK_S:
            logged = time.monotonic()
            _log_work(site)
        # The last reply must be delivered before the process may end.
        if until_done and site.done.is_set():
            _wait_for_delivery(site.state.root / "fleet" / "inbox")
            log.info("the study is closed")
            site.stop.set()


def _log_work(site: Site) -> None:
    """Log what the child is at, without the number of images; a fault here stops no work."""
    try:
        for plan_hash, study in site.plans.valid().items():
            for one in at_work(site.state, plan_hash, study):
                log.info("%s: %s", study.name, one.line(time.time(), counts=False))
    except KohortError as error:
        log.warning("what is at work cannot be read: %s", error.code)


def _reload(client: FleetClient) -> None:
    """Connect anew, with the certificate that is there now."""
    log.info("reading certificates again")
    client.reconnect()


def _look_around(state: State, health: Health) -> None:
    """Make the reserve again where the disk has room."""
    if hold_reserve(state.root):
        health.clear(states.DISK)
    else:
        health.set(states.DISK_FULL)


def _health(heart: Heartbeat) -> Health:
    """Return the health states, which the heartbeat file follows."""
    health = Health(lambda: heart.note(**health.to_dict()))
    return health


def _fleet_client(site: Site, health: Health, on_turn: Callable[[], None]) -> FleetClient:
    """Return the client of a site; its pull loop calls `on_turn`."""
    # Flower takes half a second that no other command needs
    from client.fleet.app import build_app
    from client.fleet.client import FleetClient

    settings = fleet_settings(site.state, site.config, site.membership)
    app = build_app(site.answer, lambda error: note_refusal(health, error))
    return FleetClient(settings, site.plans.pins, app, health, on_turn, admit=site.admit)


def note_refusal(health: Health, error: KohortError | None) -> None:
    """Show what this site refuses to do, with code and fix, until it answers again."""
    from client.fleet.app import explain, public_code

    if error is None or error.code == "E-STUDY-ENDED":
        health.clear(states.WORK)
    else:
        health.record_error(public_code(error))
        health.set(states.WORK_REFUSED, explain(error))


def _wait_for_delivery(inbox: Path) -> None:
    """Wait until every reply is delivered: a message's folder goes with its reply."""
    deadline = time.monotonic() + DELIVERY_WAIT_S
    while time.monotonic() < deadline and inbox.is_dir() and any(inbox.iterdir()):
        time.sleep(DELIVERY_POLL_S)
