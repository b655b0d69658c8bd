"""Flower's database is emptied of finished runs and made compact; runs that may go on stay."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.superlink.config_loader import (
    get_federation_manager,
    get_objectstore_linkstate_factories,
)

from server.flower import database
from server.flower.database import Room, tidy

pytestmark = pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning")  # alembic
CHUNK = 1 << 20


def linkstate(path: Path) -> Any:
    """Flower's own state on this file."""
    _, factory = get_objectstore_linkstate_factories(str(path), get_federation_manager())
    return factory.state()


def new_run(state: Any) -> int:
    """A run, as the operator's call makes it."""
    return int(
        state.create_run(
            fab_id=None,
            fab_version=None,
            fab_hash="ab" * 32,
            override_config={},
            federation_id=NOOP_FEDERATION_ID,
            federation_config=None,
            flwr_aid=None,
            primary_task_type="flwr-serverapp",
        )
    )


def finish(state: Any, run_id: int) -> None:
    """The run's app says that it is done."""
    (task,) = state.get_tasks(run_ids=[run_id])
    state.claim_task(task.task_id)
    state.activate_task(task.task_id)
    assert state.finish_task(task.task_id, "completed", "")


def store(state: Any, run_id: int) -> str:
    """One object of a run, with its bytes."""
    content = os.urandom(CHUNK)
    object_id = hashlib.sha256(content).hexdigest()
    state.object_store.verify = False
    state.object_store.preregister(run_id, ObjectTree(object_id=object_id))
    state.object_store.put(object_id, content)
    return object_id


def test_what_a_finished_run_left_goes_and_what_an_open_one_needs_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.db"
    state = linkstate(path)
    ended = new_run(state)
    going_on = new_run(state)
    for _ in range(8):
        store(state, ended)
    kept = store(state, going_on)
    finish(state, ended)
    del state
    before = path.stat().st_size
    monkeypatch.setattr(database, "FREE_BYTES", CHUNK)
    tidy(path)
    again = linkstate(path)
    assert len(again.object_store) == 1
    assert len(again.object_store.get(kept)) == CHUNK
    assert {run.run_id for run in again.get_run_info()} == {ended, going_on}
    assert path.stat().st_size < 2 * CHUNK < before


def test_pages_in_use_are_counted_and_free_ones_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a name % with ? signs.db"
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("CREATE TABLE stored (content BLOB)")
    assert Room(tmp_path / "none.db", 1).is_left()
    room = Room(path, 4 * CHUNK)
    assert room.is_left()
    for _ in range(5):
        writer.execute("INSERT INTO stored VALUES (?)", (os.urandom(CHUNK),))
    assert not room.is_left()
    assert not room.is_left()
    assert caplog.text.count("E-QUOTA") == 1
    writer.execute("DELETE FROM stored")
    assert room.is_left()
    writer.close()


def test_a_database_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "superlink" / "state.db"

    def interrupted(database: str) -> None:
        """Some tables are there, as after a kill in the middle."""
        half = sqlite3.connect(database)
        half.execute("CREATE TABLE task (task_id INTEGER)")
        half.close()
        raise KeyboardInterrupt

    with monkeypatch.context() as first:
        first.setattr(database, "create_database", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tidy(path)
    assert not path.exists()
    # the next start makes it anew, and Flower takes it
    tidy(path)
    assert [one.name for one in path.parent.iterdir()] == ["state.db"]
    state = linkstate(path)
    assert new_run(state)
