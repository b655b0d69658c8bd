"""client/ingest/table.py: any exported table is read, or refused in words that quote no cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.ingest.table import MOST_NAMED, Findings, Table, open_table
from common.errors import ConfigurationError

ASKED = {"file", "patient", "label", "laterality"}
ROWS = "file,patient,label\na.png,P-1,none\nb.png,P-2,severe\n"


def table(folder: Path, content: str | bytes, **renamed: str) -> Table:
    path = folder / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    names = {name.replace("_", "-"): ours for name, ours in renamed.items()}
    return open_table(path, 1 << 24, ASKED, names)


def problems(folder: Path, content: str | bytes, **renamed: str) -> str:
    """Everything that is said of a table that cannot be read."""
    try:
        found = table(folder, content, **renamed)
        list(found.rows())
    except ConfigurationError as error:
        return f"{error.code}: {error}\n{error.hint}"
    return "\n".join(found.problems.texts())


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    ("codec", "mark", "name"),
    [
        ("utf-8", b"", "UTF-8"),
        ("utf-8-sig", b"", "UTF-8"),
        ("utf-16", b"", "UTF-16"),
        ("utf-16-le", b"", "UTF-16"),
        ("utf-16-be", b"", "UTF-16"),
    ],
)
def test_separators_and_encodings_are_found_and_said(
    separator: str, codec: str, mark: bytes, name: str, tmp_path: Path
) -> None:
    text = ROWS.replace(",", separator).replace("none", "keine Auffälligkeit")
    found = table(tmp_path, mark + text.encode(codec))
    assert [line.cells["label"] for line in found.rows()] == ["keine Auffälligkeit", "severe"]
    assert [line.number for line in table(tmp_path, text).rows()] == [2, 3]
    assert name in found.form
    words = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
    assert found.form.endswith(words[separator])
    assert not list(found.problems.texts())


def test_windows_text_is_read_and_named(tmp_path: Path) -> None:
    found = table(tmp_path, "patient;label\nMüller;none\n".encode("cp1252"))
    assert found.form == "Windows-1252, separated by semicolons"
    assert next(found.rows()).cells["patient"] == "Müller"


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_every_end_of_line_is_one(ends: str, tmp_path: Path) -> None:
    rows = list(table(tmp_path, ROWS.replace("\n", ends)).rows())
    assert [line.number for line in rows] == [2, 3]


def test_excels_own_first_line_names_the_separator(tmp_path: Path) -> None:
    rows = list(table(tmp_path, "sep=;\r\npatient;label\r\na,b;none\r\n").rows())
    assert [(line.number, line.cells["patient"]) for line in rows] == [(3, "a,b")]


def test_blanks_and_empty_columns_of_a_header_do_not_count(tmp_path: Path) -> None:
    found = table(tmp_path, "file, Patient ,LABEL,,,\na.png,P1,x,,,\n\n,,,,,\n")
    assert [dict(line.cells) for line in found.rows()] == [
        {"file": "a.png", "patient": "P1", "label": "x"}
    ]
    assert found.ignored == ()


def test_other_columns_are_not_read_and_are_named(tmp_path: Path) -> None:
    found = table(tmp_path, "patient,Diagnosis,label,Age\nP1,MARKER,x,70\n")
    assert found.ignored == ("Diagnosis", "Age")
    assert next(found.rows()).cells == {"patient": "P1", "label": "x"}


def test_the_hospitals_names_of_columns_are_ours(tmp_path: Path) -> None:
    renamed = {"Patienten_ID": "patient", "Diagnose": "label"}
    found = table(tmp_path, "patienten-id; DIAGNOSE ;label\nP1;x;MARKER\n", **renamed)
    assert next(found.rows()).cells == {"patient": "P1", "label": "x"}
    assert found.ignored == ("label",)  # the name that is mapped counts before ours


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the first line must name the columns"),
        ("MARKER-1,none,L\nMARKER-2,none,R\n", "the first line must name the columns"),
        ("patient,grade\nMARKER,1\n", "no column `label`, among `patient`, `grade`"),
        ("Patienten-ID;Diagnose\nMARKER;1\n", "{Patienten-ID: patient, Diagnose: label}"),
        ("label\nnone\n", "no column `file` or `patient`"),
        ("patient,patient,label\n", "several columns are `patient`"),
        ('"file;patient;label\n' + "a.png;MARKER;x\n" * 20_000, "line 1: not a CSV row"),
        ('patient,label\nP1,x\nP2,"MARKER\n', "line 3: not a CSV row"),
        ('patient,label\nP1,x\n"P2,x\n"P3",x\n', "line 3: "),
        ("patient,label\nP1,x\nMARKER,Ann,x\nP3,x\n", "line 3: more cells"),
        ("patient,label\nP1\n\n2 MARKER\n", "lines 2, 4: fewer cells"),
        ("patient,label\n" + "a" * (1 << 21), "line 2: not a CSV row"),
        ("patient,label\n" + "," * (1 << 21), "line 2: not a CSV row"),
        (b"PK\x03\x04xl/MARKER", "an Excel or OpenDocument workbook"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a workbook, not text"),
        (b"patient,label\nP\x001,x\n", "neither UTF-8"),
        (b"patient,label\n\x81\x8d,x\n", "neither UTF-8"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line_and_without_its_cells(
    content: str | bytes, said: str, tmp_path: Path
) -> None:
    found = problems(tmp_path, content)
    assert said in found
    assert "MARKER" not in found


def test_a_mapped_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "no column `Auge`" in problems(tmp_path, ROWS, Auge="laterality")


def test_a_short_row_with_a_label_is_read_and_named(tmp_path: Path) -> None:
    found = table(tmp_path, "patient,label,laterality\nP1,x\nP2,x,L\n")
    assert [line.cells["laterality"] for line in found.rows()] == ["", "L"]
    assert list(found.notes.texts()) == [
        "line 2: fewer cells than the first line; the missing ones are empty"
    ]


def test_a_line_break_in_a_cell_that_is_read_is_refused(tmp_path: Path) -> None:
    assert "line 2: a line break" in problems(tmp_path, 'patient,label\n"MARKER\nP2",x\n')
    # a comment of several lines is not read
    found = table(tmp_path, 'patient,label,note\nP1,x,"a\nb"\nP2,x,c\n')
    assert [line.number for line in found.rows()] == [2, 4]
    assert not list(found.problems.texts())


def test_of_many_lines_the_first_runs_are_named_and_all_counted() -> None:
    findings = Findings()
    for line in [2, 3, 4, 6, *range(8, 8 + 2 * MOST_NAMED, 2), 100, 101]:
        findings.add("wrong", line)
    findings.add("other", 7)
    first, second = findings.texts()
    assert first == "lines 2 to 4, 6, 8, 10, 12, 14, 16, 18, 20, 22 and 4 more: wrong"
    assert second == "line 7: other"
