"""What a start removes of an earlier process, and what it leaves alone."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from client.daemon import site as daemon
from client.state.jobs import WEIGHTS
from client.state.leftovers import find_unnamed
from client.state.spool import Spool, spool_of
from client.state.sweep import sweep
from common.storage.files import atomic_write
from tests.sites import Hospital, Killed, make_hospital, scripted


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return make_hospital(tmp_path)


def test_temporary_files_of_an_earlier_process_go(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    # a kill between the write and the rename
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(Killed):
            atomic_write(hospital.root / "outbox" / "file", b"half")
    [left] = (hospital.root / "outbox").iterdir()
    state = hospital.site().state
    # not while it may be another process's
    sweep(state, left.stat().st_mtime - 1)
    assert left.exists()
    sweep(state, time.time() + 1)
    assert not left.exists()


@pytest.mark.parametrize("name", [".part-x", ".part-ABCDEFGH", "part-abcdefgh", ".part-abcdefgh.x"])
def test_what_is_not_provably_ours_stays(hospital: Hospital, name: str) -> None:
    path = hospital.root / "review" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"somebody's")
    sweep(hospital.site().state, time.time() + 10)
    assert path.exists()


def test_a_link_and_a_folder_with_such_a_name_stay(hospital: Hospital, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_bytes(b"")
    (hospital.root / ".part-abcdefgh").symlink_to(target)
    (hospital.root / ".part-hgfedcba").mkdir()
    sweep(hospital.site().state, time.time() + 10)
    assert target.exists()
    assert (hospital.root / ".part-abcdefgh").is_symlink()
    assert (hospital.root / ".part-hgfedcba").is_dir()


def test_the_job_of_an_answered_round_goes_and_one_at_work_stays(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a kill after the answer, before its job folder is removed
    scripted(monkeypatch, hospital.study, "finish", "die after")
    with monkeypatch.context() as patch:
        patch.setattr(daemon, "_discard", lambda output: None)
        first = hospital.site().answer(hospital.ask("train"))
    with pytest.raises(Killed):
        hospital.site().answer(hospital.ask("train", round=1))
    site = hospital.site()
    assert len(list(site.state.jobs.iterdir())) == 2
    sweep(site.state, time.time())
    [left] = site.state.jobs.iterdir()
    # what is left is finished and sent; what was answered comes again
    site.answer(hospital.ask("train", round=1))
    assert not left.exists()
    assert hospital.site().answer(hospital.ask("train")) == first
    assert site.ledger().report(prv=False).committed == 2


def test_of_answered_images_the_weights_go_alone(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, hospital.study)
    with monkeypatch.context() as patch:
        patch.setattr(daemon, "_discard", lambda output: None)
        site = hospital.site(review="not_required")
        site.answer(hospital.ask("synthesize"))
    [folder] = site.state.jobs.iterdir()
    before = {path.name for path in folder.iterdir()}
    sweep(site.state, time.time())
    assert before - {path.name for path in folder.iterdir()} == {WEIGHTS}


def test_weights_that_cannot_be_removed_cost_neither_the_answer_nor_the_start(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    scripted(monkeypatch, hospital.study)
    site = hospital.site(review="not_required")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        assert site.answer(hospital.ask("synthesize"))
        sweep(site.state, time.time() + 1)
    [folder] = site.state.jobs.iterdir()
    assert (folder / WEIGHTS).exists()
    # the next start removes them
    sweep(site.state, time.time() + 1)
    assert not (folder / WEIGHTS).exists()


def test_a_spool_goes_when_its_round_is_answered_and_stays_while_it_waits(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill leaves it, the next start keeps it, the answer removes it."""
    scripted(monkeypatch, hospital.study, "die", "finish")
    with pytest.raises(Killed):
        hospital.site().answer(hospital.ask("train"))
    site = hospital.site()
    [job] = site.state.jobs.iterdir()
    spool = Spool.open(spool_of(job), "binding")
    nobodys = Spool.open(site.state.jobs / "0123456789abcdef.spool", "binding")
    sweep(site.state, time.time())
    assert spool.folder.is_dir()
    assert not nobodys.folder.exists()
    site.answer(hospital.ask("train"))
    assert not spool.folder.exists()
    # a kill between the answer and its removal
    Spool.open(spool.folder, "binding")
    sweep(hospital.site().state, time.time())
    assert not spool.folder.exists()


def test_a_spool_of_a_round_that_the_journal_names_is_no_sign_of_an_old_journal(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, hospital.study, "die", "finish")
    with pytest.raises(Killed):
        hospital.site().answer(hospital.ask("train"))
    state = hospital.site().state
    [job] = state.jobs.iterdir()
    Spool.open(spool_of(job), "binding")
    assert find_unnamed(state) == ""
    Spool.open(state.jobs / "0123456789abcdef.spool", "binding")
    assert find_unnamed(state) == "a job folder"
