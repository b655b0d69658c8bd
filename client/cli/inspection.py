"""Everything that would stop a run, found before it starts, all of it at once.

In: the state folder. Out: one `Look` for each thing that is looked at, with every fault in it: a
code, the true cause, the fix.
Guarantees: one broken thing hides no other: each part is looked at by itself; nothing is changed.
Beside a daemon that runs nothing is asked of the server: what that daemon knows is told.
Not covered: faults that only work shows, such as a GPU that fails later.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import packages_distributions
from pathlib import Path

from client.cli.joining import check_fields
from client.cli.labels import asked_of, explain, sealing_key
from client.cli.state_folder import open_plans
from client.daemon.device import find_devices, noted_devices
from client.fleet import health
from client.fleet.connection import FleetSettings, check_addresses, read_node_key, tls_context
from client.fleet.diagnosis import ignored_proxy, look_closer
from client.fleet.expiry import ending_certificates
from client.fleet.failures import CallFailed, classify
from client.fleet.health import Health, read_states
from client.fleet.own_certificate import OutsideDates, check_own_certificate
from client.fleet.session import Session
from client.fleet.settings import fleet_settings
from client.fleet.wire import Wire
from client.ingest.archive import is_archive, mark_source
from client.ingest.cohort import Cohort
from client.ingest.refresh import choices_of
from client.ingest.request import Limits
from client.ingest.sealed import is_sealed
from client.ingest.text_detector import is_installed
from client.state.config import FILE, SiteConfig, check_plan, load_site
from client.state.folder import State
from client.state.machine import check_memory, memory_lines, read_room
from client.state.membership import read_membership
from client.state.upgrade import check_state
from common.alerts import Alert
from common.errors import ConfigurationError, EnvironmentFault, KohortError, PolicyError
from common.process import usable_cores
from common.storage.heartbeat import Life, life_of
from common.storage.lock import FolderLock
from common.study.fit import check_checkpoints
from common.study.plan import Study

DISTRIBUTION = "kohort-app"  # the name in pyproject.toml
DISK_BYTES = 2 << 30
CALL_TIMEOUT_S = 10

# yields a fault as an Alert, a note as a text, or raises a KohortError
Part = Callable[["Scene"], Iterator[Alert | str]]


@dataclass(frozen=True)
class Look:
    """What one look found: faults to mend, and notes that are none."""

    name: str
    faults: tuple[Alert, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """What the parts look at; what cannot be read is a fault of the part that asks first."""

    root: Path
    offline: bool
    daemon: Life
    brief: bool = False

    @property
    def place(self) -> State:
        """The state folder."""
        return State(self.root)

    @property
    def config(self) -> SiteConfig:
        """site.yaml."""
        return load_site(self.root)

    @property
    def settings(self) -> FleetSettings:
        """How the server is reached."""
        membership = read_membership(self.place.membership)
        settings = fleet_settings(self.place, self.config, membership)
        return replace(settings, timeout_s=CALL_TIMEOUT_S)


def inspect_site(state: Path, *, offline: bool = False, brief: bool = False) -> Iterator[Look]:
    """Yield one look after the other; a fault that several of them meet is named once.

    `brief`: the labels file is not compared with the data folder. Raises ConfigurationError for a
    folder that is no site's.
    """
    if not (state / FILE).is_file():
        load_site(state)
    scene = Scene(state, offline, life_of(state), brief)
    looks: dict[str, tuple[Part, ...]] = {
        "configuration": (_config, _keys, _open_keys, _data, _vouched, _labels, _membership, _tls),
        "certificates": (_own_certificate, _endings),
        "program": (_packages,),
        "machine": (_disk, _lock),
        "device": (_device,),
        "plans": (_plans,),
        "state": (_state,),
    }
    if not offline:
        looks["server"] = (_server,)
    known: set[Alert] = set()
    for name, parts in looks.items():
        faults: dict[Alert, None] = {}
        notes: list[str] = []
        for part in parts:
            for found in _tried(part, scene):
                if isinstance(found, str):
                    notes.append(found)
                else:
                    faults[found] = None
        yield Look(name, tuple(fault for fault in faults if fault not in known), tuple(notes))
        known |= set(faults)


def _tried(part: Part, scene: Scene) -> Iterator[Alert | str]:
    """Yield what a part finds; a KohortError is a fault, too."""
    try:
        yield from part(scene)
    except KohortError as error:
        yield from _faults_of(error)


def _faults_of(error: KohortError) -> Iterator[Alert]:
    """Yield one fault for each problem of an error."""
    for line in getattr(error, "problems", ()) or (str(error),):
        yield Alert("error", error.code, line, error.hint)


def _fault(code: str, text: str, fix: str) -> Alert:
    """A fault by its code (common/codes.toml)."""
    return Alert("error", code, text, fix)


# --- configuration --------------------------------------------------------------------------------


def _config(scene: Scene) -> Iterator[Alert | str]:
    """site.yaml can be read, and its addresses can be called."""
    proxy = scene.config.network.proxy
    check_addresses(scene.settings.url, proxy)
    yield from ()


def _keys(scene: Scene) -> Iterator[Alert | str]:
    """The keys are there, each named by itself."""
    place = scene.place
    reads: tuple[Callable[[], object], ...] = (
        place.signing_key,
        place.pseudonym_bytes,
        lambda: read_node_key(place.node_key),
    )
    for read in reads:
        try:
            read()
        except KohortError as error:
            yield from _faults_of(error)


def _open_keys(scene: Scene) -> Iterator[Alert | str]:
    """The keys are for the site's account alone."""
    place = scene.place
    for key in (place.sign_key, place.pseudonym_key, place.node_key):
        if key.is_file() and key.stat().st_mode & 0o077:
            yield _fault("E-KEY-OPEN", f"{key}: readable by others", f"chmod 600 {key}")


