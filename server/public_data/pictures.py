"""Pictures for the eye: PNG files, contact sheets, and image beside mask.

In: uint8 arrays that may be shown to anybody.
Out: uint8 arrays, or the bytes of a file.
Guarantees: the same pictures give the same bytes; a file holds no metadata.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from common.arrays import Images, Pixels

COLUMNS = 9
RED = np.array([255, 60, 40], np.float64)
IMAGE_SHARE = 0.45  # of the overlay
RED_SHARE = 0.55
LEAST_PX = 128  # a smaller picture is enlarged by whole pixels


def png_bytes(image: Pixels) -> bytes:
    """Return a PNG without any metadata of a uint8 picture [H, W] or [H, W, C]."""
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image.squeeze(-1)
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG", optimize=True)
    return data.getvalue()


def contact_sheet(images: Images, columns: int = COLUMNS, pad: int = 2) -> Pixels:
    """Return one uint8 picture with all of `images` [N, H, W, C] in rows of `columns`."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    shape = (rows * (height + pad) + pad, columns * (width + pad) + pad, channels)
    sheet = np.full(shape, 255, np.uint8)
    for i, image in enumerate(images):
        y = pad + (i // columns) * (height + pad)
        x = pad + (i % columns) * (width + pad)
        sheet[y : y + height, x : x + width] = image
    return sheet


def triptychs(images: Images, masks: Images, least_px: int = LEAST_PX, gap: int = 2) -> Images:
    """Return uint8 [N, s, 3s + 2·gap, 3]: image, mask, and the mask in red over the image.

    `images` are uint8 [N, S, S, 1], `masks` uint8 [N, S, S]. Pixels are repeated until s is at
    least `least_px`.
    """
    times = max(1, -(-least_px // images.shape[1]))
    image = np.repeat(_enlarge(images[..., 0], times)[..., None], 3, axis=3)
    mask = np.repeat(_enlarge(masks, times)[..., None], 3, axis=3)
    red = IMAGE_SHARE * image + RED_SHARE * RED
    overlay = np.where(mask > 0, red, image).astype(np.uint8)
    space = np.full((*image.shape[:2], gap, 3), 255, np.uint8)
    return np.concatenate([image, space, mask, space, overlay], axis=2)


def _enlarge(images: Images, times: int) -> Images:
    """Every pixel of [N, H, W] repeated `times` in both directions."""
    return np.repeat(np.repeat(images, times, axis=1), times, axis=2)
