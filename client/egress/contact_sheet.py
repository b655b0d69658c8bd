"""The contact sheet of a batch: each image beside its nearest real one. ON SITE ONLY.

In: the batch, the real images, the audit's report. Out: PNG pages of at most `MOST_PX` a side.
Guarantees: every image of the batch is on exactly one page, in its order; no time or path is in it.
Not covered: that a person looks at each page (review.py says which pages there are).
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from client.egress.audit import AuditReport
from client.egress.spaces import check_images
from common.arrays import Images, Pixels

MOST_PX = 4096  # a side of a page
MOST_COLUMNS = 6
ZOOM = 2  # of images of up to SMALL_PX a side; larger ones are shown as they are
SMALL_PX = 256
GAP_PX = 12
CAPTION_PX = 18  # below a small image; below a large one a sixteenth of its height
CAPTION_SHARE = 16
FONT_SHARE = 0.6  # of a caption's height
PNG_HEAD = struct.Struct(">8s4x4sII")  # signature, first chunk, width and height
COLOURS = {"A-PASS": "black"}  # of captions; any other code is red


@dataclass(frozen=True)
class _Layout:
    """The cells of a page, in pixels: a cell holds a pair and its caption."""

    width: int
    height: int
    columns: int
    rows: int
    caption: int

    @classmethod
    def of(cls, height: int, width: int) -> _Layout:
        """The layout for images of this size; at least one cell a page, whatever their size."""
        zoom = ZOOM if max(height, width) <= SMALL_PX else 1
        caption = max(CAPTION_PX, height * zoom // CAPTION_SHARE)
        columns = min(MOST_COLUMNS, MOST_PX // (2 * width * zoom + GAP_PX))
        rows = MOST_PX // (height * zoom + caption)
        return cls(width * zoom, height * zoom, max(1, columns), max(1, rows), caption)

    @property
    def cells(self) -> int:
        """How many images a page shows."""
        return self.columns * self.rows


def count_pages(count: int, height: int, width: int) -> int:
    """Return how many pages the sheet of so many images of one size has."""
    return -(-count // _Layout.of(height, width).cells)


def is_unpaged(sheet: Path) -> bool:
    """Return whether a sheet was drawn before sheets had pages: it shows every image at once.

    Such a sheet of more images than a page holds is longer than any page. False for no PNG.
    """
    if not sheet.is_file():
        return False
    with open(sheet, "rb") as file:
        head = file.read(PNG_HEAD.size)
    if len(head) < PNG_HEAD.size:
        return False
    signature, chunk, width, height = PNG_HEAD.unpack(head)
    return (signature, chunk) == (b"\x89PNG\r\n\x1a\n", b"IHDR") and max(width, height) > MOST_PX


def contact_sheet(released: Images, real: Images, report: AuditReport, page: int = 0) -> bytes:
    """Return one page as PNG bytes: pairs, left released, right its nearest real image.

    Below each: its number in the batch, code and lead. Pages count from 0. Raises
    ConfigurationError as `audit` does.
    """
    check_images(released, real, np.arange(len(real)))
    layout = _Layout.of(*released.shape[1:3])
    shown = range(page * layout.cells, min((page + 1) * layout.cells, len(released)))
    cell_width = 2 * layout.width + GAP_PX
    cell_height = layout.height + layout.caption
    font = ImageFont.load_default(FONT_SHARE * layout.caption)
    rows = -(-len(shown) // layout.columns)
    size = (cell_width * min(layout.columns, len(shown)), cell_height * rows)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    # each cell: released, nearest real one, caption
    for place, i in enumerate(shown):
        found = report.nearest[i]
        x = cell_width * (place % layout.columns)
        y = cell_height * (place // layout.columns)
        for side, image in enumerate((released[i], real[found.row])):
            picture = _picture(image).resize(
                (layout.width, layout.height), Image.Resampling.NEAREST
            )
            sheet.paste(picture, (x + side * layout.width, y))
        text = f"{i + 1} {report.codes[i]} {min(found.leads):.2f}"
        colour = COLOURS.get(report.codes[i], "red")
        draw.text((x + 2, y + layout.height + 3), text, fill=colour, font=font)
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def _picture(image: Pixels) -> Image.Image:
    """A Pillow RGB image of uint8 [H, W, 1 or 3]."""
    if image.shape[-1] == 1:
        image = image[..., 0]
    return Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
