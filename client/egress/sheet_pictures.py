"""The pictures of a batch, cut out of its contact sheet. ON SITE ONLY.

In: the pages of a sheet, their SHA-256 by file name, what is noted of the images.
Out: each image with its nearest real one; pages of the rest of a batch.
Guarantees: a picture holds the very pixels of the page, whose SHA-256 the journal has; `shows`
compares them with the images that would leave.
Not covered: sheets of versions before pages, and of single images: they are shown as they are.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from client.egress.contact_sheet import MOST_PX, Cell, Layout, draw_page
from client.egress.facts import Facts
from common.arrays import Images, Pixels
from common.errors import RefusedError, damage_named
from common.storage.files import read_capped
from common.wire.messages import digest_of

PAGE_CAP_BYTES = 1 << 28
SIDES = ("average", "nearest")


@dataclass
class SheetPictures:
    """The pictures of one batch; the page that was cut last is kept."""

    sheets: Sequence[Path]
    facts: Facts
    digests: Mapping[str, str] = field(default_factory=dict)
    _page: tuple[int, Image.Image] | None = field(default=None, repr=False)

    def pixels(self, number: int, side: int) -> Pixels:
        """Return uint8 [H, W, 3] of image `number`, from 1; side 1 is its nearest real image.

        Raises RefusedError where the sheet has no such picture.
        """
        layout = Layout.of(self.facts.size_px, self.facts.size_px)
        if not 1 <= number <= len(self.facts.images):
            raise RefusedError(f"image {number}: the batch has no such image")
        page, place = divmod(number - 1, layout.cells)
        sheet = self._open(page)
        box = layout.box(place, side)
        if box[2] > sheet.width or box[3] > sheet.height:
            raise RefusedError(f"image {number}: the contact sheet does not show it")
        return np.asarray(sheet.crop(box))[:: layout.zoom, :: layout.zoom]

    def png(self, number: int, side: int) -> bytes:
        """Return the same picture as PNG bytes."""
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(self.pixels(number, side))).save(stream, "PNG")
        return stream.getvalue()

    def shows(self, images: Images) -> bool:
        """Return whether the left picture of each pair is the image that would leave, in order."""
        if len(images) != len(self.facts.images):
            return False
        for number, image in enumerate(images, 1):
            wanted = np.broadcast_to(image, (*image.shape[:2], 3))
            if not np.array_equal(self.pixels(number, 0), wanted):
                return False
        return True

    def draw_rest(self, places: Sequence[int]) -> Iterator[bytes]:
        """Yield the pages of a sheet of the images at these places alone, numbered anew."""
        layout = Layout.of(self.facts.size_px, self.facts.size_px)
        for first in range(0, len(places), layout.cells):
            cells: list[Cell] = []
            for place in places[first : first + layout.cells]:
                finding = self.facts.images[place].finding
                released, real = (self.pixels(place + 1, side) for side in (0, 1))
                cells.append(Cell(released, real, finding.code, finding.lead))
            yield draw_page(cells, first)

    def _open(self, page: int) -> Image.Image:
        """A page, decoded."""
        if self._page is not None and self._page[0] == page:
            return self._page[1]
        if page >= len(self.sheets):
            raise RefusedError(f"page {page + 1}: the contact sheet has no such page")
        path = self.sheets[page]
        text = read_capped(path, PAGE_CAP_BYTES)
        if digest_of(text) != self.digests.get(path.name, digest_of(text)):
            raise RefusedError(f"{path}: not the page that was proposed")
        with damage_named(RefusedError(f"{path}: not a page of a contact sheet")):
            sheet = Image.open(io.BytesIO(text), formats=("PNG",))
            if max(sheet.size) > MOST_PX:
                raise ValueError("size")
            image = sheet.convert("RGB")
        self._page = (page, image)
        return image
