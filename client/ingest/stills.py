"""Reads photographs: PNG, JPEG, TIFF, BMP, JPEG 2000 and WebP.

In: an open file.
Out: uint8 [H, W, 1 or 3], upright, transparent parts over black.
Guarantees:
  - a file is known by its content; only the formats below are ever tried
  - width x height, and the size of a tile, are checked before anything is decoded
  - of EXIF the orientation alone is used; comments and colour profiles are ignored
  - beside the codec's own copy and the result, memory holds one strip of the image
Not covered: gamma and colour management; text in the picture.

  1. find the format by content
  2. check the declared size; a file of several pictures is refused
  3. decode
  4. make it 8 bits, grey or RGB, over black
  5. turn it upright
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.ingest.codestream import stated_size
from client.ingest.images import strips
from client.ingest.orientation import read_orientation, turn_upright
from client.ingest.quarantine import Reason, Unusable
from common.arrays import Pixels

HEAD_BYTES = 32
# where a mark stands, the mark, and the format in Pillow's words
MARKS = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG2000"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF8", "GIF"),
    (4, b"ftyp", "HEIF"),  # HEIC, AVIF and films
)
BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}  # sizes of what follows the mark BM
READ = frozenset({"PNG", "JPEG", "TIFF", "BMP", "JPEG2000", "WEBP"})
DARK_LEVEL = 15  # 16-bit colours that stay below it use 12 bits, and would be shown almost black
CODESTREAM_BYTES = 1 << 20  # of a JPEG 2000 file: what comes before its image

COLOUR_MODES = {"RGB", "RGBA", "RGBX", "P", "PA", "YCbCr", "CMYK"}
GREY_MODES = {"L", "LA", "1"}
DEEP_MODES = {"I;16", "I;16B", "I", "I;16L"}
DEEP_LEVELS = 1 << 16
# of a pixel, in Pillow or as it is returned; all others take 4
PIXEL_BYTES = {"1": 1, "L": 1, "LA": 2, "I;16": 2, "I;16B": 2, "RGB": 3, "P": 3, "YCbCr": 3}

# tags of TIFF
SUBFILE, BITS, PHOTOMETRIC, PLANAR = 254, 258, 262, 284
TILE_WIDTH, TILE_LENGTH, OTHER_IMAGES = 322, 323, 330
WHITE_IS_ZERO = 0
PLANES_APART = 2


def kind_of(head: bytes) -> str | None:
    """Return the format of a still image by its first HEAD_BYTES, read or not; None for others."""
    for at, mark, kind in MARKS:
        if head[at:].startswith(mark):
            return kind
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in BMP_HEADERS:
        return "BMP"
    return None


def read_photograph(file: BinaryIO, max_pixel_bytes: int) -> Pixels:
    """Return the uint8 [H, W, 1 or 3] pixels of a photograph.

    Raises Unusable: unknown-format, unread-format, declared-too-large and several-pictures before
    decoding; undecodable; unsupported-pixels. A codec may raise anything else.
    """
    # (1) find the format by content
    head = file.read(HEAD_BYTES)
    kind = kind_of(head)
    if kind is None:
        raise Unusable(Reason.UNKNOWN_FORMAT)
    if kind not in READ:
        raise Unusable(Reason.UNREAD_FORMAT)
    # (2) check the declared size
    size = _size_before_opening(file, kind, head)
    _check_size(size, max_pixel_bytes)
    picture = _open(file, kind)
    _check_size(picture.size, max_pixel_bytes, PIXEL_BYTES.get(picture.mode, 4))
    if size not in ((0, 0), picture.size):
        raise Unusable(Reason.UNDECODABLE)
    tags: Mapping[int, Any] = getattr(picture, "tag_v2", {})
    _check_size((tags.get(TILE_WIDTH, 1), tags.get(TILE_LENGTH, 1)), max_pixel_bytes)
    _check_alone(picture, kind, tags)
    _check_kind_of_pixels(picture, kind, head, tags)

    # (3) decode; what a codec says of the picture may change with it
    picture.load()
    # (4) make it 8 bits, over black
    if picture.mode in DEEP_MODES:
        pixels = _read_deep(picture, inverted=tags.get(PHOTOMETRIC) == WHITE_IS_ZERO)
    elif picture.mode in GREY_MODES:
        pixels = _read_shallow(picture, 1)
    elif picture.mode in COLOUR_MODES:
        pixels = _read_shallow(picture, 3)
        # the upper eight bits were kept
        if _is_deep_colour(kind, head, tags) and pixels.max() <= DARK_LEVEL:
            raise Unusable(Reason.UNSUPPORTED_PIXELS)
    else:
        raise Unusable(Reason.UNSUPPORTED_PIXELS)
    # (5) turn it upright; Pillow has done so with TIFF, and taken the orientation away
    exif = picture.info.get("exif")
    if not isinstance(exif, bytes):
        return pixels
    return turn_upright(pixels, read_orientation(exif))


def _open(file: BinaryIO, kind: str) -> Image.Image:
    """The picture, its header read and nothing decoded."""
    # the caps here are lower than Pillow's own
    Image.MAX_IMAGE_PIXELS = None
    # Pillow loads three formats by itself, and all others only where none is named
    if kind in ("TIFF", "JPEG2000", "WEBP"):
        from PIL import Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401
    file.seek(0)
    try:
        return Image.open(file, formats=(kind,))
    except (OSError, ValueError, SyntaxError) as error:
        raise Unusable(Reason.UNDECODABLE) from error


def _size_before_opening(file: BinaryIO, kind: str, head: bytes) -> tuple[int, int]:
    """Width and height where Pillow allocates as it opens, or trusts another place; else zeros."""
    if kind == "WEBP":
        return _webp_size(head)
    if kind == "JPEG2000":
        file.seek(0)
        stated = stated_size(file.read(CODESTREAM_BYTES))
        if stated is None:
            raise Unusable(Reason.UNDECODABLE)
        return stated.columns, stated.rows
    return 0, 0


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height of a WebP file's canvas, from its first chunk."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(head[at : at + size], "little")

    if head[12:16] == b"VP8X":
        return number(24, 3) + 1, number(27, 3) + 1
    if head[12:16] == b"VP8L":
        return number(21, 4) % (1 << 14) + 1, (number(21, 4) >> 14) % (1 << 14) + 1
    if head[12:16] == b"VP8 ":
        return number(26, 2) % (1 << 14), number(28, 2) % (1 << 14)
    raise Unusable(Reason.UNDECODABLE)


def _check_size(size: tuple[int, int], max_pixel_bytes: int, pixel_bytes: int = 4) -> None:
    """Refuse more pixels than the cap has room for."""
    width, height = size
    if width * height * pixel_bytes > max_pixel_bytes:
        raise Unusable(Reason.DECLARED_TOO_LARGE)


def _check_alone(picture: Image.Image, kind: str, tags: Mapping[int, Any]) -> None:
    """Refuse pages, animations, and a preview that stands for another picture of the file.

    A JPEG is its first picture: what cameras append are previews and depth maps.
    """
    animated = kind != "JPEG" and getattr(picture, "is_animated", False)
    if animated or tags.get(SUBFILE, 0) or OTHER_IMAGES in tags:
        raise Unusable(Reason.SEVERAL_PICTURES)


def _check_kind_of_pixels(
    picture: Image.Image, kind: str, head: bytes, tags: Mapping[int, Any]
) -> None:
    """Refuse what Pillow would show wrongly, without an error."""
    # 16-bit grey with alpha: its lower eight bits would be lost
    deep_grey_with_alpha = kind == "PNG" and head[24:26] == b"\x10\x04"
    # 16-bit colours in planes of their own would be read as bytes
    deep_planes = tags.get(PLANAR) == PLANES_APART and max(tags.get(BITS, (8,))) > 8
    # CMYK without Adobe's mark: whether ink is 0 or 255 is not known
    unmarked = kind == "JPEG" and picture.mode == "CMYK" and "adobe" not in picture.info
    if deep_grey_with_alpha or deep_planes or unmarked:
        raise Unusable(Reason.UNSUPPORTED_PIXELS)


def _is_deep_colour(kind: str, head: bytes, tags: Mapping[int, Any]) -> bool:
    """Whether a picture in colour has 16 bits a sample."""
    if kind == "PNG":
        return bool(head[24] > 8)
    return bool(max(tags.get(BITS, (8,))) > 8)


def _read_shallow(picture: Image.Image, channels: int) -> Pixels:
    """A picture of 8 bits in grey or colour, uint8 [H, W, channels], over black."""
    width, height = picture.size
    pixels = np.empty((height, width, channels), np.uint8)
    for rows in strips(height, width):
        strip = picture.crop((0, rows.start, width, rows.stop))
        pixels[rows] = _over_black(strip, channels).reshape(-1, width, channels)
    return pixels


def _over_black(strip: Image.Image, channels: int) -> NDArray[np.uint8]:
    """Pixels of one strip; colours times alpha, where there is alpha."""
    plain, clear, multiplied = "RGB", "RGBA", "RGBa"
    if channels == 1:
        plain, clear, multiplied = "L", "LA", "La"
    if not strip.has_transparency_data:
        return np.asarray(strip.convert(plain))
    return np.asarray(strip.convert(clear).convert(multiplied))[..., :channels]


def _read_deep(picture: Image.Image, *, inverted: bool) -> Pixels:
    """A 16-bit grey picture, uint8 [H, W, 1]: its middle 99 % of values spread over 0..255."""
    width, height = picture.size
    counts = np.zeros(DEEP_LEVELS, np.int64)
    for rows in strips(height, width):
        counts += np.bincount(_deep_strip(picture, rows).ravel(), minlength=DEEP_LEVELS)
    # one value may stand for what is transparent
    clear = picture.info.get("transparency")
    clear = clear if isinstance(clear, int) and 0 <= clear < DEEP_LEVELS else None
    if clear is not None and counts.sum() > counts[clear]:
        counts[clear] = 0
    low, high = _percentile(counts, 0.005), _percentile(counts, 0.995)
    shares = np.clip((np.arange(DEEP_LEVELS) - low) / max(high - low, 1), 0, 1)
    if inverted:
        shares = 1 - shares
    if clear is not None:
        shares[clear] = 0
    table = np.rint(255 * shares).astype(np.uint8)
    pixels = np.empty((height, width, 1), np.uint8)
    for rows in strips(height, width):
        pixels[rows, :, 0] = table[_deep_strip(picture, rows)]
    return pixels


def _deep_strip(picture: Image.Image, rows: slice) -> NDArray[np.int64]:
    """Some rows of a deep picture. Raises Unusable for a value of more than 16 bits."""
    strip = picture.crop((0, rows.start, picture.width, rows.stop))
    values = np.asarray(strip, dtype=np.int64)
    if values.min() < 0 or values.max() >= DEEP_LEVELS:
        raise Unusable(Reason.UNSUPPORTED_PIXELS)
    return values


def _percentile(counts: NDArray[np.int64], share: float) -> float:
    """The value that a share of all is not above, between two values in proportion.

    `counts`: how often each value occurs. It is what np.percentile returns of the values.
    """
    ends = np.cumsum(counts)
    place = share * float(ends[-1] - 1)
    below = int(place)
    above = min(below + 1, int(ends[-1]) - 1)
    low, high = np.searchsorted(ends, (below, above), side="right").tolist()
    part = place - below
    if part < 0.5:
        return float(low + (high - low) * part)
    return float(high - (high - low) * (1 - part))
