"""Chest radiographs in real processes over TLS: DX files of two hospitals to a verified release.

Every image is a privatized average that a flow alone makes. One epsilon per patient covers training
and release together. A tap with the server's own certificate keeps all that the sites send. Every
string that the invented hospitals' writer noted as identifying is searched in it, in all logs, in
the server's whole state and in the release.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client.egress.evidence import Evidence
from client.ingest.cohort import Cohort
from client.state.folder import State
from client.state.ledger import Ledger
from client.state.records import FILTER_ORDER
from common.privacy.events import charged_image_event
from common.privacy.latent_mechanisms import LatentGaussian
from common.process import free_port
from common.study.plan import Study, load_study
from kohort import layout
from kohort.verification import verify
from server.demo import hospitals as demo_hospitals
from server.demo import rehearsal
from server.demo.export import Truth
from server.demo.processes import Processes
from server.evaluate import attack_findings
from server.evaluate.downstream import KAPPA, KEPT, KEPT_REAL
from server.evaluate.findings import DOWNSTREAM
from server.operator.state import ServerState
from tests.capture import WireTap
from tests.leaks import all_bytes, leaked

SITES = ("hospital-a", "hospital-b")
PATIENTS = 40
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


def small_plan(preset: Path, target: Path) -> Path:
    """The demo's plan for fewer patients, steps and sites."""
    study = load_study(preset)
    for checkpoint in study.checkpoints():
        copy = target / checkpoint.file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(preset.parent / checkpoint.file, copy)
    data: dict[str, Any] = study.model_dump(mode="json")
    data["sites"] = [{"name": name} for name in SITES]
    data["models"]["glow"] |= {"local_steps": 1, "patients_per_step": 16}
    data["privacy"] |= {"planned_patients": PATIENTS, "canaries": 50}
    data["synthesis"]["k"] = 5
    data["release"]["min_images"] = 4
    (target / "study.yaml").write_text(json.dumps(data))
    return target / "study.yaml"


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    places = rehearsal.Places(tmp_path_factory.mktemp("chest"))
    processes = Processes(places.out / "logs")
    processes.logs.mkdir()
    truth = demo_hospitals.radiograph_hospitals(
        places.work / "hospitals", SITES, lambda *_: None, PATIENTS
    )
    plan = small_plan(demo_hospitals.preset_of("chest"), places.work / "plan")
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
        study = load_study(plan)
        reference = demo_hospitals.make_reference(study, places.work / "reference", PATIENTS)
        audits = rehearsal.export_audits(processes, places, SITES)
        release, _ = rehearsal.publish(processes, places, reference, audits)
        yield Story(places, truth, study, tap.sent(), release, processes)
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


def test_no_identifier_is_sent_logged_or_released(story: Story) -> None:
    assert b"hospital-a" in story.sent  # the tap sees plain bytes
    assert not leaked(secrets(story), story.sent)
    logs = all_bytes([*story.processes.logs.iterdir(), *story.places.server.rglob("*.log")])
    assert b"ingest" in logs and not leaked(secrets(story), logs)
    assert not leaked(secrets(story), all_bytes(story.places.server.rglob("*")))
    assert not leaked(secrets(story), all_bytes(story.release.rglob("*")))


def test_each_site_reserved_the_images_before_they_were_made_and_sent_them_once(
    story: Story,
) -> None:
    event = charged_image_event(story.study)
    assert isinstance(event, LatentGaussian)
    for site in SITES:
        state = State(story.places.site(site))
        ledger = Ledger.open(
            state.ledger,
            cap_epsilon=10.0,
            delta=1e-5,
            cohort=state.cohort_name(),
            filter_order=FILTER_ORDER,
        )
        rows = ledger.rows()
        reserved = [
            row.seq
            for row in rows
            if row.kind == "reserve" and row.data["event"] == json.loads(event.event())
        ]
        assert len(reserved) == 1
        committed = [
            row.data["artefact"]
            for row in rows
            if row.kind == "commit" and row.data["reservation"] == reserved[0]
        ]
        assert len(committed) == 1
        assert not [row for row in rows if row.kind == "declare"]
        spent = ledger.report(prv=False).spent.pld
        assert event.epsilon < spent <= story.study.privacy.epsilon


def test_every_image_is_a_privatized_average_of_a_frozen_random_group(story: Story) -> None:
    images = 0
    for site in SITES:
        folder = next(
            path.parent for path in (story.places.site(site) / "jobs").glob("*/evidence.json")
        )
        evidence = Evidence.read(folder / "evidence.json")
        assert all(len(group.members) >= 5 for group in evidence.groups)
        members = [member for group in evidence.groups for member in group.members]
        assert len(members) == len(set(members))
        images += len(evidence.group_of)
    manifest = verify(story.release)
    assert (manifest.k, manifest.images, manifest.grouping) == (5, images, "random")
    with open(story.release / "metadata.csv", encoding="utf-8") as file:
        assert {row["mechanism"] for row in csv.DictReader(file)} == {"gaussian"}
    models = {path.name for path in (story.release / "models").iterdir()}
    assert models == {"glow.safetensors", "glow.json", "glow.onnx"}


def test_the_statement_says_the_epsilon_that_the_ledgers_spent(story: Story) -> None:
    statement = json.loads((story.release / "privacy_statement.json").read_text())
    report = json.loads(
        story.processes.do(
            "kohort-site", "ledger", "--state", str(story.places.site("hospital-a")), "--json"
        )
    )
    said = statement["updates"]["epsilon_by_accountant"]["PLD"]
    assert said == pytest.approx(report["epsilon"]["pld"], rel=1e-3)
    assert statement["privatized_images"]["unit"] == "patient"
    assert statement["images"]["groups_independent_of_the_data"] is True
    assert "random groups" in (story.release / "privacy_statement.md").read_text()


def test_the_report_says_what_a_classifier_learns_and_what_of_the_pathology_is_kept(
    story: Story,
) -> None:
    report = json.loads((story.release / layout.FINDINGS).read_text())
    found = {one["name"]: one for one in report["findings"]}
    for name in (
        KAPPA,
        DOWNSTREAM,
        KEPT,
        KEPT_REAL,
        attack_findings.MEMBERSHIP,
        attack_findings.MEMBERSHIP_CONTROL,
    ):
        assert found[name]["status"] == "shown", name
    assert f"{len(SITES) * PATIENTS} public people" in report["rehearsal"]["cast"]
    assert KEPT in (story.release / "index.html").read_text()
