"""Keeps this site online at the server: activation, the remembered node id, and heartbeats.

In: a connection, and the node id of the last session (`node-id` in the state folder).
Out: the node id, and whether the server knows this site now.
Not covered: who may join; the operator admits keys.
"""

from __future__ import annotations

import logging
import threading

from client.fleet import health as states
from client.fleet.connection import FleetSettings
from client.fleet.failures import CallFailed, classify
from client.fleet.health import Health
from client.fleet.wire import Wire
from common.storage.files import atomic_write, read_capped

HEARTBEAT_S = 10.0
JOIN_POLL_S = 0.2
NODE_ID_CAP_BYTES = 64
log = logging.getLogger(__name__)


class Session:
    """The site's presence at the server; the pull, heartbeat and reply loops share it."""

    def __init__(self, settings: FleetSettings, health: Health) -> None:
        self._settings = settings
        self._path = settings.state_dir / "node-id"
        self.generation = 0
        self._health = health
        self._joined = threading.Event()
        self.node_id: int | None = None

    @property
    def own_id(self) -> int:
        """The node id, 0 before the server gave one."""
        return self.node_id or 0

    def load(self) -> None:
        """Read the node id of the last session; None if there is none or it is not a number."""
        self.node_id = None
        if self._path.exists():
            text = read_capped(self._path, NODE_ID_CAP_BYTES).decode(errors="replace").strip()
            if text.isdecimal():
                self.node_id = int(text)

    def ensure_joined(self, wire: Wire) -> bool:
        """Be online: by a heartbeat with the remembered node id, else by activation.

        Return whether the site was offline before.
        """
        if self._joined.is_set():
            return False
        if self.node_id is None or not self._resume(wire):
            node_id = self._activate(wire)
            atomic_write(self._path, f"{node_id}\n".encode(), mode=0o600)
            self.node_id = node_id
            self._health.record_heartbeat()
        self._joined.set()
        return True

    def new_wire(self) -> Wire:
        """Return a connection, which opens anew after `reconnect`."""
        return Wire(self._settings, lambda: self.generation)

    def reconnect(self) -> None:
        """Let every connection open anew, with the certificate that is there now."""
        self.generation += 1

    def forget(self) -> None:
        """Be another node from now on: the key has changed, and the id was the old one's."""
        self._joined.clear()
        self.node_id = None
        self.reconnect()

    def mark_lost(self) -> None:
        """Note that the server may not know this site any more."""
        self._joined.clear()

    def wait_joined(self, stop: threading.Event) -> bool:
        """Wait until the server knows this site; return False when stopped."""
        while not stop.is_set():
            if self._joined.wait(JOIN_POLL_S):
                return True
        return False

    def heartbeat_loop(self, wire: Wire, stop: threading.Event) -> None:
        """Send a heartbeat every ten seconds until stop; no failure ends the loop."""
        while not stop.wait(HEARTBEAT_S):
            if not self._joined.is_set():
                continue
            try:
                if not self.send_heartbeat(wire):
                    self._joined.clear()
            except Exception as error:
                log.info("heartbeat: %s", classify(error).state.code)
        wire.close()

    def _activate(self, wire: Wire) -> int:
        """Return the node id of an activation.

        A key that had a node id and is not admitted was revoked.
        """
        try:
            return wire.activate()
        except CallFailed as failure:
            if failure.state is states.KEY_NOT_ADMITTED and self.node_id is not None:
                raise CallFailed(states.KEY_UNKNOWN, failure.facts, slow=True) from failure
            raise

    def _resume(self, wire: Wire) -> bool:
        """Return whether the server accepts the remembered node id.

        It would refuse a second activation of that node.
        """
        try:
            return self.send_heartbeat(wire)
        except CallFailed as failure:
            if failure.state is not states.KEY_UNKNOWN:
                raise
            # The id may be of another server; activation tells whether the key is known.
            return False

    def send_heartbeat(self, wire: Wire) -> bool:
        """Return whether the server accepted a heartbeat."""
        if not wire.send_heartbeat(self.own_id):
            return False
        self._health.record_heartbeat()
        return True
