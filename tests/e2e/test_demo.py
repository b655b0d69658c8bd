"""The whole path in real processes over TLS: what the sites send, the ledgers, and `kill -9`.

Two hospitals of 18 persons use the fundus preset with fewer steps. A tap with the server's own
certificate stands between sites and server and keeps all that the sites send. One site daemon and
the server are killed in the middle of a round, and nothing breaks.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from client.ingest.cohort import Cohort
from common.process import free_port
from common.storage.journal import Journal
from common.study.plan import Study, load_study
from common.wire import tensors
from common.wire.messages import Header
from kohort.manifest import read_manifest
from kohort.verification import verify
from server.demo import rehearsal
from server.demo.export import Truth
from server.demo.fundus_hospitals import write_hospital
from server.demo.processes import Processes
from server.operator.state import ServerState
from server.rounds.record import StudyRecord
from tests.capture import WireTap
from tests.leaks import all_bytes, leaked

SITES = ("hospital-a", "hospital-b")
WAIT_S = 240.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass
class Story:
    """What one run left behind."""

    places: rehearsal.Places
    truth: dict[str, Truth]
    study: Study
    sent: bytes
    release: Path
    processes: Processes


def few_crops() -> list[tuple[Path, int, str]]:
    """Eighteen photographs of one hospital: six of each of three strata."""
    folder = rehearsal.DEPLOY / "demo" / "fundus"
    with open(folder / "labels.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    crops: list[tuple[Path, int, str]] = []
    for grades, side in ((("0",), "L"), (("0",), "R"), (("3", "4"), "L")):
        found = [r for r in rows if r["grade"] in grades and r["laterality"] == side]
        crops += [(folder / r["file"], int(r["grade"]), side) for r in found[:6]]
    return crops


def other_crops() -> list[tuple[Path, int, str]]:
    """Eighteen others."""
    taken = {path for path, _, _ in few_crops()}
    folder = rehearsal.DEPLOY / "demo" / "fundus"
    with open(folder / "labels.csv", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if folder / r["file"] not in taken]
    crops: list[tuple[Path, int, str]] = []
    for grades, side in ((("0",), "L"), (("1", "2"), "R"), (("3", "4"), "R")):
        found = [r for r in rows if r["grade"] in grades and r["laterality"] == side]
        crops += [(folder / r["file"], int(r["grade"]), side) for r in found[:6]]
    return crops


def short_plan(folder: Path) -> tuple[Path, Study]:
    """The fundus preset for two sites of eighteen patients, with fewer steps and small groups."""
    path = folder / "study.yaml"
    rehearsal.write_plan(rehearsal.DEPLOY / "studies" / "fundus.yaml", path, SITES)
    data = json.loads(path.read_text())
    data["models"]["gan"].update(rounds=2, local_steps=2)
    data["models"]["glow"].update(rounds=1, local_steps=2)
    data["models"]["encoder"]["steps"] = 2
    data["synthesis"].update(k=5, outputs_per_group=1, inversion_steps=3, alignment_steps=5)
    data["release"]["min_images"] = 2
    path.write_text(yaml.safe_dump(data))
    return path, load_study(path)


def until(condition: Callable[[], bool], what: str, processes: Processes) -> None:
    """Wait; a daemon that died in the meantime is the failure."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        processes.check()
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


