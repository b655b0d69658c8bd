"""The runbook, done as it is written: a server and hospitals in networks of their own.

Two hospitals in the suite, from this environment. KOHORT_RUNBOOK_SITES=6 and
KOHORT_BUNDLES=FOLDER (with `site` and `server`, as `make bundle` writes them) play it whole, from
the installation on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from common.config import load_yaml
from common.study.plan import Study
from kohort.manifest import read_manifest
from server.demo.hospitals import photograph_hospitals
from server.demo.rehearsal import edit_settings
from tests.deploy.hosts import Consortium, Host, open_consortium
from tests.deploy.programs import check_line, is_ours
from tests.deploy.runbook import RUNBOOK, Block, Note, Player, read_runbook
from tests.networks.world import open_world, why_not

ROOT = Path(__file__).parents[2]
SITES = [f"hospital-{letter}" for letter in "abcdefghij"]
COUNT = int(os.environ.get("KOHORT_RUNBOOK_SITES", "2"))
BUNDLES = os.environ.get("KOHORT_BUNDLES", "")
WHY_NOT = why_not()
LONG_S = 900.0
UNIT = "kohort-server@fundus"
needs_networks = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


# --- what people do by hand ----------------------------------------------------------------------


def edit_plan(people: Consortium) -> None:
    """Make the study small: these hospitals, one round of one step, quick images of few people."""
    path = people.operator.folder / "srv/plans/fundus.yaml"
    data = load_yaml(path, Study).model_dump(mode="json")
    data["sites"] = [{"name": name} for name in people.hospitals]
    data["quorum"] = len(people.hospitals)
    data["models"]["gan"] |= {"rounds": 1, "local_steps": 1}
    data["models"]["glow"] = None
    data["models"]["encoder"] |= {"steps": 1}
    data["synthesis"] |= {"k": 5, "inversion_steps": 2, "alignment_steps": 2, "privatize": None}
    data["privacy"] |= {"planned_patients": 30}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def read_settings(people: Consortium) -> None:
    """Let every hospital compute on one thread: all share this machine's cores."""
    for host in people.hospitals.values():
        edit_settings(host.folder / "var/lib/kohort/site.yaml")


def wait_for_the_server(people: Consortium) -> None:
    """Until the server listens and knows every site."""
    known = len(people.hospitals)
    people.until(lambda: people.operator.log(UNIT).count("registered") >= known, LONG_S)


def wait_for_the_images(people: Consortium) -> None:
    """Until images wait for a person at every hospital."""

    def waits(host: Host) -> bool:
        return any((host.folder / "var/lib/kohort/review").glob("*/contact_sheet.png"))

    people.until(lambda: all(map(waits, people.hospitals.values())), LONG_S)


def decide_at_the_desk(people: Consortium) -> None:
    """Open the second hospital's desk, follow its link, and approve the batch in the browser."""
    host = people.hospitals[SITES[1]]
    log = host.folder / "desk.log"
    line = "kohort-site desk --state /var/lib/kohort --socket /srv/desk/door.sock"
    process = host.start(line, log)
    people.until(lambda: "open http" in log.read_text() or process.poll() is not None, LONG_S)
    [link] = re.findall(r"^open (\S+)", log.read_text(), re.MULTILINE)
    door = httpx.HTTPTransport(uds=str(host.folder / "srv/desk/door.sock"))
    with httpx.Client(transport=door, follow_redirects=True, timeout=LONG_S) as browser:
        page = browser.get(link).text
        [batch] = set(re.findall(r"/batches/([0-9a-f]+)", page))
        [secret] = set(re.findall(r'name="form" value="([^"]+)"', page))
        place = link.partition("/open?")[0]
        form = {
            "form": secret,
            "choice": "approve",
            "reviewer": "Dr. Sample",
            "reason": "",
            "note": "",
        }
        headers = {"origin": "http://localhost:8437", "sec-fetch-site": "same-origin"}
        answer = browser.post(f"{place}/batches/{batch}/decision", data=form, headers=headers)
    assert answer.status_code == 200, answer.text
    process.terminate()
    process.wait(LONG_S)


def wait_for_the_end(people: Consortium) -> None:
    """Until the server has ended, with a complete study."""
    server = people.operator.services[UNIT]
    people.until(lambda: server.poll() is not None, LONG_S)
    assert "is complete" in people.operator.log(UNIT)


def name_the_signers(people: Consortium) -> None:
    """Write the two signers' keys into server.yaml, in place of the sample's empty list."""
    path = people.operator.folder / "var/lib/kohort-server/server.yaml"
    post = people.operator.folder / "srv/post"
    lines = [f"    {name}: {(post / f'{name}.pub').read_text().strip()}" for name in SITES[:2]]
    text, count = re.subn(
        r"^  signers: \{\}.*$", "\n".join(["  signers:", *lines]), path.read_text(), flags=re.M
    )
    text, again = re.subn(r"^  sign_offs: 0", "  sign_offs: 2", text, flags=re.M)
    assert (count, again) == (1, 1)
    path.write_text(text)