def _data(scene: Scene) -> Iterator[Alert | str]:
    """The data folder can be read."""
    folder = Path(scene.config.data.folder)
    if not folder.exists():
        yield _fault(
            "E-DATA-FOLDER",
            f"{folder}: no such folder",
            "mount it, or correct data.folder in site.yaml",
        )
    elif is_archive(folder) or is_sealed(folder):
        # its list of files; a look that is repeated every minute does not read it
        if not scene.brief:
            key = sealing_key(scene.root)
            mark_source(folder, scene.root / ".none", Limits(), skip=None, key=key)
    elif not folder.is_dir() or not _can_enter(folder):
        yield _fault(
            "E-DATA-FOLDER",
            f"{folder}: not a folder that can be read",
            "let this account read and enter it; kohort only reads",
        )


def _vouched(scene: Scene) -> Iterator[Alert | str]:
    """What this hospital decided about its files, so that whoever checks sees it."""
    if scene.config.data.derived == "accept":
        yield (
            "data.derived is accept: this hospital vouches that images with ImageType SECONDARY "
            "are plain copies, without text or drawings"
        )
    if choices_of(scene.config.data).find_text:
        yield "text in pixels is looked for: about 0.1 s of a core for each image"
    else:
        yield (
            f"text in pixels is not looked for: data.text_detector is "
            f"{scene.config.data.text_detector}, and rapidocr-onnxruntime is "
            f"{'' if is_installed() else 'not '}installed"
        )
    if scene.config.data.silent_headers == "refuse":
        yield "data.silent_headers is refuse: files that name no body part or view stay out"


def _can_enter(folder: Path) -> bool:
    """Whether this account may list a folder and open what is in it."""
    return os.access(folder, os.R_OK | os.X_OK)


def _labels(scene: Scene) -> Iterator[Alert | str]:
    """The labels file is there, can be read for the plans, and is of the data folder."""
    config = scene.config
    if config.data.labels_csv is None:
        return
    path = Path(config.data.labels_csv)
    if not path.is_file():
        yield _fault(
            "E-LABELS-FILE", f"{path}: no such file", "put it there, or correct data.labels_csv"
        )
        return
    # a look that is repeated every minute does not go through the folder
    brief = scene.brief or not Path(config.data.folder).exists()
    for asked in asked_of(dict(_valid_plans(scene))):
        for found in explain(scene.root, config, asked, brief=brief):
            if isinstance(found, KohortError):
                yield from _faults_of(found)
            else:
                yield found


