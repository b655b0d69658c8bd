"""Pictures that are cut out of a contact sheet are the images that were drawn on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.egress.audit import AuditReport, Nearest
from client.egress.contact_sheet import Layout, contact_sheet, count_pages
from client.egress.facts import Facts, Finding, ImageFacts
from client.egress.review import page_name
from client.egress.sheet_pictures import SheetPictures
from common.arrays import Images
from common.errors import RefusedError

FACTS = ImageFacts("grade-0", 0, 5, False, Finding("A-PASS", 1.2, 0.9))


def drawn(folder: Path, images: Images, real: Images) -> SheetPictures:
    """The pictures of a sheet of these images, each beside the real one of its number."""
    count, size = images.shape[:2]
    found = tuple(Nearest(row, (2.0,) * 3, (1.0,) * 3) for row in range(count))
    report = AuditReport(("A-PASS",) * count, found)
    sheets: list[Path] = []
    for page in range(count_pages(*images.shape[:3])):
        sheets.append(folder / page_name("contact_sheet.png", page))
        sheets[-1].write_bytes(contact_sheet(images, real, report, page))
    return SheetPictures(sheets, Facts(size, (FACTS,) * count, ""))


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (256, 1), (257, 3), (512, 1)])
def test_what_was_drawn_is_cut_out_again(tmp_path: Path, size: int, channels: int) -> None:
    """With zoom and without, in colour and grey, on the last cell and on a second page."""
    per_page = Layout.of(size, size).cells
    count = per_page + 1 if size == 512 else 5
    n, y, x, c = np.ogrid[:count, :size, :size, :channels]
    images = (41 * n + 3 * y + 5 * x + 7 * c).astype(np.uint8)
    real = 255 - images
    pictures = drawn(tmp_path, images, real)
    assert len(pictures.sheets) == (2 if size == 512 else 1)
    for number in (1, 2, count):
        for side, wanted in enumerate((images, real)):
            cut = pictures.pixels(number, side)
            assert (cut == np.broadcast_to(wanted[number - 1], (size, size, 3))).all()
    assert pictures.shows(images)
    images[-1, -1, -1, -1] ^= 1
    assert not pictures.shows(images)
    assert not pictures.shows(images[:-1])


@pytest.mark.parametrize("number", [0, -1, 6])
def test_a_picture_that_is_not_there_is_refused(tmp_path: Path, number: int) -> None:
    images = np.zeros((5, 32, 32, 3), np.uint8)
    with pytest.raises(RefusedError):
        drawn(tmp_path, images, images).pixels(number, 0)


def test_a_page_that_is_smaller_than_its_images_is_refused(tmp_path: Path) -> None:
    images = np.zeros((5, 32, 32, 3), np.uint8)
    pictures = drawn(tmp_path, images, images)
    pictures.facts = Facts(64, (FACTS,) * 5, "")
    with pytest.raises(RefusedError, match="does not show it"):
        pictures.pixels(5, 1)
