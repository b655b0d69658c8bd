"""The contact sheet of a batch: each image beside its nearest real one. ON SITE ONLY."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

from client.egress.audit import AuditReport
from client.egress.spaces import check_images
from common.arrays import Images, Pixels

GAP_PX = 12
CAPTION_PX = 18
COLOURS = {"A-PASS": "black"}  # of captions; any other code is red


def contact_sheet(
    released: Images, real: Images, report: AuditReport, *, columns: int = 6, zoom: int = 2
) -> bytes:
    """Return PNG bytes: pairs, left released, right its nearest real image; code and lead below.

    No time or path is in it. Raises ConfigurationError as `audit` does.
    """
    check_images(released, real, np.arange(len(real)))
    height = released.shape[1] * zoom
    width = released.shape[2] * zoom
    cell_width = 2 * width + GAP_PX
    cell_height = height + CAPTION_PX
    rows = -(-len(released) // columns)
    size = (cell_width * min(columns, len(released)), cell_height * rows)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    # each cell: released, nearest real one, caption
    for i, (code, found) in enumerate(zip(report.codes, report.nearest, strict=True)):
        x = cell_width * (i % columns)
        y = cell_height * (i // columns)
        for side, image in enumerate((released[i], real[found.row])):
            picture = _picture(image).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (x + side * width, y))
        text = f"{i + 1} {code} {min(found.leads):.2f}"
        colour = COLOURS.get(code, "red")
        draw.text((x + 2, y + height + 3), text, fill=colour)
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def _picture(image: Pixels) -> Image.Image:
    """A Pillow RGB image of uint8 [H, W, 1 or 3]."""
    if image.shape[-1] == 1:
        image = image[..., 0]
    return Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
