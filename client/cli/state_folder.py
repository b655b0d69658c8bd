"""Opens a site's state folder for a command."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from client.cli.terminal import phase_bar
from client.daemon.jobs import THREAD_COUNTS
from client.daemon.site import Site
from client.state.config import load_site
from client.state.folder import State
from client.state.membership import read_membership
from client.state.operators import plans_of
from client.state.plans import Plans
from client.state.private import close_to_others

log = logging.getLogger(__name__)


@contextmanager
def open_site(
    state: Path, alive: Callable[[], None] = lambda: None, *, lines: bool = False
) -> Iterator[Site]:
    """Yield the daemon's view of the state folder; its work shows as a progress bar.

    `alive` is called with every step of it. `lines`: where there is no terminal, lines show it.
    """
    config = load_site(state)
    place = State(state)
    if close_to_others(state):
        log.warning("%s was open to other users; it is this account's alone now", state)
    membership = read_membership(place.membership)
    with phase_bar(lines=lines) as show:

        def step(phase: str, done: int, total: int) -> None:
            alive()
            show(phase, done, total)

        yield Site(place, config, membership, progress=partial(step, "at work"), phases=step)


def open_plans(state: Path) -> Plans:
    """Return the plans that this site's staff approved."""
    place = State(state)
    return plans_of(place, read_membership(place.membership))


def limit_threads(state: Path) -> None:
    """Apply `limits.threads`; must run before the first import of torch, which reads it."""
    threads = load_site(state).limits.threads
    if threads:
        os.environ |= dict.fromkeys(THREAD_COUNTS, str(threads))
