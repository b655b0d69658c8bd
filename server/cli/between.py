"""`run` without a bundle: the time between studies, in which sites renew their certificates.

In: the operator's state folder. Out: the front alone, until SIGTERM or ctrl-C.
Guarantees: the same door and the same rules as beside a study; no SuperLink runs, so no call of a
study is answered.
"""

from __future__ import annotations

import logging
import os
import signal
import time

from common.logs import log_to_standard_error
from common.notify import READY, STOPPING, Watchdog, notify
from common.storage.heartbeat import Heartbeat
from server.cli.state_folder import open_registry
from server.front.port import open_door, spell
from server.operator.config import ServerConfig
from server.operator.expiry import ending_certificates
from server.operator.issuing import Issuer
from server.operator.state import ServerState
from server.rounds.metrics import ServerMetrics, shown
from server.rounds.standing import BETWEEN

TURN_S = 0.5
log = logging.getLogger("kohort.server")


def serve_front(place: ServerState, config: ServerConfig, heart: Heartbeat, port: int) -> None:
    """Keep the front up and issue what sites ask for; ends by KeyboardInterrupt alone."""
    log_to_standard_error(config.log)
    # Flower takes a second of CPU to import, which no other command should spend.
    from server.flower.superlink import front_child, make_private

    make_private(place.superlink)
    with (
        shown(ServerMetrics(place, config)),
        open_registry(place) as registry,
        open_door(place.root.resolve(), config, port) as door,
    ):
        log.info("between studies: the front on %s", spell(config.listen.host, port))
        for ending in ending_certificates(place, registry.sites()):
            log.info("%s: %s", ending.severity, ending.line)
        child = front_child(door, place.superlink.resolve(), between=True)
        signal.signal(signal.SIGHUP, lambda *_: child.hang_up())
        watchdog = Watchdog()
        issuer = Issuer(place, registry, lambda line: log.info("%s", line))
        heart.note(**{BETWEEN: True})
        heart.enter("running")
        try:
            child.keep(os.environ, place.superlink)
            notify(READY)
            while True:
                child.keep(os.environ, place.superlink)
                watchdog.beat()
                heart.beat()
                issuer.turn()
                time.sleep(TURN_S)
        finally:
            notify(STOPPING)
            child.end()
