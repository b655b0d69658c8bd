"""What systemd hears: states on its socket, and nothing from a process that stands still."""

from collections.abc import Iterator

import pytest

from common import notify
from tests.notified import Listener, listening


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """A listener whose address the process is told."""
    with listening() as (path, listener):
        monkeypatch.setenv(notify.VARIABLE, path)
        yield listener


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The watchdog's clock."""
    made = Clock()
    monkeypatch.setattr(notify.time, "monotonic", made.monotonic)
    return made


def test_a_state_is_one_datagram(systemd: Listener) -> None:
    assert notify.notify(notify.READY)
    assert systemd.heard() == ["READY=1"]


def test_an_abstract_address_begins_with_an_at_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener("\0kohort-test-notify")
    monkeypatch.setenv(notify.VARIABLE, "@kohort-test-notify")
    assert notify.notify(notify.STOPPING)
    assert listener.heard() == ["STOPPING=1"]
    listener.close()


@pytest.mark.parametrize("path", ["", "/nowhere/at/all"], ids=["no-systemd", "systemd-gone"])
def test_nobody_who_listens_is_no_error(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv(notify.VARIABLE, path)
    assert not notify.notify(notify.READY)


def test_the_watchdog_is_fed_now_and_then(systemd: Listener, clock: Clock) -> None:
    watchdog = notify.Watchdog()
    for _ in range(10):
        watchdog.turn()
        watchdog.feed()
        clock.now += notify.EVERY_S / 4
    assert systemd.heard() == ["WATCHDOG=1"] * 3


def test_a_loop_that_stands_still_feeds_no_watchdog(systemd: Listener, clock: Clock) -> None:
    watchdog = notify.Watchdog()
    clock.now += notify.STANDS_S
    watchdog.feed()
    assert systemd.heard() == []
    watchdog.turn()
    watchdog.feed()
    assert systemd.heard() == ["WATCHDOG=1"]


def test_a_loop_that_is_alone_beats(systemd: Listener, clock: Clock) -> None:
    watchdog = notify.Watchdog()
    clock.now += 10 * notify.STANDS_S
    watchdog.beat()
    assert systemd.heard() == ["WATCHDOG=1"]