def kill_9(processes: Processes, name: str) -> None:
    """Kill a daemon as a power cut would; it must not be found as failed by `check`."""
    process = processes.running.pop(name)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    places = rehearsal.Places(tmp_path_factory.mktemp("demo"))
    processes = Processes(places.out / "logs")
    processes.logs.mkdir()
    truth = {
        name: write_hospital(crops(), places.work / "hospitals" / name, index)
        for index, (name, crops) in enumerate(zip(SITES, (few_crops, other_crops), strict=True))
    }
    plan, study = short_plan(places.work / "plan")
    tap = None
    try:
        public, real = free_port(), free_port()
        server = ["run", str(places.bundle), "--state", str(places.server), "--port", str(real)]
        processes.do(
            "kohort-server",
            "init",
            "--state",
            str(places.server),
            "--name",
            "e2e",
            "--url",
            f"https://127.0.0.1:{public}",
        )
        processes.do(
            "kohort-server",
            "sign",
            str(plan),
            "--state",
            str(places.server),
            "--out",
            str(places.bundle),
        )
        tls = ServerState(places.server).tls
        tap = WireTap(public, real, tls, places.site("any").parent)
        processes.start("server", "kohort-server", *server)
        for name in SITES:
            rehearsal.start_site(processes, places, name, truth[name])

        # One site daemon dies in the middle of its first round, and comes back.
        jobs = places.site("hospital-a") / "jobs"
        until(lambda: any(jobs.glob("*/job.json")), "a job at hospital-a", processes)
        kill_9(processes, "hospital-a")
        processes.start(
            "hospital-a",
            "kohort-site",
            "run",
            "--state",
            str(places.site("hospital-a")),
            "--until-done",
        )

        # The server dies in the middle of the second round, and comes back.
        record = ServerState(places.server).study(study.hash())
        until(
            lambda: (record / "weights" / "gan-000001.safetensors").is_file(),
            "a closed round",
            processes,
        )
        kill_9(processes, "server")
        time.sleep(1)
        processes.start("server", "kohort-server", *server)

        rehearsal.watch(processes, places, SITES, lambda line: None)
        release, _ = rehearsal.publish(processes, places)
        yield Story(places, truth, study, tap.sent(), release, processes)
    finally:
        processes.stop()
        if tap:
            tap.close()


def entries(story: Story, site: str) -> list[tuple[str, str, dict[str, object]]]:
    """A site's journal."""
    journal = Journal(story.places.site(site) / "journal.sqlite")
    found = [(e.key, e.state, e.data) for e in journal.entries()]
    journal.close()
    return found


def test_nothing_that_identifies_a_patient_crosses_the_line_or_stands_in_the_release(
    story: Story,
) -> None:
    assert len(story.sent) > 1_000_000
    assert b"hospital-a" in story.sent  # the tap sees plain bytes
    released = all_bytes(story.release.rglob("*"))
    for site in SITES:
        cohort = Cohort.open(next(story.places.site(site).glob("cohort-*")))
        secrets = [*story.truth[site].identifiers, *cohort.pseudonyms]
        assert len(secrets) > 100
        assert not leaked(secrets, story.sent)
        assert not leaked(secrets, released)


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
    record = StudyRecord(ServerState(story.places.server).study(story.study.hash()), story.study)
    batches = record.batches()
    record.journal.close()
    assert [batch.site for batch in batches] == list(SITES)
    # `operator_log` is the operator's own digest, which the instruction brought
    allowed = {"unit", "k", "grouping", "head_commitment", "weights", "operator_log"}
    for batch in batches:
        header = Header.model_validate_json(batch.parts[0].header)
        assert {k for k in header.statement if not k.startswith("privatize_")} == allowed


def test_logs_hold_no_identifier(story: Story) -> None:
    logs = all_bytes([*story.processes.logs.iterdir(), *story.places.server.rglob("*.log")])
    for site in SITES:
        assert not leaked(story.truth[site].identifiers, logs)


def test_every_image_aggregates_at_least_k_distinct_patients_by_the_sites_own_records(
    story: Story,
) -> None:
    images = 0
    for site in SITES:
        job = next((story.places.site(site) / "jobs").glob("*/evidence.json"))
        evidence = json.loads(job.read_text())
        made = tensors.read(job.parent / "out.safetensors", max_bytes=1 << 28)
        groups = [set(group["members"]) for group in evidence["groups"]]
        assert all(len(group) >= story.study.synthesis.k for group in groups)  # type: ignore[union-attr]
        # nobody is in two groups
        assert sum(len(group) for group in groups) == len(set().union(*groups))
        assert len(evidence["group_of"]) == len(made["images"])
        images += len(made["images"])
    assert read_manifest(story.release).images == images


