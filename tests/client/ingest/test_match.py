"""client/ingest/match.py: rows find their files, nearly or not, and both directions are counted."""

from __future__ import annotations

import pytest

from client.ingest import match
from client.ingest.match import FolderIndex, Match, file_key

FILES = (
    "2024/a17.png",
    "2024/IMG_1.JPG",
    "2025/IMG_1.JPG",
    "scan/007.tif",
    "top.png",
    "2023/x.png",
)


@pytest.mark.parametrize(
    ("named", "file"),
    [
        ("2024/a17.png", "2024/a17.png"),
        ("./2024/a17.png", "2024/a17.png"),
        ("2024\\a17.png", "2024/a17.png"),
        ("a17.png", "2024/a17.png"),
        ("IMG_1.JPG", None),
        ("A17.png", None),
    ],
)
def test_an_exact_name(named: str, file: str | None) -> None:
    assert FolderIndex(FILES).exact(file_key(named)) == file


@pytest.mark.parametrize(
    ("named", "file", "sentence"),
    [
        ("A17.PNG", "2024/a17.png", match.NEARLY),
        ("C:\\Export\\2024\\a17.png", "2024/a17.png", match.NEARLY),
        ("/2024//a17.png", "2024/a17.png", match.NEARLY),
        ("export/TOP.png", "top.png", match.NEARLY),
        ("img_1.jpg", None, match.SEVERAL),
        ("2026/img_1.jpg", None, match.FOLDER),
        ("2024/a17.jpg", None, match.ENDING),
        ("a17", None, match.ENDING),
        ("7.tif", None, match.ZEROS),
        ("b.png", None, match.ABSENT),
        ("X.png", None, match.TAKEN),
    ],
)
def test_a_name_that_is_nearly_right(named: str, file: str | None, sentence: str) -> None:
    taken = {"2023/x.png"}
    assert FolderIndex(FILES).nearly(file_key(named), taken) == (file, sentence)


@pytest.mark.parametrize(
    ("rows", "file_rows", "images", "labelled", "fits"),
    [
        (0, 0, 0, 0, True),
        (10, 10, 10, 10, True),
        (100, 10, 10, 10, True),  # the table of a whole hospital
        (10, 10, 100, 10, True),  # a folder of which a part has labels
        (10, 5, 10, 4, True),
        (10, 4, 10, 4, False),
        (10, 0, 10, 0, False),
        (100, 0, 3, 0, False),
        (3, 0, 0, 0, True),  # nothing can be read: that is said elsewhere
    ],
)
def test_a_table_and_a_folder_of_each_other(
    rows: int, file_rows: int, images: int, labelled: int, fits: bool
) -> None:
    found = Match("UTF-8", rows=rows, file_rows=file_rows, images=images, labelled=labelled)
    assert found.fits() is fits


def test_both_directions_stand_on_the_screen() -> None:
    found = Match("UTF-8, separated by commas", "; not read: `Age`", rows=3, images=2, labelled=1)
    found.patient_rows = {"p": [2], "q": [3, 4]}
    found.met = {"q"}
    found.nearly = 1
    assert list(found.lines()) == [
        "labels: UTF-8, separated by commas, 3 rows; not read: `Age`",
        "labels: 2 of 3 rows name a file or patient that is here; 1 of 2 images have a row",
        "labels: 1 images whose id is spelled otherwise in their row",
        "labels: line 2: no image is of this patient",
    ]
