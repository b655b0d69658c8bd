"""Asks the server whether it lets this site in."""

from __future__ import annotations

import os
from collections.abc import Iterator

from client.cli.inspection.scene import Scene, name_failure
from client.fleet import health
from client.fleet.connection import FleetSettings, check_addresses, read_node_key, tls_context
from client.fleet.diagnosis import ignored_proxy, look_closer
from client.fleet.failures import CallFailed
from client.fleet.health import Health, read_states
from client.fleet.own_certificate import check_own_certificate
from client.fleet.session import Session
from client.fleet.wire import Wire
from common.alerts import Alert
from common.errors import KohortError
from common.storage.heartbeat import Life


def look_at_server(scene: Scene) -> Iterator[Alert | str]:
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
        yield name_failure(look_closer(failure, settings), settings.url)
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