def _membership(scene: Scene) -> Iterator[Alert | str]:
    """The join file's fields can be used; the certificate may have been renewed since."""
    check_fields(read_membership(scene.place.membership))
    yield from ()


def _tls(scene: Scene) -> Iterator[Alert | str]:
    """The files of TLS fit each other."""
    tls_context(scene.settings)
    yield from ()


# --- certificates ---------------------------------------------------------------------------------


def _own_certificate(scene: Scene) -> Iterator[Alert | str]:
    """This site's certificate is its CA's and valid now, or the clock is wrong."""
    try:
        check_own_certificate(scene.settings)
    except OutsideDates as error:
        failure = classify(error)
        if not scene.offline and not scene.daemon.alive:
            failure = look_closer(failure, scene.settings)
        yield _of_failure(failure)


def _endings(scene: Scene) -> Iterator[Alert | str]:
    """What ends soon is a note, what ends in days a fault."""
    for one in ending_certificates(scene.settings):
        if one.severity == "error" and not one.ended:
            yield _fault("CERTIFICATE-ENDS", one.line.removesuffix(f": {one.fix}"), one.fix)
        elif not one.ended:
            yield f"{one.severity}: {one.line}"


# --- program, machine, device ---------------------------------------------------------------------


def _packages(scene: Scene) -> Iterator[Alert | str]:
    """No other distribution has a package of our general names."""
    owners = packages_distributions()
    for name in ("client", "common", "server"):
        others = sorted(set(owners.get(name, [])) - {DISTRIBUTION})
        if others:
            yield _fault(
                "E-SHADOWED",
                f"the package name {name} also belongs to {', '.join(others)}",
                "give kohort an environment of its own",
            )


def _disk(scene: Scene) -> Iterator[Alert | str]:
    """The disk has space."""
    load_site(scene.root)
    free = shutil.disk_usage(scene.root).free
    if free < DISK_BYTES:
        yield _fault(
            "E-DISK-FULL",
            f"{scene.root}: {free >> 20} MiB free, at least {DISK_BYTES >> 20} needed",
            "free some space on the disk of the state folder",
        )


def _lock(scene: Scene) -> Iterator[Alert | str]:
    """The daemon runs and is healthy, or nobody works on the folder."""
    daemon = scene.daemon
    if daemon.alive:
        yield f"kohort-site run is {daemon.words()}"
        return
    if daemon.state == "hung":
        state = health.UNRESPONSIVE
        yield _fault(state.code, f"kohort-site run is {daemon.words()}", state.fix)
        return
    try:
        FolderLock(scene.root / "lock", "kohort-site").release()
    except EnvironmentFault as error:
        yield from _faults_of(error)


def _device(scene: Scene) -> Iterator[Alert | str]:
    """The devices of site.yaml are there; a daemon that runs has looked already."""
    compute = scene.config.compute
    yield from (scene.daemon.alive and noted_devices(scene.place)) or find_devices(compute)
    cores = usable_cores()
    if compute.processes > cores:
        yield f"compute.processes is {compute.processes}: no faster than {cores}, the cores"


# --- plans and state ------------------------------------------------------------------------------


def _valid_plans(scene: Scene) -> Iterator[tuple[str, Study]]:
    """Yield the approved plans that can be opened; the others are faults of `_plans`."""
    try:
        plans = open_plans(scene.root)
        hashes = plans.hashes()
    except KohortError:
        return
    for plan_hash in hashes:
        try:
            yield plan_hash, plans.open(plan_hash)
        except KohortError:
            continue


def _plans(scene: Scene) -> Iterator[Alert | str]:
    """Approved plans are intact and allowed, their cohorts large enough."""
    plans = open_plans(scene.root)
    if not plans.hashes():
        yield _fault("E-PLAN-UNAPPROVED", "no plan is approved", "kohort-site approve BUNDLE")
    for plan_hash in plans.hashes():
        try:
            study = plans.open(plan_hash)
        except ConfigurationError as error:
            if not error.problems:
                yield from _faults_of(error)
                continue
            yield _fault(
                "E-PLAN-VERSION",
                f"plan {plan_hash[:12]}: not valid in this version",
                "ask the operator for another",
            )
        except KohortError as error:
            yield from _faults_of(error)
        else:
            yield from _plan_faults(scene, study)


