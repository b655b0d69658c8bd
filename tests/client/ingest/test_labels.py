"""client/ingest/labels.py: rows by file and by patient, and refusals that quote no cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.ingest.labels import Labels, Row, read_labels
from client.ingest.quarantine import Reason, Unusable
from common.errors import ConfigurationError

DECLARED = ("none", "severe")
FILES = ("a/1.dcm", "b/1.dcm", "b/2.dcm")


def labels(tmp_path: Path, text: str) -> Labels:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return read_labels(path, DECLARED, FILES, 1 << 20)


@pytest.mark.parametrize("separator", [",", ";"])
def test_rows_by_patient_and_side(separator: str, tmp_path: Path) -> None:
    text = "Patient,Label,Laterality\n007 ,none,L\n007,severe,R\n8,none,\n".replace(",", separator)
    found = labels(tmp_path, "\ufeff" + text)
    assert found.row_of_patient(" 007", 1) == Row("007", "none", 1)
    assert found.row_of_patient("007", 2) == Row("007", "severe", 2)
    assert found.row_of_patient("8", 2) == Row("8", "none", 0)
    assert found.row_of_patient("9", 1) is None
    with pytest.raises(Unusable) as refusal:
        found.row_of_patient("007", 0)
    assert refusal.value.reason is Reason.AMBIGUOUS_LABEL


def test_rows_by_file_take_paths_and_unique_names(tmp_path: Path) -> None:
    found = labels(tmp_path, "file,patient,label\na/1.dcm,p,none\n2.dcm,q,severe\n1.dcm,r,none\n")
    assert found.row_of_files(["a/1.dcm"]) == Row("p", "none", 0)
    assert found.row_of_files(["b/2.dcm"]) == Row("q", "severe", 0)
    assert found.row_of_files(["b/1.dcm"]) is None


@pytest.mark.parametrize(
    ("row", "reason"), [(None, Reason.NO_LABEL), (Row("p", "mild", 0), Reason.UNKNOWN_LABEL)]
)
def test_a_label_must_be_given_and_declared(row: Row | None, reason: Reason) -> None:
    with pytest.raises(Unusable) as refusal:
        Labels(DECLARED).index(row)
    assert refusal.value.reason is reason


def test_without_a_file_only_a_single_label_can_be_meant() -> None:
    assert read_labels(None, ("all",), FILES, 1).index(None) == 0
    with pytest.raises(ConfigurationError):
        read_labels(None, DECLARED, FILES, 1)


@pytest.mark.parametrize(
    "text", ["", "patient,grade\nMARKER,1\n", "label\nnone\n", "patient,patient,label\n", "a;b\n"]
)
def test_wrong_columns_are_refused_without_quoting(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as error:
        labels(tmp_path, text)
    assert "MARKER" not in str(error.value) + error.value.hint


def test_a_header_line_that_is_no_csv_row_is_refused(tmp_path: Path) -> None:
    for text in ('"' + "a" * 200_000 + '",label\n', 'label,"' + "\n" * 200_000):
        with pytest.raises(ConfigurationError, match="line 1: not a CSV row"):
            labels(tmp_path, text)
