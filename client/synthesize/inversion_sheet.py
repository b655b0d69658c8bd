"""The site's picture of how well its images were inverted: original beside inversion, the worst first. It never leaves.

In: uint8 images [N, H, W, C] and their `Inversion`. Out: PNG bytes for the job folder and the review folder.
Guaranteed: every image that was left out is in it, up to `MOST`, before any that was accepted; a caption holds the row of
the image in the cohort, its error and whether it was left out, and no name. Not: a verdict; a person looks at vessels.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from client.synthesize.invert import Inversion
from common.models.images import to_uint8

FILE = "inversions.png"
MOST = 48
COLUMNS = 6
LEAST_CELL_PX = 64
GAP_PX = 8
CAPTION_PX = 16


def inversion_sheet(images: NDArray[np.uint8], found: Inversion) -> bytes:
    """PNG bytes: pairs (left original, right inversion), those left out first, then by falling error."""
    rows = worst_first(found)[:MOST]
    zoom = max(1, LEAST_CELL_PX // images.shape[1])
    height = images.shape[1] * zoom
    width = images.shape[2] * zoom
    cell_w = max(2 * width, 128) + GAP_PX
    cell_h = height + CAPTION_PX
    sheet = Image.new(
        "RGB", (cell_w * min(COLUMNS, len(rows)), cell_h * -(-len(rows) // COLUMNS)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for place, row in enumerate(rows.tolist()):
        x = cell_w * (place % COLUMNS)
        y = cell_h * (place // COLUMNS)
        for side, image in enumerate(
            (images[row], to_uint8(found.reconstructions[row : row + 1])[0])
        ):
            picture = Image.fromarray(
                np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image)
            )
            sheet.paste(
                picture.resize((width, height), Image.Resampling.NEAREST), (x + side * width, y)
            )
        text, colour = ("", "black") if found.accepted[row] else (" left out", "red")
        draw.text((x + 2, y + height + 2), f"{row} {found.errors[row]:.3f}{text}", fill=colour)
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def worst_first(found: Inversion) -> NDArray[np.int64]:
    """Rows of the cohort: left out before accepted, then by falling error; an error that is not a number is the worst."""
    return np.lexsort((-np.nan_to_num(found.errors, nan=np.inf), found.accepted))
