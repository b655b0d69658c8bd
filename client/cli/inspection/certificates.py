"""Looks at the certificates of this site, and at what ends soon."""

from __future__ import annotations

from collections.abc import Iterator

from client.cli.inspection.scene import Scene, name_failure, name_fault
from client.fleet.diagnosis import look_closer
from client.fleet.expiry import ending_certificates
from client.fleet.failures import classify
from client.fleet.own_certificate import OutsideDates, check_own_certificate
from common.alerts import Alert


def look_at_own_certificate(scene: Scene) -> Iterator[Alert | str]:
    """This site's certificate is its CA's and valid now, or the clock is wrong."""
    try:
        check_own_certificate(scene.settings)
    except OutsideDates as error:
        failure = classify(error)
        if not scene.offline and not scene.daemon.alive:
            failure = look_closer(failure, scene.settings)
        yield name_failure(failure)


def look_at_endings(scene: Scene) -> Iterator[Alert | str]:
    """What ends soon is a note, what ends in days a fault."""
    for one in ending_certificates(scene.settings):
        if one.severity == "error" and not one.ended:
            yield name_fault("CERTIFICATE-ENDS", one.line.removesuffix(f": {one.fix}"), one.fix)
        elif not one.ended:
            yield f"{one.severity}: {one.line}"
