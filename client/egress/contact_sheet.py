"""The contact sheet of a batch: each image beside its nearest real one. ON SITE ONLY.

In: the batch, the real images, the audit's report. Out: PNG pages of at most `MOST_PX` a side.
Guarantees: every image of the batch is on exactly one page, in its order; no time or path is in it.
What was drawn is cut out again pixel for pixel (`Layout.box`).
Not covered: that a person looks at each page (review.py says which pages there are).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
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
class Layout:
    """The cells of a page, in pixels: a cell holds a pair and its caption."""

    width: int
    height: int
    columns: int
    rows: int
    caption: int
    zoom: int

    @classmethod
    def of(cls, height: int, width: int) -> Layout:
        """The layout for images of this size; at least one cell a page, whatever their size."""
        zoom = ZOOM if max(height, width) <= SMALL_PX else 1
        caption = max(CAPTION_PX, height * zoom // CAPTION_SHARE)
        columns = min(MOST_COLUMNS, MOST_PX // (2 * width * zoom + GAP_PX))
        rows = MOST_PX // (height * zoom + caption)
        return cls(width * zoom, height * zoom, max(1, columns), max(1, rows), caption, zoom)

    @property
    def cells(self) -> int:
        """How many images a page shows."""
        return self.columns * self.rows

    def corner(self, place: int) -> tuple[int, int]:
        """Return x and y of a cell on its page, by its place there."""
        x = (2 * self.width + GAP_PX) * (place % self.columns)
        y = (self.height + self.caption) * (place // self.columns)
        return x, y

    def box(self, place: int, side: int) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom of a picture: side 0 is released, 1 is real."""
        x, y = self.corner(place)
        left = x + side * self.width
        return left, y, left + self.width, y + self.height


@dataclass(frozen=True)
class Cell:
    """A pair on a page: left what may leave, right its nearest real image, and the code below."""

    released: Pixels
    real: Pixels
    code: str
    lead: float


def count_pages(count: int, height: int, width: int) -> int:
    """Return how many pages the sheet of so many images of one size has."""
    return -(-count // Layout.of(height, width).cells)


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
    cells_of_page = Layout.of(*released.shape[1:3]).cells
    first = page * cells_of_page
    cells: list[Cell] = []
    for i in range(first, min(first + cells_of_page, len(released))):
        found = report.nearest[i]
        cells.append(Cell(released[i], real[found.row], report.codes[i], min(found.leads)))
    return draw_page(cells, first)


def draw_page(cells: Sequence[Cell], first: int) -> bytes:
    """Return a page with these pairs as PNG bytes; `first`: the place in the batch of the first."""
    layout = Layout.of(*cells[0].released.shape[:2])
    font = ImageFont.load_default(FONT_SHARE * layout.caption)
    rows = -(-len(cells) // layout.columns)
    width = (2 * layout.width + GAP_PX) * min(layout.columns, len(cells))
    sheet = Image.new("RGB", (width, (layout.height + layout.caption) * rows), "white")
    draw = ImageDraw.Draw(sheet)
    # each cell: released, nearest real one, caption
    for place, cell in enumerate(cells):
        for side, image in enumerate((cell.released, cell.real)):
            picture = _picture(image).resize(
                (layout.width, layout.height), Image.Resampling.NEAREST
            )
            sheet.paste(picture, layout.box(place, side)[:2])
        x, y = layout.corner(place)
        text = f"{first + place + 1} {cell.code} {cell.lead:.2f}"
        colour = COLOURS.get(cell.code, "red")
        draw.text((x + 2, y + layout.height + 3), text, fill=colour, font=font)
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def _picture(image: Pixels) -> Image.Image:
    """A Pillow RGB image of uint8 [H, W, 1 or 3]."""
    if image.shape[-1] == 1:
        image = image[..., 0]
    return Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
