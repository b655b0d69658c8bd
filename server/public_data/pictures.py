"""Pictures for the eye: PNG files, contact sheets, and image beside mask.

In: uint8 arrays that may be shown to anybody.
Out: uint8 arrays, or the bytes of a file.
Guarantees: the same pictures give the same bytes; a file holds no metadata but, where asked for,
the constant mark of a synthetic picture.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from common.arrays import Images, Pixels
from kohort.marks import mark_png

COLUMNS = 9
RED = np.array([255, 60, 40], np.float64)
IMAGE_SHARE = 0.45  # of the overlay
RED_SHARE = 0.55
LEAST_PX = 128  # a smaller picture is enlarged by whole pixels
THUMBNAIL_PX = 128
JPEG_QUALITY = 85
# run lengths alone: 4 to 27 times faster than the smallest file, and 1 % larger
# (benchmarks/notes/pictures.md)
PNG_STRATEGY = 3


def png_bytes(image: Pixels) -> bytes:
    """Return a PNG without any metadata of a uint8 picture [H, W] or [H, W, C]."""
    data = io.BytesIO()
    _picture(image).save(data, "PNG", compress_type=PNG_STRATEGY)
    return data.getvalue()


def marked_png_bytes(image: Pixels) -> bytes:
    """Return a PNG that says that it is synthetic (kohort/marks.py), and nothing else."""
    return mark_png(png_bytes(image))


def shrink(image: Pixels, most_px: int = THUMBNAIL_PX) -> Pixels:
    """Return a uint8 picture [H, W] or [H, W, C], no side of it longer than `most_px`."""
    height, width = image.shape[:2]
    if max(height, width) <= most_px:
        return image
    scale = most_px / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(_picture(image).resize(size, Image.Resampling.BOX))
    return small.reshape(*small.shape[:2], *image.shape[2:])


def thumbnail_uri(image: Pixels) -> str:
    """Return a small picture as a `data:` address: a smaller one is a JPEG, any other as it is."""
    small = shrink(image)
    kind = "png"
    data = png_bytes(small)
    if small.shape != image.shape:
        kind = "jpeg"
        data = _jpeg_bytes(small)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def pair_uris(images: Images, masks: Images) -> list[str]:
    """Return each pair as a `data:` address: image, mask, and the mask in red over the image.

    `images` are uint8 [N, S, S, 1], `masks` uint8 [N, S, S] of 0 and 255; both are shrunk.
    """
    small = np.stack([shrink(image) for image in images])
    outlines = np.stack([shrink(mask) for mask in masks])
    sharp = np.where(outlines > 127, 255, 0).astype(np.uint8)
    uris = []
    for picture in triptychs(small, sharp):
        uris.append("data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode())
    return uris


def _jpeg_bytes(image: Pixels) -> bytes:
    """A JPEG file of a uint8 picture."""
    data = io.BytesIO()
    _picture(image).save(data, "JPEG", quality=JPEG_QUALITY)
    return data.getvalue()


def _picture(image: Pixels) -> Image.Image:
    """A uint8 picture [H, W] or [H, W, C] as Pillow has it."""
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image.squeeze(-1)
    return Image.fromarray(image)


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
