"""An intake that was cut short goes on: what is finished is not decoded again, and the end is the
same, byte for byte.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from client.ingest import decode_child, scanning, volumes
from client.ingest.build import COMPARING, READING, WRITING, ingest
from client.ingest.finished import NAME
from client.ingest.refused import LIST
from client.ingest.request import Photograph, Settings
from common.errors import ConfigurationError, EnvironmentFault
from common.study.intake import Intake
from tests import phantoms
from tests import volume_phantoms as made
from tests.client.ingest.cut_short import ONE_WORKER, Killed, Stop, take_in

PEOPLE = 6
FILES = PEOPLE + 2
Rules = Callable[..., Intake]


@pytest.fixture
def photographs(tmp_path: Path) -> tuple[Path, Path]:
    """Six people, a text and a film that is cut off; and their labels file."""
    labels = phantoms.write_photographs(tmp_path / "data", PEOPLE, size=64)
    (tmp_path / "data" / "notes.txt").write_text("no image")
    film = phantoms.write_fundus(tmp_path / "data" / "film.dcm", "MRN-1", phantoms.fundus(5))
    film.write_bytes(film.read_bytes()[:3000])
    return tmp_path / "data", labels


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch, in_process: None) -> list[str]:
    """The names of the files that were decoded, in order."""
    names: list[str] = []
    read = decode_child.read_file

    def watched(path: str, settings: Settings) -> Photograph:
        names.append(Path(path).name)
        return read(path, settings)

    monkeypatch.setattr(decode_child, "read_file", watched)
    return names


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "stops",
    [
        ((READING, 1),),
        ((READING, FILES),),
        ((COMPARING, 1),),
        ((WRITING, 1),),
        ((READING, 2), (READING, 4), (READING, 7)),
    ],
)
def test_an_intake_that_was_cut_short_decodes_the_rest_and_ends_the_same(
    stops: tuple[Stop, ...],
    photographs: tuple[Path, Path],
    decoded: list[str],
    intake: Rules,
    key: bytes,
    tmp_path: Path,
) -> None:
    whole = take_in(photographs, intake(), key, tmp_path / "whole")
    assert len(decoded) == FILES
    decoded.clear()
    for stop in stops:
        with pytest.raises(Killed):
            take_in(photographs, intake(), key, tmp_path / "cut", stop)
        assert len(decoded) == (stop[1] if stop[0] == READING else FILES)
    report = take_in(photographs, intake(), key, tmp_path / "cut")
    # each file was decoded once
    assert sorted(decoded) == sorted(path.name for path in photographs[0].iterdir())
    assert report == whole
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert not (tmp_path / "aside").exists()


def test_a_file_that_changed_meanwhile_is_decoded_again(
    photographs: tuple[Path, Path], decoded: list[str], intake: Rules, key: bytes, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        take_in(photographs, intake(), key, tmp_path / "cut", (READING, FILES))
    decoded.clear()
    changed = photographs[0] / "000-0.png"
    changed.write_bytes((photographs[0] / "001-0.png").read_bytes())
    cut = take_in(photographs, intake(), key, tmp_path / "cut")
    assert decoded == ["000-0.png"]
    assert cut.digest == take_in(photographs, intake(), key, tmp_path / "whole").digest


def test_other_rules_begin_anew(
    photographs: tuple[Path, Path], decoded: list[str], intake: Rules, key: bytes, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        take_in(photographs, intake(), key, tmp_path / "cut", (READING, FILES))
    decoded.clear()
    cut = take_in(photographs, intake(size_px=32), key, tmp_path / "cut")
    assert len(decoded) == FILES
    assert cut.digest == take_in(photographs, intake(size_px=32), key, tmp_path / "whole").digest


def test_after_a_wrong_labels_file_was_mended_nothing_is_decoded_again(
    photographs: tuple[Path, Path], decoded: list[str], intake: Rules, key: bytes, tmp_path: Path
) -> None:
    source, labels = photographs
    rules = intake(stratify_laterality=True)
    with pytest.raises(ConfigurationError, match="no usable image"):
        take_in((source, labels), rules, key, tmp_path / "out")
    assert {path.name for path in (tmp_path / "aside").iterdir()} == {NAME, LIST}
    decoded.clear()
    header, *rows = labels.read_text().splitlines()
    labels.write_text("\n".join([f"{header},laterality", *(f"{row},R" for row in rows)]) + "\n")
    report = take_in((source, labels), rules, key, tmp_path / "out")
    assert report.patients == PEOPLE
    assert decoded == []
    assert not (tmp_path / "aside").exists()


@pytest.mark.usefixtures("in_process")
def test_a_full_disk_keeps_what_is_finished(
    photographs: tuple[Path, Path],
    intake: Rules,
    key: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = decode_child.read_file

    def full(path: str, settings: Settings) -> Photograph:
        if path.endswith("003-0.png"):
            raise OSError(28, "No space left on device")
        return read(path, settings)

    with monkeypatch.context() as patch:
        patch.setattr(decode_child, "read_file", full)
        with pytest.raises(EnvironmentFault) as fault:
            take_in(photographs, intake(), key, tmp_path / "out")
    assert fault.value.code == "E-DISK-FULL"
    assert (tmp_path / "aside" / NAME).stat().st_size > 3 * 64 * 64 * 3
    assert take_in(photographs, intake(), key, tmp_path / "out").patients == PEOPLE


@pytest.mark.usefixtures("in_process")
def test_volumes_go_on_behind_the_last_one(
    key: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        series, mask = made.patient(number)
        made.write_series(tmp_path / "data", series, f"p{number}")
        made.write_segmentation(tmp_path / "data" / f"p{number}-mask.dcm", series, mask)
    files = 18
    scanned: list[str] = []
    cut: list[int] = []
    scan, read_volume = scanning.scan, volumes.read_volume
    monkeypatch.setattr(
        scanning, "scan", lambda path, caps: (scanned.append(path), scan(path, caps))[1]
    )
    monkeypatch.setattr(
        volumes, "read_volume", lambda *these: (cut.append(len(these[0])), read_volume(*these))[1]
    )
    rules = Intake.model_validate(
        {
            "dicom_modalities": ["MR"],
            "size_px": 32,
            "channels": 1,
            "labels": ["vessels"],
            "volumes": {"patches_per_patient": 4},
        }
    )
    folder = (tmp_path / "data", None)
    whole = take_in(folder, rules, key, tmp_path / "whole")
    assert (len(scanned), len(cut)) == (files, 3)
    scanned.clear()
    cut.clear()
    # cut short while files are scanned, then after two volumes
    for stop in (7, files + 12):
        with pytest.raises(Killed):
            take_in(folder, rules, key, tmp_path / "cut", (READING, stop))
    assert take_in(folder, rules, key, tmp_path / "cut") == whole
    # what a decoder was at when the intake ended is done twice
    at_work = 2
    assert files <= len(scanned) <= files + at_work
    assert 3 <= len(cut) < 3 + at_work
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


KILL = """
import os, signal, sys
from pathlib import Path
from client.ingest import decode, decode_child
from client.ingest.build import ingest
from client.ingest.quarantine import Unusable
from common.study.intake import Intake

