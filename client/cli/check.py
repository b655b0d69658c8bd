"""`check`: everything that would stop a run, found before it starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Annotated

import typer

from client.cli.joining import check_fields
from client.cli.options import StateFolder
from client.cli.state_folder import open_plans
from client.cli.terminal import write_line
from client.daemon.device import find_devices
from client.fleet.connection import check_addresses, read_node_key, tls_context
from client.fleet.expiry import ending_certificates
from client.fleet.failures import CallFailed
from client.fleet.health import KEY_UNKNOWN, Health
from client.fleet.own_certificate import check_own_certificate
from client.fleet.session import Session
from client.fleet.settings import fleet_settings
from client.fleet.wire import Wire
from client.ingest.cohort import Cohort
from client.state.config import check_plan, load_site
from client.state.folder import State
from client.state.machine import check_memory, memory_lines, read_room
from client.state.membership import read_membership
from client.state.upgrade import check_state
from common.errors import ConfigurationError, EnvironmentFault, KohortError
from common.process import usable_cores
from common.storage.lock import FolderLock
from common.study.fit import check_checkpoints

DISTRIBUTION = "kohort-app"  # the name in pyproject.toml
DISK_BYTES = 2 << 30
CALL_TIMEOUT_S = 10

Look = Callable[[Path], Iterator[str]]
Offline = Annotated[bool, typer.Option("--offline", help="do not call the server")]


def check(state: StateFolder, offline: Offline = False) -> None:
    """Look for everything that would stop a run, before it starts. Ends with 2 if there is any."""
    devices: list[str] = []
    soon: list[str] = []
    looks: dict[str, Look] = {
        "configuration": _check_files,
        "certificates": partial(_check_certificates, soon),
        "program": _check_program,
        "machine": _check_machine,
        "device": partial(_check_device, devices),
        "plans": _check_plans,
        "state": _check_state,
    }
    if not offline:
        looks["server"] = _check_server
    problems: list[str] = []
    for name, look in looks.items():
        found = list(_problems_of(look, state))
        outcome = "ok"
        if found:
            outcome = f"{len(found)} to repair"
        write_line(f"{name}: {outcome}")
        for line in {"device": devices, "certificates": soon}.get(name, ()):
            write_line(f"  {line}")
        # One broken file fails several looks: name it once.
        problems += [line for line in found if line not in problems]
        if name == "plans":
            _show_forecasts(state)
    if problems:
        raise ConfigurationError(
            f"{len(problems)} problems", problems=problems, hint="repair them and check again"
        )


def _show_forecasts(state: Path) -> None:
    """Write memory and time of each approved plan; what is broken is named as a problem."""
    try:
        config = load_site(state)
        room = read_room(config.limits, config.compute)
        studies = open_plans(state).valid()
    except KohortError:
        return
    for study in studies.values():
        write_line(f"plan {study.name} needs here, about:")
        for text in memory_lines(study, room):
            write_line(text)


def _problems_of(look: Look, state: Path) -> Iterator[str]:
    """Yield the findings of a check; a KohortError is a finding too."""
    try:
        yield from look(state)
    except KohortError as error:
        hint = ""
        if error.hint:
            hint = f" ({error.hint})"
        for line in getattr(error, "problems", ()) or (str(error),):
            yield line + hint


def _check_files(state: Path) -> Iterator[str]:
    """site.yaml, keys, membership and data are there."""
    config = load_site(state)
    place = State(state)
    place.signing_key()
    place.pseudonym_bytes()
    read_node_key(place.node_key)

    # The keys are for the site's account alone.
    for key in (place.sign_key, place.pseudonym_key, place.node_key):
        if key.stat().st_mode & 0o077:
            yield f"{key}: readable by others (chmod 600 {key})"

    # The data can be read.
    data = Path(config.data.folder)
    if not data.is_dir() or not os.access(data, os.R_OK | os.X_OK):
        yield f"{data}: not a folder that can be read"
    if config.data.labels_csv and not Path(config.data.labels_csv).is_file():
        yield f"{config.data.labels_csv}: no such file"

    # What TLS needs is usable.
    membership = read_membership(place.membership)
    check_fields(membership)
    settings = fleet_settings(place, config, membership)
    check_addresses(settings.url, settings.proxy)
    tls_context(settings)


def _check_certificates(shown: list[str], state: Path) -> Iterator[str]:
    """This site's certificate is its CA's and valid now; `shown` takes what ends soon."""
    place = State(state)
    settings = fleet_settings(place, load_site(state), read_membership(place.membership))
    check_own_certificate(settings)
    for one in ending_certificates(settings):
        if one.severity == "error":
            yield one.line
        else:
            shown.append(f"{one.severity}: {one.line}")


def _check_program(state: Path) -> Iterator[str]:
    """No other distribution has a package of our general names."""
    owners = packages_distributions()
    for name in ("client", "common", "server"):
        others = sorted(set(owners.get(name, [])) - {DISTRIBUTION})
        if others:
            yield (
                f"the package name {name} also belongs to {', '.join(others)} "
                "(give kohort an environment of its own)"
            )


def _check_machine(state: Path) -> Iterator[str]:
    """The disk has space and no other process works on the folder."""
    load_site(state)
    free = shutil.disk_usage(state).free
    if free < DISK_BYTES:
        yield f"{state}: {free >> 20} MiB free, at least {DISK_BYTES >> 20} needed"
    try:
        FolderLock(state / "lock", "kohort-site run").release()
    except EnvironmentFault as error:
        yield str(error)


def _check_device(shown: list[str], state: Path) -> Iterator[str]:
    """The devices of site.yaml are there; `shown` takes them in words."""
    compute = load_site(state).compute
    shown += find_devices(compute)
    cores = usable_cores()
    if compute.processes > cores:
        shown.append(f"compute.processes is {compute.processes}: no faster than {cores}, the cores")
    yield from ()


def _check_plans(state: Path) -> Iterator[str]:
    """Approved plans are intact and allowed, their cohorts large enough."""
    config = load_site(state)
    place = State(state)
    plans = open_plans(state)
    if not plans.hashes():
        yield "no plan is approved (kohort-site approve BUNDLE)"
    valid = plans.valid()
    for plan_hash in set(plans.hashes()) - set(valid):
        yield f"plan {plan_hash[:12]}: not valid in this version; ask the operator for another"
    for study in valid.values():
        check_plan(study, config.policy, config.site)
        check_checkpoints(study, plans.checkpoints(study))
        check_memory(study, read_room(config.limits, config.compute))
        folder = place.cohort(study.intake)
        if not folder.is_dir():
            yield f"plan {study.name}: no cohort yet (kohort-site ingest)"
        elif study.synthesis and Cohort.open(folder).patient_count < study.synthesis.k:
            yield f"plan {study.name}: fewer patients than k={study.synthesis.k}"


def _check_state(state: Path) -> Iterator[str]:
    """The state is as new as all that it signed, and as the operator's receipts."""
    load_site(state)
    check_state(State(state))
    yield from ()


def _check_server(state: Path) -> Iterator[str]:
    """The server lets this site in: name, way, certificate, membership, clock."""
    place = State(state)
    settings = fleet_settings(place, load_site(state), read_membership(place.membership))
    settings = replace(settings, timeout_s=CALL_TIMEOUT_S)
    check_addresses(settings.url, settings.proxy)
    session = Session(settings, Health())
    session.load()
    wire = Wire(settings)
    try:
        wire.send_heartbeat(session.own_id)
    except CallFailed as failure:
        found = failure.state
        # before the first run there is no id to greet with; the front has let this site in
        if found is KEY_UNKNOWN and session.node_id is None:
            return
        yield f"{settings.url}: {found.text} ({found.fix})"
    finally:
        wire.close()
