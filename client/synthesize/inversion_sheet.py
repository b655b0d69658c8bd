"""Draws the site's sheet of inversions: original beside inversion, the worst first.

In: uint8 images [N, H, W, C], their `Inversion`, the generator that shows its codes and its look.
Out: PNG bytes for the job folder and the review folder; the sheet never leaves the site.
Guarantees: images that were left out come first, up to `MOST`; a caption holds the row in the
cohort, the error and whether the image was left out, and no name.
Not covered: a verdict; a person looks at vessels.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from client.synthesize.coarse import add_residual
from client.synthesize.invert import Inversion, reconstruct
from client.synthesize.looks import look_from, show_in
from common.models.draws import device_of
from common.models.images import to_uint8
from common.models.look import Look, field_of
from common.models.stylegan import Generator

FILE = "inversions.png"
MOST = 48  # images on the sheet
COLUMNS = 6
LEAST_CELL_PX = 64
GAP_PX = 8
CAPTION_PX = 16  # below a small image; below a large one a sixteenth of its height
CAPTION_SHARE = 16
FONT_SHARE = 0.6  # of a caption's height


def draw_sheet(
    images: NDArray[np.uint8], found: Inversion, generator: Generator, common: Look
) -> bytes:
    """Return PNG bytes: pairs (left original, right inversion) in the order of `worst_first`.

    An inversion is shown with its coarse residual and in its image's own look; `common` is the
    generator's. The caption's error is that of the code alone.
    """
    # the layout: cells of one pair and its caption
    rows = worst_first(found)[:MOST]
    zoom = max(1, LEAST_CELL_PX // images.shape[1])
    height = images.shape[1] * zoom
    width = images.shape[2] * zoom
    cell_w = max(2 * width, 128) + GAP_PX
    caption = max(CAPTION_PX, height // CAPTION_SHARE)
    cell_h = height + caption
    font = ImageFont.load_default(FONT_SHARE * caption)
    lines = -(-len(rows) // COLUMNS)
    sheet = Image.new("RGB", (cell_w * min(COLUMNS, len(rows)), cell_h * lines), "white")
    draw = ImageDraw.Draw(sheet)
    for place, row in enumerate(rows.tolist()):
        # the pair
        x = cell_w * (place % COLUMNS)
        y = cell_h * (place // COLUMNS)
        own = look_from(found.looks[row : row + 1], device_of(generator))
        made = reconstruct(found.codes[row : row + 1], generator)
        fields = field_of(made)
        made = add_residual(made, torch.from_numpy(np.array(found.coarse[row, :-1])), fields)
        rebuilt = to_uint8(show_in(made, common, own, fields))[0]
        for side, image in enumerate((images[row], rebuilt)):
            picture = _picture(image).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (x + side * width, y))
        # its caption
        text = ""
        colour = "black"
        if not found.accepted[row]:
            text = " left out"
            colour = "red"
        words = f"{row} {found.errors[row]:.3f}{text}"
        draw.text((x + 2, y + height + 2), words, fill=colour, font=font)
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def _picture(image: NDArray[np.uint8]) -> Image.Image:
    """An image [H, W, 1 or 3] as a picture."""
    if image.shape[-1] == 1:
        image = image[..., 0]
    return Image.fromarray(np.ascontiguousarray(image))


def worst_first(found: Inversion) -> NDArray[np.int64]:
    """Return the rows of the cohort: left out before accepted, then by falling error, NaN first."""
    return np.lexsort((-np.nan_to_num(found.errors, nan=np.inf), found.accepted))
