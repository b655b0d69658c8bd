"""Orthanc, an archive of hospitals: from images in it to a cohort, by the commands of a site."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from client.cli.main import run_command_line
from client.ingest.build import ingest
from client.ingest.request import Limits
from client.ingest.sealed import is_sealed
from client.state.folder import State, new_pseudonym_key
from client.state.sample import sample
from common.study.intake import Intake
from tests import phantoms

PROGRAM = shutil.which("Orthanc")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER = ("reader", "secret")
pytestmark = pytest.mark.skipif(
    PROGRAM is None or not PLUGIN.exists(), reason="needs Debian's orthanc and orthanc-dicomweb"
)
RULES = Intake.model_validate(
    {"dicom_modalities": ["DX"], "size_px": 32, "channels": 1, "labels": ["none"]}
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[httpx.Client]:
    assert PROGRAM is not None
    folder = tmp_path / "orthanc"
    folder.mkdir()
    port = free_port()
    settings = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": dict([USER]),
        "Plugins": [str(PLUGIN)],
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, folder / "orthanc.json"], stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=address, auth=USER, trust_env=False) as client:
            _wait(client, process)
            yield client
    finally:
        process.terminate()
        process.wait(30)


def _wait(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, "Orthanc ended at its start"
        try:
            client.get("/system").raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise AssertionError("Orthanc does not answer")


def upload(client: httpx.Client, tmp_path: Path) -> None:
    """Three chests of two people, and a hand."""
    for number in range(4):
        dataset = phantoms.header("DX", f"P{number // 2}")
        uid = f"{dataset.StudyInstanceUID}.{number}"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{uid}.1"
        dataset.SeriesInstanceUID = uid
        dataset.BodyPartExamined = "HAND" if number == 3 else "CHEST"
        dataset.ViewPosition, dataset.PresentationIntentType = "PA", "FOR PRESENTATION"
        phantoms.with_pixels(dataset, phantoms.grey(number), "MONOCHROME2", 12)
        path = phantoms.save(dataset, tmp_path / f"{number}.dcm")
        client.post("/instances", content=path.read_bytes()).raise_for_status()


def test_images_of_orthanc_become_a_cohort(
    orthanc: httpx.Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(orthanc, tmp_path)
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    new_pseudonym_key(State(state).pseudonym_key)
    text = sample("hospital-a", str(state / "fetched"))
    for old, new in (
        ("url: null", f"url: {orthanc.base_url}/dicom-web"),
        ("modalities: []", "modalities: [DX]"),
        ("body_parts: []", "body_parts: [CHEST]"),
        ("from_date: null", "from_date: 2019-09-01"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (state / "site.yaml").write_text(text)

    # without the credential, and with it, twice
    assert run_command_line(["fetch", "--state", str(state)]) != 0
    assert "401" in capsys.readouterr().err
    for words in ("0 were here, 3 came now", "3 were here, 0 came now"):
        reading, writing = os.pipe()
        os.write(writing, b"reader:secret\n")
        os.close(writing)
        command = ["fetch", "--state", str(state), "--credential-fd", str(reading)]
        assert run_command_line(command) == 0
        os.close(reading)
        assert f"3 images fit: {words}" in capsys.readouterr().out

    # only sealed files wait, and they become a cohort
    assert is_sealed(state / "fetched")
    for path in (state / "fetched").iterdir():
        assert phantoms.MARKERS[0].encode() not in path.read_bytes()
    key = State(state).pseudonym_bytes()
    report = ingest(state / "fetched", RULES, key, state / "cohort", limits=Limits(workers=1))
    assert (report.ingested, report.patients, report.quarantined) == (3, 2, {})
