"""The units: what they start exists, what they name is what the programs use; all are closed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from client.cli.serve import DELIVERY_WAIT_S
from common import notify, passphrase
from common.errors import ConfigurationError, PolicyError
from kohort.console import INTERRUPTED
from server.flower.superlink import START_TIMEOUT_S
from tests.deploy.programs import check_line, is_ours
from tests.deploy.units import FOLDER, Unit

UNITS = sorted(path.name for path in FOLDER.glob("*.service"))
OURS = [name for name in UNITS if "front" not in name]
WATCHED = [name for name in OURS if "page" not in name]  # the page does no work that could stand
MOST_EXPOSED = 2.0
needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze: not installed"
)


@pytest.mark.parametrize("name", OURS)
def test_a_unit_starts_a_command_that_exists(name: str) -> None:
    words = shlex.split(Unit.read(name).one("ExecStart"))
    assert is_ours(words[0]) and words[0].startswith("/opt/kohort/bin/")
    check_line(words)


@pytest.mark.parametrize("name", UNITS)
@needs_analyze
def test_a_unit_is_closed(name: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(FOLDER / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Overall exposure level .*: (\d+\.\d)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= MOST_EXPOSED, done.stdout


@pytest.mark.parametrize("name", UNITS)
@needs_analyze
def test_systemd_knows_every_key_of_a_unit(name: str) -> None:
    command = ["systemd-analyze", "verify", "--man=no", str(FOLDER / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    complaints = [
        line
        for line in done.stderr.splitlines()
        if FOLDER.name in line and "not executable" not in line
    ]
    assert complaints == []


@pytest.mark.parametrize("name", WATCHED)
def test_the_watchdog_waits_longer_than_an_honest_pause(name: str) -> None:
    unit = Unit.read(name)
    assert unit.one("Type") == "notify"
    watchdog_s = float(unit.one("WatchdogSec"))
    assert watchdog_s > DELIVERY_WAIT_S + notify.EVERY_S
    assert watchdog_s > notify.STANDS_S + notify.EVERY_S
    assert watchdog_s >= START_TIMEOUT_S


@pytest.mark.parametrize("name", OURS)
def test_a_unit_is_not_started_again_for_what_a_person_must_mend(name: str) -> None:
    unit = Unit.read(name)
    codes = {int(word) for word in unit.one("RestartPreventExitStatus").split()}
    assert codes == {ConfigurationError.exit_code, PolicyError.exit_code}
    assert int(unit.one("SuccessExitStatus")) == INTERRUPTED


def test_the_credential_is_the_one_that_the_programs_read() -> None:
    text = (FOLDER / "drop-ins" / "passphrase.conf").read_text()
    assert f"LoadCredential={passphrase.CREDENTIAL}:/" in text


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_s_account_is_made_and_owns_its_folder(name: str) -> None:
    unit = Unit.read(name)
    account = unit.one("User")
    assert f"\nu {account} - " in (FOLDER / "sysusers.conf").read_text()
    assert unit.one("StateDirectory") == account
    assert f"/var/lib/{account}" in unit.one("ExecStart")


def test_between_studies_another_unit_runs_and_never_both() -> None:
    study, between = Unit.read("kohort-server@.service"), Unit.read("kohort-server.service")
    for key in ("Conflicts", "After", "OnSuccess"):
        assert "kohort-server.service" in study.all(key).split(), key
    # they differ in what they serve alone
    same = {"Description", "ExecStart", "Conflicts", "After", "OnSuccess"}
    for key in (study.keys.keys() | between.keys.keys()) - same:
        assert study.keys[key] == between.keys[key], key
    plan = f"/var/lib/{study.one('User')}/plans/%i "
    assert study.one("ExecStart").replace(plan, "") == between.one("ExecStart")


def test_every_paragraph_of_a_unit_says_what_it_is_for() -> None:
    for paragraph in paragraphs("kohort-site.service"):
        assert "#" in paragraph or paragraph.startswith("[Install]"), paragraph


def paragraphs(name: str) -> Iterator[str]:
    """The paragraphs of a unit file."""
    yield from (FOLDER / name).read_text().strip().split("\n\n")