def look_at_the_page(people: Consortium) -> None:
    """Ask for the operator's page as a proxy does."""
    socket = people.operator.folder / "run/kohort-page/page.sock"
    people.until(socket.exists, LONG_S)
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=LONG_S) as proxy:
        answer = proxy.get("http://localhost/")
    assert answer.status_code == 200
    assert all(name in answer.text for name in people.hospitals)


def have_bundles(people: Consortium) -> None:
    """Carry bundles to the operator and one hospital; the others share its /opt, as one image."""
    first, *others = people.hospitals.values()
    for host, role in ((people.operator, "server"), (first, "site")):
        shutil.copytree(
            Path(BUNDLES) / role, host.folder / "srv/bundle", copy_function=os.link, symlinks=True
        )
        (host.folder / "opt/kohort").unlink()
        host.installs = True
    for host in (*others, people.researcher):
        host.opt = first.folder / "opt"


def have_no_bundle(people: Consortium) -> bool:
    """Leave out the installation: test_bundle.py does it, in the words of INSTALL.txt."""
    (people.operator.folder / "srv/bundle").mkdir()
    (people.operator.folder / "srv/bundle/deploy").symlink_to(ROOT / "deploy")
    return False


BY_HAND = {
    "have a bundle": have_bundles if BUNDLES else have_no_bundle,
    "edit the plan": edit_plan,
    "read site.yaml": read_settings,
    "wait for the server": wait_for_the_server,
    "wait for the images": wait_for_the_images,
    "decide at the desk": decide_at_the_desk,
    "wait for the end": wait_for_the_end,
    "name the signers": name_the_signers,
    "look at the page": look_at_the_page,
}


# --- the runbook ---------------------------------------------------------------------------------


@pytest.fixture
def people() -> Iterator[Consortium]:
    """Machines for everybody, with the hospitals' exported images."""
    names = SITES[:COUNT]
    bridged = {"operator": ("192.0.2.1/24",), "researcher": ("192.0.2.3/24",)}
    bridged |= {name: (f"192.0.2.{10 + index}/24",) for index, name in enumerate(names)}
    with (
        tempfile.TemporaryDirectory(prefix="kohort-") as folder,
        open_world(bridged) as places,
        open_consortium(Path(folder), places, Path(sys.executable).parents[1], names) as everybody,
    ):
        made = photograph_hospitals(Path(folder) / "made", names, lambda *_: None)
        for name, truth in made.items():
            export = everybody.hospitals[name].folder / "srv/export"
            shutil.copytree(truth.folder, export / "dicom")
            shutil.copy(truth.labels_csv, export / "labels.csv")
        yield everybody


@pytest.mark.slow
@pytest.mark.timeout(3000)
@needs_networks
def test_the_runbook_leads_from_the_first_day_to_a_release(people: Consortium) -> None:
    with ThreadPoolExecutor(len(people.hospitals) + 1) as pool:
        player = Player(people, BY_HAND, pool)
        player.play(RUNBOOK.read_text())
        people.end()
    assert player.compared > 10 + 12 * len(people.hospitals)
    manifest = read_manifest(people.researcher.folder / "srv/published")
    assert manifest.sign_offs == 2 and set(manifest.sites) == set(people.hospitals)
    for host in people.all():
        for log in host.folder.glob("*.log"):
            assert "Traceback" not in log.read_text(errors="replace")


def test_every_command_of_the_runbook_can_be_typed() -> None:
    text = RUNBOOK.read_text()
    lines = re.findall(r"^\$ (.*(?:\\\n> .*)*)", text, re.MULTILINE)
    ours = []
    for line in lines:
        words = line.replace("\\\n> ", " ").partition(" #")[0].split()
        ours += [words] if is_ours(words[0]) else []
    assert len(ours) > 15
    for words in ours:
        check_line(words)


def test_the_runbook_installs_in_the_words_of_the_bundle() -> None:
    from deploy.bundle.__main__ import install_text

    typed = next(item for item in read_runbook(RUNBOOK.read_text()) if isinstance(item, Block))
    commands = [" ".join(step.command.split()) for step in typed.steps]
    told = " ".join(install_text("site").split()).replace("\\ ", "")
    for command in commands[1:]:
        assert command.replace("--quiet --no-index", "--no-index") in told


def test_what_the_runbook_leaves_to_the_test_is_known() -> None:
    notes = [item.text for item in read_runbook(RUNBOOK.read_text()) if isinstance(item, Note)]
    named = {note.removeprefix("test: ") for note in notes if note.startswith("test: ")}
    assert named == set(BY_HAND)
