"""`kohort-site labels` and the labels part of `check`, as typed."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from client.ingest import template
from client.state.sample import sample as site_sample
from tests import phantoms
from tests.client.cli.typing_commands import Cli, photographs


def site(tmp_path: Path, labels: Path | None) -> Path:
    """A state folder before it has joined: a site.yaml alone."""
    state = tmp_path / "site"
    state.mkdir()
    text = site_sample("hospital-a", str(tmp_path / "data"), labels and str(labels))
    (state / "site.yaml").write_text(text)
    return state


def test_a_template_is_filled_in_and_read_again(tmp_path: Path, cli: Cli) -> None:
    photographs(tmp_path / "data")
    (tmp_path / "data" / "Thumbs.db").write_bytes(b"x")
    state = site(tmp_path, None)
    code, out, err = cli("labels", "--state", state)
    assert (code, out) == (2, "")
    assert "kohort-site labels --template" in err

    code, out, _ = cli("labels", "--state", state, "--template")
    made = state / "labels-template.csv"
    assert code == 0
    assert f"wrote {made}: 12 rows for 12 files\n1 other files have no row" in out
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    lines = made.read_text("utf-8-sig").splitlines()
    assert lines[:2] == ["file,patient,label,laterality", "0.png,,,"]
    # an existing file is never replaced, and the data folder is only read
    assert cli("labels", "--state", state, "--template")[0] == 2
    inside = tmp_path / "data" / "new.csv"
    code, _, err = cli("labels", "--state", state, "--template", "--out", inside)
    assert (code, inside.exists()) == (2, False)
    assert "never writes" in err

    filled = tmp_path / "labels.csv"
    rows = [f"{line.split(',')[0]};P{i};none;links" for i, line in enumerate(lines[1:])]
    filled.write_text("\n".join([lines[0].replace(",", ";"), *rows]))
    text = (state / "site.yaml").read_text().replace("labels_csv: null", f'labels_csv: "{filled}"')
    (state / "site.yaml").write_text(text)
    code, out, _ = cli("labels", "--state", state)
    assert code == 0
    assert out.splitlines() == [
        "labels: UTF-8, separated by semicolons, 12 rows",
        "labels: 12 of 12 rows name a file or patient that is here; 12 of 13 files have a row",
    ]


def test_a_template_of_dicom_has_a_row_a_patient(tmp_path: Path, cli: Cli) -> None:
    for number, patient in enumerate(["00017", "00017", "=A1", "ANONYMOUS"]):
        path = tmp_path / "data" / f"{number}.dcm"
        phantoms.write_fundus(path, patient, phantoms.fundus(number, 32), laterality="L")
    code, _, _ = cli(
        "labels", "--state", site(tmp_path, None), "--template", "--out", tmp_path / "new.csv"
    )
    assert code == 0
    lines = (tmp_path / "new.csv").read_text("utf-8-sig").splitlines()
    # a cell that a spreadsheet would compute begins with a space, which is not read
    assert lines == ["file,patient,label,laterality", ",00017,,", ", =A1,,", "3.dcm,,,"]


def test_check_compares_labels_with_headers_as_ingest_does(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        path = tmp_path / "data" / f"{number}.dcm"
        phantoms.write_fundus(path, f"0{number}X", phantoms.fundus(number, 32))
    labels = tmp_path / "labels.csv"
    labels.write_text("patient,label,Befund\n1x,a,MARKER\n2X,b,MARKER\n02X,b,MARKER\n77,a,MARKER\n")
    state = site(tmp_path, labels)
    _, out, err = cli("check", "--state", state, "--offline")
    assert "  labels: UTF-8, separated by commas, 4 rows; not read: `Befund`" in out
    assert "  labels: 2 of 4 rows name a file or patient that is here; 2 of 4 images" in out
    assert "  labels: lines 3, 5: no image is of this patient" in out
    assert "E-LABELS" not in err

    # other patients: a fault, and the same code as that of ingest
    labels.write_text("patient,label\nMARKER-1,a\nMARKER-2,b\n")
    code, out, err = cli("check", "--state", state, "--offline")
    assert code == 2
    assert "E-LABELS-MATCH: labels and images do not fit: 0 of 2 rows" in err
    assert "MARKER" not in out + err
    # a monitoring system asks every minute: it gets no look at the folder
    _, out, _ = cli("check", "--state", state, "--offline", "--monitor")
    assert "E-LABELS" not in out

    # of a large folder a part is looked at, which is said and proves nothing
    monkeypatch.setattr(template, "MOST_HEADERS", 2)
    _, out, err = cli("check", "--state", state, "--offline")
    assert "labels: the headers of 2 of 4 files were looked at; 0 of 2 have a row" in out
    assert "no image is of this patient" not in out
    assert "E-LABELS" not in err


def test_every_problem_of_a_labels_file_is_said_at_once(tmp_path: Path, cli: Cli) -> None:
    photographs(tmp_path / "data")
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "file,patient,label,laterality\n0.png,P,a,MARKER\n1.png,P,a,L,MARKER\n2.png\n"
    )
    state = site(tmp_path, labels)
    for command in (("labels",), ("check", "--offline")):
        code, out, err = cli(*command, "--state", state)
        assert code == 2
        assert "line 3: more cells than the first line has columns (4)" in err
        assert "line 4: fewer cells than the first line has columns (4), and no label" in err
        assert "line 2: `laterality` is no side that is known" in err
        assert "MARKER" not in out + err


def test_volumes_have_a_row_a_series(tmp_path: Path) -> None:
    asked = template.Asked(volumes=True, labels=("vessels",))
    seen = template.Glance("dicom", "P1", 0, "1.2.3")
    assert template._row("a/1.dcm", seen, asked) == (
        ("series", "P1", "1.2.3"),
        ("a/1.dcm", "P1", ""),
    )
    sides = template.Asked(sides=True)
    seen = template.Glance("dicom", "P1", 2)
    assert template._row("a", seen, sides) == (("patient", "P1", "R"), ("", "P1", "R"))


def test_a_template_and_labels_of_an_archive(tmp_path: Path, cli: Cli) -> None:
    labels = photographs(tmp_path / "data")
    shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path / "data")
    state = site(tmp_path, labels)
    text = (state / "site.yaml").read_text()
    (state / "site.yaml").write_text(text.replace(f"{tmp_path}/data", f"{tmp_path}/export.zip"))
    code, out, _ = cli("labels", "--state", state, "--template")
    assert code == 0
    assert "12 rows for 12 files" in out
    code, out, _ = cli("labels", "--state", state)
    assert code == 0
    assert "12 of 12 rows name a file or patient that is here; 12 of 12 files have a row" in out
    assert not list(state.glob(".unpacked-*"))
