"""The contact sheet: released images beside their nearest real ones."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.egress import audit as au
from client.egress import contact_sheet
from tests.photographs import photographs

REAL = photographs(30)


def test_the_contact_sheet_shows_released_beside_nearest_real() -> None:
    report = au.audit(REAL[[5, 6]], REAL)
    data = contact_sheet.contact_sheet(REAL[[5, 6]], REAL, report)
    assert data == contact_sheet.contact_sheet(REAL[[5, 6]], REAL, report)
    sheet = Image.open(io.BytesIO(data))
    assert (sheet.format, sheet.size, sheet.info) == ("PNG", (2 * 140, 82), {})
    pixels = np.asarray(sheet)
    assert (pixels[:64:2, :64:2] == REAL[5]).all()
    assert (pixels[:64:2, 64:128:2] == REAL[5]).all()


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (256, 1), (512, 1), (4096, 1)])
def test_a_page_is_bounded_and_every_image_is_on_one(
    size: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.zeros((2, size, size, channels), np.uint8)
    images[1] = 200
    per_page = contact_sheet.Layout.of(*images.shape[1:3]).cells
    many = np.broadcast_to(images[0], (per_page + 1, *images.shape[1:]))
    report = au.AuditReport(
        ("A-PASS",) * len(many), (au.Nearest(1, (2.0,) * 3, (1.0,) * 3),) * len(many)
    )
    assert contact_sheet.count_pages(*many.shape[:3]) == 2
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    pages = [contact_sheet.contact_sheet(many, images, report, page) for page in (0, 1)]
    cell = 2 * size * (2 if size <= 256 else 1) + contact_sheet.GAP_PX
    for data, cells in zip(pages, (per_page, 1), strict=True):
        with Image.open(io.BytesIO(data)) as sheet:
            width, height = sheet.size
        assert width == cell * min(cells, contact_sheet.Layout.of(*images.shape[1:3]).columns)
        if size < 4096:
            assert max(width, height) <= contact_sheet.MOST_PX


def test_a_thousand_images_of_512_pixels_are_pages_and_no_tower() -> None:
    shape = (1000, 512, 512, 1)
    assert contact_sheet.count_pages(*shape[:3]) == 48


@pytest.mark.parametrize("size", [32, 64, 96, 128, 256, 512])
def test_captions_grow_with_the_images(size: int) -> None:
    """A page of large images is looked at from afar: its words must not vanish."""
    images = np.zeros((2, size, size, 1), np.uint8)
    report = au.AuditReport(("A-PASS",), (au.Nearest(0, (2.0,) * 3, (1.0,) * 3),))
    with Image.open(io.BytesIO(contact_sheet.contact_sheet(images[:1], images, report))) as sheet:
        width, height = sheet.size
        top = size * (2 if size <= contact_sheet.SMALL_PX else 1)
        written = np.asarray(sheet.convert("L"))[top:]
    lines = np.flatnonzero((written < 128).any(axis=1))
    assert height - top >= max(18, top // 16)
    assert np.ptp(lines) >= max(6, width // 100)


@pytest.mark.parametrize("size", [32, 64, 96, 128, 256, 512])
def test_a_sheet_of_before_pages_is_known_by_its_length(size: int, tmp_path: Path) -> None:
    """Then a sheet had six columns, and every image was zoomed; pages came with MOST_PX."""
    path = tmp_path / "contact_sheet.png"
    cell = (4 * size + contact_sheet.GAP_PX, 2 * size + contact_sheet.CAPTION_PX)
    per_page = contact_sheet.Layout.of(size, size).cells
    for count in (per_page + 1, 3 * per_page):
        Image.new("1", (cell[0] * min(6, count), cell[1] * -(-count // 6))).save(path)
        assert contact_sheet.is_unpaged(path)
    real = np.zeros((per_page + 1, size, size, 1), np.uint8)
    found = (au.Nearest(0, (2.0,) * 3, (1.0,) * 3),) * len(real)
    report = au.AuditReport(("A-PASS",) * len(real), found)
    path.write_bytes(contact_sheet.contact_sheet(real, real, report))
    assert not contact_sheet.is_unpaged(path)


@pytest.mark.parametrize("data", [b"", b"sheet", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_what_is_no_png_is_no_sheet_of_before_pages(data: bytes, tmp_path: Path) -> None:
    assert not contact_sheet.is_unpaged(tmp_path / "none.png")
    (tmp_path / "sheet.png").write_bytes(data)
    assert not contact_sheet.is_unpaged(tmp_path / "sheet.png")


def test_the_number_of_an_image_is_that_in_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheet, "MOST_PX", 200)
    report = au.audit(REAL[:5], REAL)
    texts: list[str] = []
    monkeypatch.setattr(
        contact_sheet.ImageDraw.ImageDraw, "text", lambda _, __, text, **___: texts.append(text)
    )
    for page in range(contact_sheet.count_pages(*REAL[:5].shape[:3])):
        contact_sheet.contact_sheet(REAL[:5], REAL, report, page)
    assert [text.split()[0] for text in texts] == ["1", "2", "3", "4", "5"]
    assert contact_sheet.count_pages(*REAL[:5].shape[:3]) > 1