def test_the_release_verifies_and_one_changed_byte_is_named(story: Story, tmp_path: Path) -> None:
    assert verify(story.release).k == 5
    copy = Path(shutil.copytree(story.release, tmp_path / "copy"))
    victim = next(copy.glob("data/train/*/*.png"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    command = [str(Path(sys.executable).parent / "kohort"), "verify", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert victim.name in done.stderr


def test_after_kill_9_nothing_is_spent_twice_and_no_reservation_has_two_updates(
    story: Story,
) -> None:
    rounds = {f"gan/{r}" for r in range(2)} | {"glow/0"}
    for site in SITES:
        tries = [(k, s, d) for k, s, d in entries(story, site) if "/train/" in k]
        reserved = [
            json.loads(str(d["reservation"]))["id"] for _, state, d in tries if state == "reserved"
        ]
        started = [
            json.loads(str(d["reservation"]))["id"] for _, state, d in tries if state == "started"
        ]
        answered = [key for key, state, _ in tries if state == "answered"]
        assert sorted(reserved) == sorted(set(reserved))
        assert sorted(started) == sorted(set(started))  # one child a reservation
        assert len(answered) == len(set(answered)) == len(rounds)
        report = json.loads(
            story.processes.do(
                "kohort-site", "ledger", "--state", str(story.places.site(site)), "--json"
            )
        )
        assert report["epsilon"]["pld"] <= report["cap_epsilon"]
        rows = ledger_rows(story, site)
        kinds = [kind for kind, _ in rows]
        assert kinds.count("reserve") == len(reserved)  # never less in the ledger than was begun
        assert kinds.count("commit") == len(rounds)
        artefacts = [data["artefact"] for kind, data in rows if kind == "commit"]
        assert len(artefacts) == len(set(artefacts)) == len(rounds)


def ledger_rows(story: Story, site: str) -> list[tuple[str, dict[str, object]]]:
    """Kind and data of a site's ledger rows, straight from SQLite."""
    with sqlite3.connect(story.places.site(site) / "ledger.sqlite") as database:
        rows = database.execute("SELECT kind, body FROM entries ORDER BY seq").fetchall()
    database.close()
    return [(kind, json.loads(body)) for kind, body in rows]


def test_the_killed_site_lost_a_reservation_and_no_more(story: Story) -> None:
    extra = [
        k for k, state, _ in entries(story, "hospital-a") if state == "reserved" and "/train/" in k
    ]
    assert 3 <= len(extra) <= 4


def test_the_ledger_prints_mechanisms_epsilons_and_the_cap_and_detects_one_changed_byte(
    story: Story, tmp_path: Path
) -> None:
    state = Path(shutil.copytree(story.places.site("hospital-b"), tmp_path / "site"))
    text = story.processes.do("kohort-site", "ledger", "--state", str(state))
    for word in (
        "gan: subsampled gaussian",
        "glow: subsampled gaussian",
        "laplace",
        "PLD",
        "RDP",
        "PRV",
    ):
        assert word in text
    assert "cap 10 the most" in " ".join(text.split())
    story.processes.do("kohort-site", "ledger", "--state", str(state), "verify")
    data = bytearray((state / "ledger.sqlite").read_bytes())
    data[data.find(b'"noise_multiplier"') + 2] ^= 1
    (state / "ledger.sqlite").write_bytes(data)
    with pytest.raises(Exception, match="ended with 1"):
        story.processes.do("kohort-site", "ledger", "--state", str(state), "verify")


def test_released_pictures_look_like_the_cohort_and_not_like_one_of_it(story: Story) -> None:
    from PIL import Image

    pictures = np.stack(
        [np.asarray(Image.open(p)) for p in sorted(story.release.glob("data/train/*/*.png"))]
    )
    assert pictures.shape[1:] == (64, 64, 3)
    red, blue = pictures[:, 16:48, 16:48, 0].mean(), pictures[:, 16:48, 16:48, 2].mean()
    assert red > blue + 30  # a fundus is orange
    assert pictures[:, :3, :3].mean() < 40  # and round
    for site in SITES:
        real = np.load(next(story.places.site(site).glob("cohort-*")) / "images.npy").astype(
            np.float32
        )
        for picture in pictures.astype(np.float32):
            assert np.abs(real - picture).mean(axis=(1, 2, 3)).min() > 1.0
