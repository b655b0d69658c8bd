"""client/ingest/labels.py: rows by file and by patient, words, and refusals that quote no id."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.fleet.app import explain
from client.ingest.labels import MATCH_HINT, Labels, Row, Wording, read_labels
from client.ingest.quarantine import Reason, Unusable
from client.ingest.table import HINT
from common.errors import ConfigurationError

DECLARED = ("none", "severe")
FILES = ("a/1.dcm", "b/1.dcm", "b/2.dcm")


def labels(tmp_path: Path, text: str, **values: str) -> Labels:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return read_labels(path, DECLARED, FILES, 1 << 20, wording=Wording(values=values))


def refusal(tmp_path: Path, text: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as error:
        labels(tmp_path, text)
    assert "MARKER" not in str(error.value) + error.value.hint
    return error.value


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


def test_an_id_of_another_spelling_is_found_where_only_one_is_meant(tmp_path: Path) -> None:
    found = labels(tmp_path, "patient,label\n17,none\nab1,none\n018,none\n18,severe\n")
    assert found.row_of_patient("00017", 0) == Row("17", "none", 0)
    assert found.row_of_patient("AB 1", 0) == Row("ab1", "none", 0)
    assert found.match.nearly == 2
    # as it stands, before any other spelling; and none of two
    assert found.row_of_patient("18", 0) == Row("18", "severe", 0)
    assert found.row_of_patient("0018", 0) is None
    assert found.row_of_patient("", 0) is None
    assert found.match.nearly == 2
    assert found.match.met_rows == 3


def test_a_file_is_found_under_a_name_that_is_nearly_its_own(tmp_path: Path) -> None:
    text = "file,patient,label\nA\\1.DCM,p,none\nX:/b/2.dcm,q,severe\nb/3.dcm,MARKER,none\n"
    found = labels(tmp_path, text)
    assert found.row_of_files(["a/1.dcm"]) == Row("p", "none", 0)
    assert found.row_of_files(["b/2.dcm"]) == Row("q", "severe", 0)
    assert found.match.counts().startswith("2 of 3 rows")
    notes = "\n".join(found.match.table_lines())
    assert "lines 2, 3: the file that is named differs in case or in leading folders" in notes
    assert "line 4: no such file below the data folder" in notes
    assert "MARKER" not in notes


def test_words_of_the_hospital_are_labels_and_sides(tmp_path: Path) -> None:
    text = "patient,label,laterality\n1,DME,OI\n2,SEVERE,zur Nase\n3,keine,Left eye\n"
    found = labels(tmp_path, text, dme="severe", KEINE="none", **{"zur nase": "R"})
    assert found.row_of_patient("1", 0) == Row("1", "severe", 1)
    assert found.row_of_patient("2", 0) == Row("2", "severe", 2)
    assert found.row_of_patient("3", 0) == Row("3", "none", 1)
    assert "line 3: label in another spelling" in "\n".join(found.match.table_lines())


def test_an_unknown_side_is_refused_with_its_lines(tmp_path: Path) -> None:
    text = "patient,label,laterality\n1,none,MARKER\n2,none,L\n3,none,MARKER\n"
    error = refusal(tmp_path, text)
    assert error.code == "E-LABELS-FILE"
    assert "lines 2, 4: `laterality` is no side that is known" in str(error)
    assert "data.values" in str(error)


@pytest.mark.parametrize(("people", "quoted"), [(4, False), (5, True)])
def test_a_word_is_quoted_only_where_five_people_have_it(
    people: int, quoted: bool, tmp_path: Path
) -> None:
    rows = [f"P{i % people},none,temporal" for i in range(9)]
    error = refusal(tmp_path, "\n".join(["patient,label,laterality", *rows]))
    assert ("`temporal`" in str(error)) is quoted


def test_labels_that_the_study_lacks_stay_out_and_are_counted(tmp_path: Path) -> None:
    found = labels(tmp_path, "patient,label\n1,none\n2,sever\n3,MARKER\n")
    with pytest.raises(Unusable):
        found.index(found.row_of_patient("3", 0))
    notes = "\n".join(found.match.table_lines())
    assert "lines 3, 4: `label` is none of the study's; nearly severe" in notes
    assert "MARKER" not in notes


def test_a_table_without_a_label_of_the_study_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, "patient,label\n1,MARKER\n2,MARKER\n")
    assert "map the words to none, severe in data.values" in str(error)
    assert "no row below the first line" in str(refusal(tmp_path, "patient,label\n,\n"))


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    text = "patient,label,laterality\n1,none,MARKER\n2,none,L,MARKER\n3\n"
    problems = refusal(tmp_path, text).problems
    assert [problem.split(": ")[1] for problem in problems] == ["line 3", "line 4", "line 2"]


def test_a_row_of_nobody_is_named_and_counts_for_nobody(tmp_path: Path) -> None:
    found = labels(tmp_path, "file,patient,label\n,,none\na/1.dcm,p,none\n")
    assert found.match.rows == 1
    assert "line 2: names neither file nor patient" in "\n".join(found.match.table_lines())


def test_rows_and_images_of_other_hospitals_are_refused_with_the_likely_cause(
    tmp_path: Path,
) -> None:
    found = labels(tmp_path, "file,patient,label\na/1.png,MARKER,none\nb/2.png,MARKER,none\n")
    found.match.images = 3
    with pytest.raises(ConfigurationError) as error:
        found.check_match()
    assert error.value.code == "E-LABELS-MATCH"
    assert "0 of 2 rows name a file or patient that is here; 0 of 3 images have a row" in str(
        error.value
    )
    assert "lines 2, 3: no such file; one with another ending is there" in str(error.value)
    assert "MARKER" not in str(error.value) + error.value.hint


def test_a_template_that_is_not_filled_in_is_told_from_one_that_is(tmp_path: Path) -> None:
    empty = "file,patient,label\na/1.dcm,,\nb/1.dcm,,\n"
    assert "no row has a label; fill in the column `label`" in str(refusal(tmp_path, empty))
    notes = list(labels(tmp_path, "file,patient,label\na/1.dcm,,none\nb/1.dcm,p,\n").match.lines())
    assert notes[1:3] == [
        "labels: line 2: a file without a patient; it stays out unless its DICOM header says whose "
        "it is",
        "labels: line 3: `label` is empty; such images stay out",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "patient,label,laterality\nMARKER,none,MARKER\n",
        "patient,MARKER\n",
        'MARKER,"MARKER\n',
        "patient,label\nMARKER,MARKER\n",
    ],
)
def test_the_daemons_log_holds_the_code_and_a_constant_hint(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as error:
        labels(tmp_path, text)
    assert explain(error.value) == f"E-LABELS-FILE ({HINT})"


def test_the_daemons_log_holds_no_count_of_what_fits(tmp_path: Path) -> None:
    found = labels(tmp_path, "patient,label\nMARKER,none\n")
    found.match.images = 1
    with pytest.raises(ConfigurationError) as error:
        found.check_match()
    assert explain(error.value) == f"E-LABELS-MATCH ({MATCH_HINT})"
