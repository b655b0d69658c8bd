"""The ServerApp: finds its study in the environment, loads no torch, ends with its parent."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import ConfigurationError
from server import app
from server.app import open_study
from tests.federation import Federation


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.create(tmp_path)


def test_the_app_finds_its_study_in_the_environment(federation: Federation) -> None:
    (federation.state.config).write_text("name: demo\nurl: https://localhost:9443\n")
    names = {
        app.STATE_VARIABLE: str(federation.state.root),
        app.STUDY_VARIABLE: federation.study.hash(),
    }
    with open_study(names) as run:
        assert run.study == federation.study
    with (
        pytest.raises(ConfigurationError, match="KOHORT_STUDY_HASH"),
        open_study({**names, app.STUDY_VARIABLE: ""}),
    ):
        pass


def test_the_server_process_loads_no_torch() -> None:
    code = "import server.app, sys; sys.exit('torch' in sys.modules or 'opacus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_app_ends_with_the_process_that_started_it() -> None:
    child = (
        "import os, time; from server.app import end_when_orphaned; end_when_orphaned(); "
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = (
        "import os, subprocess, sys; "
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, "
        "stderr=subprocess.DEVNULL); "
        "print(p.stdout.readline().decode(), flush=True); os._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", parent], capture_output=True, text=True, check=True
    )
    for _ in range(300):
        if not Path(f"/proc/{done.stdout.strip()}").exists():
            return
        time.sleep(0.1)
    raise AssertionError("the app outlived its parent")
