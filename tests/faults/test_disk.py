"""The hook misses nothing: compared with Python's audit events, and with the system's calls."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults import consortium, hospital
from tests.faults.disk import Disk
from tests.faults.lives import Folders, Log, live

# run in a process of its own, for strace to watch
WATCHED = """
import json, os
from contextlib import ExitStack
from pathlib import Path
from tests.faults import {module}
from tests.faults.disk import Disk
from tests.faults.lives import Folders

scenario = next(one for one in {module}.scenarios() if one.name == {name!r})
folders = Folders(Path({home!r}), scenario.watched)
folders.home.mkdir()
scenario.prepare(folders)
scenario.play_before(folders.home, folders.log)
roots = [folders.home / name for name in scenario.watched]
disk = Disk(roots)
(folders.home / "ready").touch()
os.rename(folders.home / "ready", folders.home / "begin")
seen = []
with ExitStack() as stack:
    disk.install(stack)
    scenario.play(folders.home, folders.log)
met = [(event.kind, event.name) for event in disk.events]
print(json.dumps(met), flush=True)
os._exit(0)
"""
AUDITED = {"os.rename": "move", "os.remove": "unlink", "os.mkdir": "mkdir", "os.rmdir": "rmdir"}
SYSTEM = {
    "rename": re.compile(r"^(?:\d+ +)?(?:rename|renameat2?|link|linkat)\("),
    "unlink": re.compile(r"^(?:\d+ +)?(?:unlink|unlinkat|rmdir)\("),
    "fsync": re.compile(r"^(?:\d+ +)?(?:fsync|fdatasync)\("),
}
CASES = [(hospital, "similar images"), (consortium, "rounds, images and closing")]


def hear(seen: list[tuple[str, str]], event: str, arguments: tuple[object, ...]) -> None:
    """Note one audit event that changes names, or opens a file to write."""
    if event in AUDITED:
        seen.append((AUDITED[event], os.fsdecode(str(arguments[0]))))
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        seen.append(("create", str(arguments[0])))


def play(module: object, name: str, home: Path, *before: str) -> str:
    """Return what a watched scenario printed, in a process of its own."""
    text = WATCHED.format(module=module.__name__.rpartition(".")[2], name=name, home=str(home))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "."}
    command = [*before, sys.executable, "-c", text]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(("module", "name"), CASES, ids=["site", "server"])
def test_every_audited_change_is_an_event(module: Any, name: str, tmp_path: Path) -> None:
    scenario = next(one for one in module.scenarios() if one.name == name)
    folders = Folders(tmp_path / "home", scenario.watched)
    folders.home.mkdir()
    scenario.prepare(folders)
    assert live(scenario.play_before, folders).end == "complete"
    report = tmp_path / "seen"

    def play(home: Path, log: Log) -> None:
        # in a process of its own, because an audit hook stays for good
        seen: list[tuple[str, str]] = []
        sys.addaudithook(lambda event, arguments: hear(seen, event, arguments))
        scenario.play(home, log)
        report.write_text(json.dumps(seen))

    life = live(play, folders)
    assert life.end == "complete"
    seen = json.loads(report.read_text())
    watched = [folders.home / one for one in scenario.watched]
    for kind, told in (("move", ("replace", "rename")), ("unlink", ("unlink",))):
        inside = [path for what, path in seen if what == kind and is_below(path, watched)]
        events = [event for event in life.events if event.kind in told]
        assert len(events) >= len(inside) > 0, (kind, len(events), len(inside))


def is_below(path: str, folders: list[Path]) -> bool:
    """Whether an absolute path lies in one of the folders."""
    return any(path.startswith(f"{folder}/") for folder in folders)


def test_every_call_of_the_system_is_an_event_or_within_a_commit(tmp_path: Path) -> None:
    """Each rename, and each fsync of a file that is not SQLite's, is met by number."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace, home = tmp_path / "trace", tmp_path / "home"
    calls = "trace=rename,renameat,renameat2,link,linkat,fsync,fdatasync"
    command = ("strace", "-f", "-y", "-o", str(trace), "-e", calls)
    try:
        met = json.loads(play(hospital, "similar images", home, *command))
    except AssertionError as error:
        if "ptrace" in str(error):
            pytest.skip("strace may not trace here")
        raise
    begun = trace.read_text().rpartition(f"{home}/begin")[2]
    played = [line for line in begun.splitlines() if f"{home}/state" in line]
    renames = [line for line in played if SYSTEM["rename"].match(line)]
    assert len(renames) == sum(kind in ("replace", "rename") for kind, _ in met)
    asked = Counter(synced_name(line, home) for line in played if SYSTEM["fsync"].match(line))
    told = Counter(name for kind, name in met if kind == "fsync")
    # SQLite syncs its files and their folders within a commit
    beyond = {name for name in asked - told if ".sqlite" not in name}
    assert beyond <= {"state", "state/review"}
    assert not told - asked
    assert told.total() > 10


def synced_name(line: str, home: Path) -> str:
    """The file that a line of strace says was synced, as the hook names it."""
    found = re.search(r"<([^>]+)>", line)
    assert found is not None
    return Disk([home / "state"]).name_of(found.group(1)) or ""


def test_a_file_that_gets_its_name_unsynced_is_told(tmp_path: Path) -> None:
    disk = Disk([tmp_path])
    with ExitStack() as stack:
        disk.install(stack)
        (tmp_path / "part").write_bytes(b"bytes")
        os.replace(tmp_path / "part", tmp_path / "whole")
    assert disk.unsynced == [f"{tmp_path.name}/whole"]
    assert [event.kind for event in disk.events] == ["create", "close", "replace"]


def test_folders_have_a_log_beside_them(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "home")
    folders.log.note("sent", key="a", digest="b")
    assert folders.log.read("sent") == [{"kind": "sent", "key": "a", "digest": "b"}]
    assert folders.log.path.parent == tmp_path