def _plan_faults(scene: Scene, study: Study) -> Iterator[Alert | str]:
    """Yield what is wrong with one plan here, and what it needs."""
    config = scene.config
    room = read_room(config.limits, config.compute)
    checkpoints = open_plans(scene.root).checkpoints(study)
    checks: tuple[Callable[[], object], ...] = (
        lambda: check_plan(study, config.policy, config.site),
        lambda: check_checkpoints(study, checkpoints),
        lambda: check_memory(study, room),
        lambda: _check_cohort(scene, study),
    )
    for check in checks:
        try:
            check()
        except KohortError as error:
            yield from _faults_of(error)
    yield f"plan {study.name} needs here, about:"
    yield from memory_lines(study, room)


def _check_cohort(scene: Scene, study: Study) -> None:
    """Raise PolicyError unless the cohort of a plan is there, whole and large enough."""
    folder = scene.place.cohort(study.intake)
    if not folder.is_dir():
        raise PolicyError(
            f"plan {study.name}: no cohort yet", hint="kohort-site ingest", code="E-COHORT-MISSING"
        )
    patients = Cohort.open(folder).patient_count
    if study.synthesis and patients < study.synthesis.k:
        raise PolicyError(
            f"plan {study.name}: fewer patients than k={study.synthesis.k}",
            hint="take more patients in (`kohort-site ingest --refresh`), or leave the study: a "
            "smaller k is for the plan and policy.min_k to allow",
            code="E-COHORT-SMALL",
        )


def _state(scene: Scene) -> Iterator[Alert | str]:
    """The state is as new as all that it signed, and as the operator's receipts."""
    load_site(scene.root)
    check_state(scene.place)
    yield from ()


# --- server ---------------------------------------------------------------------------------------


def _server(scene: Scene) -> Iterator[Alert | str]:
    """The server lets this site in: name, way, certificate, membership, clock."""
    settings = scene.settings
    ignored = ignored_proxy(os.environ) if settings.proxy is None else ""
    if ignored:
        yield ignored
    if scene.daemon.alive:
        yield from _as_daemon_sees_it(scene.daemon)
        return
    if not _may_call(settings):
        return
    session = Session(settings, Health())
    session.load()
    wire = Wire(settings)
    try:
        wire.send_heartbeat(session.own_id)
    except CallFailed as failure:
        # before the first run there is no id to greet with; the front has let this site in
        if failure.state is health.KEY_UNKNOWN and session.node_id is None:
            return
        if failure.state is health.BETWEEN_STUDIES:
            yield health.BETWEEN_STUDIES.text
            return
        yield _of_failure(look_closer(failure, settings), settings.url)
    finally:
        wire.close()


def _may_call(settings: FleetSettings) -> bool:
    """Whether a call makes sense: what is wrong on this side stands above already."""
    try:
        check_addresses(settings.url, settings.proxy)
        tls_context(settings)
        check_own_certificate(settings)
        read_node_key(settings.node_key_file)
    except KohortError:
        return False
    return True


def _as_daemon_sees_it(daemon: Life) -> Iterator[Alert | str]:
    """Yield the states that the running daemon is in; a second greeting would prove nothing."""
    for one in read_states(daemon.facts):
        state = one.state
        facts = f" ({one.facts})" if one.facts else ""
        if state.severity == "info":
            yield f"the daemon says: {state.text}{facts}"
        else:
            yield Alert(state.severity, state.code, f"{state.text}{facts}", state.fix)


def _of_failure(failure: CallFailed, url: str = "") -> Alert:
    """A failed call as a fault."""
    state = failure.state
    where = f"{url}: " if url and state is not health.CLOCK_OFF else ""
    facts = f" ({failure.facts})" if failure.facts else ""
    return _fault(state.code, f"{where}{state.text}{facts}", state.fix)
