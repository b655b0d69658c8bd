"""Replies as the ServerApp fetches them: looked for in one call, each fetched object by object.

In: a client of the SuperLink. Out: its answers, or Oversized before the object that is too much is
kept.
Guarantees: whatever a site pushed, at most `cap` bytes of one reply are in memory; however many
sites are awaited, the SuperLink is asked for news in one call, a few times a second.
Not covered: what a reply means (server/rounds/intake.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from server.front import rules
from server.rounds.faults import UNPACKING, Oversized

# A reply is announced before its objects come, an instant later as a rule: so long it is asked for
# again here. After that Flower asks again, a second later at the soonest.
PAUSES_S = (0.03, 0.06, 0.12, 0.24, 0.48)
LOOK_S = 0.2  # between two calls for news; longer for many sites, as such a call takes longer
LOOK_EACH_S = 0.01
STALE_S = 120.0  # who has not asked for so long waits no more, or asks again
FORGET_S = 3600.0  # a reply that nobody took for so long: its round is over
REPLY_CAP_BYTES = rules.REPLY_BYTES + rules.REPLY_EXTRA_BYTES


class News:
    """Which replies have come; the threads that wait for one each share the calls."""

    def __init__(
        self, empty: Callable[[], Any], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`empty`: makes an answer without messages."""
        self._empty = empty
        self._clock = clock
        self._asked_at: dict[str, float] = {}
        self._found: dict[str, tuple[float, Any, Any]] = {}
        self._unreadable: dict[str, Exception] = {}
        self._next_look = 0.0
        self._lock = threading.Lock()

    def ask(self, client: Any, request: Any) -> Any:
        """Return the SuperLink's answer about the messages of a request, from the last look.

        A reply is returned once. Raises what unpacking this reply alone raised (UNPACKING).
        """
        with self._lock:
            now = self._clock()
            for name in request.message_ids:
                self._asked_at[name] = now
            if now >= self._next_look:
                self._look(client, type(request), now)
            answer = self._empty()
            for name in request.message_ids:
                if name in self._unreadable:
                    self._asked_at.pop(name, None)
                    raise self._unreadable.pop(name)
                if name in self._found:
                    _, message, tree = self._found.pop(name)
                    answer.messages_list.append(message)
                    answer.message_object_trees.append(tree)
                    self._asked_at.pop(name, None)
            return answer

    def _look(self, client: Any, request_type: Any, now: float) -> None:
        """Ask for everything that somebody waits for and that has not come.

        An answer that cannot be read is asked for again, reply by reply: it is the fault of those
        sites alone whose own answer cannot be read either, or the SuperLink's if no one's can.
        """
        self._forget(now)
        names = sorted(self._asked_at.keys() - self._found.keys() - self._unreadable.keys())
        try:
            if names:
                self._take(client.PullMessages(request_type(message_ids=names)), now)
        except UNPACKING:
            unreadable: dict[str, Exception] = {}
            for name in names:
                try:
                    self._take(client.PullMessages(request_type(message_ids=[name])), now)
                except UNPACKING as error:
                    unreadable[name] = error
            if 1 < len(names) == len(unreadable):
                raise ConnectionError("SuperLink: no readable answer about any reply") from None
            self._unreadable |= unreadable
        self._next_look = self._clock() + max(LOOK_S, LOOK_EACH_S * len(names))

    def _take(self, answer: Any, now: float) -> None:
        """Keep the replies of an answer."""
        pairs = zip(answer.messages_list, answer.message_object_trees, strict=False)
        for message, tree in pairs:
            self._found[message.metadata.reply_to_message_id] = (now, message, tree)

    def _forget(self, now: float) -> None:
        """Let go of what nobody waits for any more."""
        for name, asked_at in list(self._asked_at.items()):
            if now - asked_at > STALE_S:
                del self._asked_at[name]
                self._unreadable.pop(name, None)
        for name, (found_at, _, _) in list(self._found.items()):
            if now - found_at > FORGET_S:
                del self._found[name]


class BoundedPulls:
    """A client for the calls of one pull; its threads share the count."""

    def __init__(self, client: Any, news: News, cap: int = REPLY_CAP_BYTES) -> None:
        self._client = client
        self._news = news
        self._left = cap
        self._lock = threading.Lock()
        self.message_ids: list[str] = []

    def PullMessages(self, request: Any) -> Any:
        """The messages that have come; refuses a tree of too many objects."""
        answer = self._news.ask(self._client, request)
        for message in answer.messages_list:
            self.message_ids.append(message.metadata.message_id)
        objects = sum(_count(tree) for tree in answer.message_object_trees)
        if objects > rules.REPLY_OBJECTS:
            raise Oversized(f"a reply of {objects} objects, at most {rules.REPLY_OBJECTS} expected")
        return answer

    def PullObject(self, request: Any) -> Any:
        """One object; refuses the one that would make the reply too large."""
        answer = self._client.PullObject(request)
        for pause_s in PAUSES_S:
            if answer.object_available or not answer.object_found:
                break
            time.sleep(pause_s)
            answer = self._client.PullObject(request)
        with self._lock:
            self._left -= len(answer.object_content)
            if self._left < 0:
                raise Oversized("a reply of more bytes than its kind may have")
        return answer

    def __getattr__(self, name: str) -> Any:
        """Any other call as it is."""
        return getattr(self._client, name)


def _count(tree: Any) -> int:
    """The objects of a tree; the SuperLink took no deep one (announcements.py)."""
    return 1 + sum(_count(child) for child in tree.children)
