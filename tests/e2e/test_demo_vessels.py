"""Image + mask pairs in real processes over TLS: two hospitals of phantoms to a verified release.

A tap with the server's own certificate keeps all that the sites send. Every string that the
invented hospitals' writer noted as identifying is searched in it, in all logs, in the server's
whole state and in the release.
"""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from client.ingest.cohort import Cohort
from common.process import free_port
from common.storage.journal import Journal
from common.study.plan import Study, load_study
from kohort import layout
from kohort.manifest import read_manifest
from kohort.verification import verify
from server.demo import hospitals as demo_hospitals
from server.demo import rehearsal
from server.demo.export import Truth
from server.demo.processes import Processes
from server.operator.state import ServerState
from tests.capture import WireTap
from tests.federation import pairs_plan
from tests.leaks import all_bytes, leaked

SITES = ("hospital-a", "hospital-b")
PATIENTS, PAIRS, ROUNDS = 12, 16, 2
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass
class Story:
    """What one run left behind."""

    places: rehearsal.Places
    truth: dict[str, Truth]
    study: Study
    sent: bytes
    release: Path
    processes: Processes


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    places = rehearsal.Places(tmp_path_factory.mktemp("vessels"))
    processes = Processes(places.out / "logs")
    processes.logs.mkdir()
    truth = demo_hospitals.phantom_hospitals(
        places.work / "hospitals", SITES, lambda *_: None, PATIENTS
    )
    reference = demo_hospitals.phantom_reference(places.work / "reference", 32, patients=8)
    plan = pairs_plan(
        places.work / "plan",
        sites=[{"name": name} for name in SITES],
        round_deadline_s=300.0,
        models__wgan__rounds=ROUNDS,
        models__wgan__released_pairs=PAIRS,
        privacy__canaries=50,
    )
    tap = None
    try:
        public, real = free_port(), free_port()
        state = ["--state", str(places.server)]
        processes.do(
            "kohort-server", "init", *state, "--name", "e2e", "--url", f"https://127.0.0.1:{public}"
        )
        processes.do("kohort-server", "sign", str(plan), *state, "--out", str(places.bundle))
        tls = ServerState(places.server).tls
        tap = WireTap(public, real, tls, places.site("any").parent)
        processes.start(
            "server", "kohort-server", "run", str(places.bundle), *state, "--port", str(real)
        )
        for name in SITES:
            rehearsal.start_site(processes, places, name, truth[name])
        rehearsal.watch(processes, places, SITES, lambda line: None)
        audits = rehearsal.export_audits(processes, places, SITES)
        release, _ = rehearsal.publish(processes, places, reference, audits)
        yield Story(places, truth, load_study(plan), tap.sent(), release, processes)
    finally:
        processes.stop()
        if tap:
            tap.close()


def secrets(story: Story) -> list[str]:
    """Return what must not leave a site.

    That is all that the hospitals' writer noted, and the pseudonyms that the sites made themselves.
    """
    found: list[str] = []
    for site in SITES:
        cohort = Cohort.open(next(story.places.site(site).glob("cohort-*")))
        found += [*story.truth[site].identifiers, *cohort.pseudonyms]
    assert len(found) > 24 * PATIENTS
    return found


def logs(story: Story) -> bytes:
    """What daemons, the server and its children wrote down."""
    return all_bytes([*story.processes.logs.iterdir(), *story.places.server.rglob("*.log")])


def test_no_identifier_is_sent(story: Story) -> None:
    assert len(story.sent) > 100_000
    assert b"hospital-a" in story.sent  # the tap sees plain bytes
    assert not leaked(secrets(story), story.sent)


def test_no_identifier_is_logged(story: Story) -> None:
    assert b"ingest" in logs(story)
    assert not leaked(secrets(story), logs(story))


def test_no_identifier_reached_the_server_or_the_release(story: Story) -> None:
    assert not leaked(secrets(story), all_bytes(story.places.server.rglob("*")))
    assert not leaked(secrets(story), all_bytes(story.release.rglob("*")))


def test_no_count_loss_or_time_is_in_what_a_site_says(story: Story) -> None:
    for word in (
        b"num_examples",
        b"num-examples",
        b"loss",
        b"accuracy",
        b"patients",
        b"Traceback",
        b"/hospitals/",
    ):
        assert word not in story.sent, word


def test_every_site_sent_one_update_a_round_and_spent_once(story: Story) -> None:
    for site in SITES:
        journal = Journal(story.places.site(site) / "journal.sqlite")
        states = [entry.state for entry in journal.entries() if "/train/" in entry.key]
        journal.close()
        assert states.count("reserved") == states.count("answered") == ROUNDS
        report = json.loads(
            story.processes.do(
                "kohort-site", "ledger", "--state", str(story.places.site(site)), "--json"
            )
        )
        assert report["epsilon"]["pld"] <= report["cap_epsilon"]


def test_the_release_verifies_without_k_and_one_changed_mask_is_named(
    story: Story, tmp_path: Path
) -> None:
    manifest = verify(story.release)
    assert (manifest.k, manifest.images) == (None, PAIRS)
    copy = Path(shutil.copytree(story.release, tmp_path / "copy"))
    victim = next(copy.glob("masks/*.nii.gz"))
    victim.write_bytes(gzip.compress(b"another mask", mtime=0))
    command = [str(Path(sys.executable).parent / "kohort"), "verify", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert victim.name in done.stderr


def test_every_picture_has_its_mask_as_png_and_nifti(story: Story) -> None:
    with open(story.release / "metadata.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == PAIRS == read_manifest(story.release).images
    for row in rows:
        picture, mask = (
            np.asarray(Image.open(story.release / row[name]))
            for name in ("file_name", "mask_file_name")
        )
        volume = np.asarray(nibabel.load(story.release / row["mask_nifti"]).dataobj)  # type: ignore[attr-defined]
        assert picture.shape == mask.shape == (32, 32)
        assert set(np.unique(mask)) <= {0, 255}
        np.testing.assert_array_equal(volume.T * 255, mask)


def test_the_documents_say_what_was_promised_audited_and_measured_on_phantoms(story: Story) -> None:
    updates = json.loads((story.release / "privacy_statement.json").read_text())["updates"]
    assert {"PLD", "RDP"} <= set(updates["epsilon_by_accountant"])
    audit = updates["audit"]["models"]["wgan"]
    assert 0 <= audit["lower_bound"] <= audit["upper_bound"]
    report = json.loads((story.release / layout.FINDINGS).read_text())
    assert report["reference"] == demo_hospitals.PHANTOM_REFERENCE
    scores = [f for f in report["findings"] if f["name"].startswith("segmentation DSC")]
    assert len(scores) == 3
    assert all(finding["status"] == "shown" for finding in scores)
    for name in ("README.md", "index.html"):
        assert "phantoms: invented patients" in (story.release / name).read_text()