def decode_all(paths, settings, workers):
    for number, path in enumerate(paths):
        if number == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            yield decode_child.read_file(str(path), settings)
        except Unusable as refusal:
            yield refusal.reason

decode.decode_all = decode_all
source, labels, out, rules = sys.argv[1:]
ingest(Path(source), Intake.model_validate_json(rules), bytes(range(32)), Path(out),
       labels_csv=Path(labels), aside=Path(out).with_name("aside"))
"""


def test_kill_9_in_the_middle_of_decoding_costs_the_file_at_work(
    photographs: tuple[Path, Path], decoded: list[str], key: bytes, tmp_path: Path
) -> None:
    rules = Intake(dicom_modalities=("OP",), size_px=64, channels=3, labels=("none",))
    source, labels = photographs
    arguments = [str(source), str(labels), str(tmp_path / "cut"), rules.model_dump_json()]
    done = subprocess.run(
        [sys.executable, "-c", KILL, *arguments], timeout=60, check=False, env=os.environ
    )
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / ".cut.partial").exists()
    cut = take_in(photographs, rules, key, tmp_path / "cut")
    assert len(decoded) == FILES - 4
    assert not (tmp_path / ".cut.partial").exists()
    whole = take_in(photographs, rules, key, tmp_path / "whole")
    assert cut == whole
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("in_process")
def test_without_a_folder_for_it_nothing_is_kept(
    photographs: tuple[Path, Path], intake: Rules, key: bytes, tmp_path: Path
) -> None:
    source, labels = photographs
    ingest(source, intake(), key, tmp_path / "out", labels_csv=labels, limits=ONE_WORKER)
    shutil.rmtree(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"data", "data-labels.csv"}
