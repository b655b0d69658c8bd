"""The Flower ServerApp: opens the study that its environment names and runs the round loop.

In: KOHORT_SERVER_STATE and KOHORT_STUDY_HASH, a Flower grid. Out: the study's folder.
Guarantees: one process a study; this process imports no torch.
Not covered: the loop (server/rounds/loop.py), starting this app (server/flower/coordinator.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.errors import ConfigurationError, EnvironmentFault, RefusedError
from common.process import end_when_orphaned
from common.storage.lock import FolderLock
from common.study.bundle import open_bundle
from common.wire import signing
from server.operator.config import load_config
from server.operator.hand_over import operator_keys
from server.operator.sites import Registry
from server.operator.state import ServerState
from server.rounds.loop import run_study
from server.rounds.record import StudyRecord
from server.rounds.room import largest_reply
from server.rounds.study_run import StudyRun

STATE_VARIABLE = "KOHORT_SERVER_STATE"
STUDY_VARIABLE = "KOHORT_STUDY_HASH"
LOCK_WAIT_S = 120.0  # for an older app that is just ending
app = ServerApp()


@runtime_checkable
class BoundedGrid(Protocol):
    """A grid that assembles no reply above a cap."""

    reply_cap_bytes: int


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study that the environment names until it is complete."""
    end_when_orphaned()  # after `kill -9` of the server an orphan would keep the study's lock
    with open_study(dict(os.environ)) as study_run:
        if isinstance(grid, BoundedGrid):
            # no reply of this plan is larger; without it the largest of any plan counts
            grid.reply_cap_bytes = min(grid.reply_cap_bytes, largest_reply(study_run.record))
        run_study(study_run, grid)


@contextmanager
def open_study(environment: Mapping[str, str]) -> Iterator[StudyRun]:
    """Yield the study that the environment names, alone in its folder."""
    missing = [name for name in (STATE_VARIABLE, STUDY_VARIABLE) if not environment.get(name)]
    if missing:
        raise ConfigurationError(
            f"environment: {', '.join(missing)} not set",
            hint="this app is started by `kohort-server run`",
        )
    # The plan must be the one that the folder is named after.
    state = ServerState(Path(environment[STATE_VARIABLE]))
    study_hash = environment[STUDY_VARIABLE]
    key = signing.load_private(state.operator_key)
    root = state.study(study_hash)
    study = open_bundle(root / "bundle", operator_keys(state))
    if study.hash() != study_hash:
        raise RefusedError(f"{root / 'bundle'}: holds another plan than its folder's name says")
    # Alone in the folder from here on.
    lock = wait_for_lock(root / "lock")
    record = StudyRecord(root, study)
    registry = Registry(state.sites)
    try:
        yield StudyRun(study, record, registry, key, load_config(state.config).limits)
    finally:
        record.close()
        registry.close()
        lock.release()


def wait_for_lock(path: Path) -> FolderLock:
    """Return the study's lock; waits a bounded time for an older app to end."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return FolderLock(path, "this study")
        except EnvironmentFault:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
