"""Takes one announced message into the inbox, or refuses it: steps 2 to 6 of client.py.

In: the shell of a message, a connection, the site's own rules.
Out: a stored and confirmed message, or MessageRefused.
Guarantees: of a message whose header the site does not admit, no payload is pulled and nothing is
stored; no more bytes come than the header's array declares, and no more than the inbox has room
for.
Not covered: when a message is pulled at all (client.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from flwr.app import Error

from client.fleet import health as states
from client.fleet.connection import FleetSettings
from client.fleet.failures import Backoff, CallFailed
from client.fleet.inbox import Inbox
from client.fleet.messages import (
    CONTENT_REFUSED,
    OBJECT_LOST,
    MessageRefused,
    check_app,
    check_object,
    error_code,
    object_ids,
    too_large,
)
from client.fleet.preview import Preview, read_preview
from client.fleet.session import Session
from client.fleet.wire import PulledMessage, Wire

PULL_LIMIT_S = 600.0

Pins = Callable[[], set[str]]
Admit = Callable[[bytes, bytes, int], None]


class Receiver:
    """Pulls the objects of one message after the other.

    `pins` returns the app hashes of the approved plans. `admit` gets header, signature and the
    payload's declared bytes; it raises unless the site takes such an instruction.
    """

    def __init__(
        self, settings: FleetSettings, session: Session, inbox: Inbox, pins: Pins, admit: Admit
    ) -> None:
        self._settings = settings
        self._session = session
        self._inbox = inbox
        self.pins = pins
        self._admit = admit

    def receive(
        self, wire: Wire, pulled: PulledMessage, turn: Callable[[], None], stop: threading.Event
    ) -> None:
        """Store a message that passes; `turn` is called often, for a watchdog.

        Raises MessageRefused for any other, CallFailed when the connection fails.
        """
        run_id = pulled.metadata.run_id
        pull = _Pull(self._settings, self._session, wire, run_id, turn, stop)
        # (2) check the app's hash against the approved plans
        check_app(wire.app_hash(self._session.own_id, run_id), self.pins())
        # (3) limit the number of objects
        ids = object_ids(pulled, self._settings.max_objects)
        # (4) admit the header, before anything else is pulled
        preview = read_preview(pulled.message_id, frozenset(ids), pull.fetch)
        self._check(preview)
        # (5) check every object against its identifier, store and sync
        objects = pull.all_objects(preview, self._settings.max_message_bytes)
        self._inbox.store(pulled.message_id, pulled.to_bytes(), objects)

    def _check(self, preview: Preview) -> None:
        """Raise MessageRefused unless the site admits the header and has room for the payload."""
        if preview.size_bytes > self._settings.max_message_bytes:
            raise too_large(f"{preview.size_bytes} bytes declared")
        try:
            self._admit(preview.header, preview.signature, preview.size_bytes)
        except Exception as error:
            code = error_code(error)
            refused = Error(CONTENT_REFUSED, code)
            raise MessageRefused(states.INSTRUCTION_REFUSED, refused, code) from error
        if not self._inbox.has_room(preview.most_bytes):
            raise MessageRefused(states.INBOX_FULL, Error(CONTENT_REFUSED, "E-INBOX-FULL"))


class _Pull:
    """The objects of one message, over one connection, within one time limit."""

    def __init__(
        self,
        settings: FleetSettings,
        session: Session,
        wire: Wire,
        run_id: int,
        turn: Callable[[], None],
        stop: threading.Event,
    ) -> None:
        self._settings = settings
        self._session = session
        self._wire = wire
        self._run_id = run_id
        self._turn = turn
        self._stop = stop
        self._deadline = time.monotonic() + PULL_LIMIT_S

    def all_objects(self, preview: Preview, max_bytes: int) -> Iterator[tuple[str, bytes]]:
        """Yield every object, checked, while the chunks stay within what was declared."""
        yield from preview.objects.items()
        total = 0
        limit = min(preview.most_bytes, max_bytes)
        for object_id in preview.chunk_ids:
            content = self.fetch(object_id)
            total += len(content)
            if total > limit:
                raise too_large(f"over {limit} bytes")
            yield object_id, content

    def fetch(self, object_id: str) -> bytes:
        """Return one object, checked against its identifier.

        Tries again while it is still being uploaded, or when the connection fails.
        """
        backoff = Backoff(self._settings)
        while True:
            self._turn()
            try:
                answer = self._wire.pull_object(self._session.own_id, self._run_id, object_id)
                if not answer.object_found:
                    lost = Error(OBJECT_LOST, "E-MESSAGE-LOST")
                    raise MessageRefused(states.MESSAGE_CORRUPT, lost, "object gone")
                if answer.object_available:
                    content = bytes(answer.object_content)
                    check_object(object_id, content)
                    return content
                failure = CallFailed(states.SERVER_BUSY, "object not there yet")
            except CallFailed as error:
                failure = error
            if failure.is_final or time.monotonic() > self._deadline:
                raise failure
            if self._stop.wait(backoff.after(failure)):
                raise failure
