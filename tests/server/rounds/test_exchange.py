"""Many sites at once share a few places in memory."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from common.wire.messages import Sealed
from server.operator.config import Limits
from server.rounds.exchange import Exchange, Outgoing, PendingInstruction, Reply
from server.rounds.slots import Slots
from tests.transport import until

PLACES = 3
SITES = 12


def outgoing(grid: Any, **changes: Any) -> Outgoing:
    """What the instructions of one exchange share."""
    limits = Limits(replies_in_memory=PLACES, **{"poll_s": 0.001, **changes})
    replies: queue.Queue[Reply] = queue.Queue(maxsize=1)
    return Outgoing(grid, limits, 60.0, replies, Slots(limits.replies_in_memory))


class Counting:
    """A grid whose every site has answered; counts the replies that it has handed out."""

    def __init__(self) -> None:
        self.handed_out = 0
        self.lock = threading.Lock()

    def get_node_ids(self) -> Iterable[int]:
        return range(1, SITES + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [str(message.metadata.dst_node_id) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Any]:
        (name,) = message_ids
        with self.lock:
            self.handed_out += 1
        metadata = SimpleNamespace(reply_to_message_id=name, src_node_id=int(name))
        return [SimpleNamespace(metadata=metadata, content=RecordDict(), has_error=lambda: False)]


def test_replies_that_nobody_takes_yet_stay_with_the_superlink() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    grid = Counting()
    shared = outgoing(grid)
    sealed = Sealed(b"{}", b"payload", b"signature")
    for number in range(1, SITES + 1):
        site: Any = SimpleNamespace(name=f"site-{number}", node_id=number)
        PendingInstruction(shared, site, 0, sealed, "train").start()
    time.sleep(0.3)
    # one lies in the queue, the others hold the places
    assert 1 <= grid.handed_out <= PLACES + 1
    sites = {shared.replies.get(timeout=20).site for _ in range(SITES)}
    assert len(sites) == SITES


def test_places_of_senders_that_all_stall_are_waited_for_once() -> None:
    slots = Slots(1, patience_s=0.2)
    with slots.hold():  # stalls until the end
        began = time.monotonic()
        with slots.hold():
            assert 0.2 <= time.monotonic() - began < 5
        # the place has changed hands: who comes next waits for nothing
        began = time.monotonic()
        for _ in range(50):
            with slots.hold():
                pass
        assert time.monotonic() - began < 5
    # a place that was lost is not given back a second time
    assert slots._holders == []
    with slots.hold():
        assert len(slots._holders) == slots._places


def test_a_place_is_waited_for_as_long_as_places_become_free() -> None:
    slots = Slots(1, patience_s=0.3)
    most = 0
    inside = 0

    def work() -> None:
        nonlocal most, inside
        with slots.hold():
            inside += 1
            most = max(most, inside)
            time.sleep(0.1)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    # the last one waited for longer than its patience
    assert most == 1


def test_a_site_that_has_another_node_now_is_asked_anew() -> None:
    """It has changed its node key: the old node never answers."""
    asked: list[int] = []

    class Silent(Counting):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            asked.extend(message.metadata.dst_node_id for message in messages)
            return []

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    sealed = Sealed(b"{}", b"payload", b"signature")
    run: Any = SimpleNamespace(
        limits=Limits(poll_s=0.001, reask_s=60.0, retry_first_s=60.0),
        study=SimpleNamespace(round_deadline_s=60.0),
        sign_instruction=lambda *_: sealed,
    )
    instruction: Any = SimpleNamespace(part=0, phase="train")
    exchange = Exchange(run, Silent(), b"payload")
    for number in (1, 1, 2, 2):
        site: Any = SimpleNamespace(name="hospital-a", node_id=number)
        exchange.ask(site, instruction)
        until(lambda number=number: number in asked)
    exchange.close()
    assert asked == [1, 2]
