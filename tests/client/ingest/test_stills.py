"""client/ingest/stills.py and orientation.py: photographs of every format, upright, over black.

What is shown is what was drawn, or the file is refused before a codec sees it.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from client.ingest import images, stills
from client.ingest.decode_child import read_file
from client.ingest.orientation import read_orientation
from client.ingest.quarantine import Reason, Unusable
from client.ingest.stills import kind_of, read_photograph
from tests import phantoms
from tests.fuzz.ingest_targets import SETTINGS

CAP = 1 << 20
COLOUR = phantoms.fundus(1, 32)[4:28]
GREY = COLOUR[..., 0]
DEEP = (np.arange(24 * 32).reshape(24, 32) * 85).astype(np.uint16)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:
    """A picture as the file of a format."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_png_modes(mode: str) -> None:
    picture = Image.fromarray(phantoms.fundus(1)).convert(mode)
    pixels = read_photograph(encoded(picture), 1 << 20)
    expected = np.asarray(picture if mode == "L" else picture.convert("RGB"))
    assert np.array_equal(pixels.squeeze(), expected)


def test_sixteen_bit_png_is_stretched() -> None:
    pixels = read_photograph(encoded(Image.fromarray(phantoms.grey(1, bits=16))), 1 << 20)
    assert pixels.dtype == np.uint8
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_a_png_that_declares_too_much_is_refused_before_decoding() -> None:
    with pytest.raises(Unusable) as refusal:
        read_photograph(io.BytesIO(phantoms.hollow_png(60000, 60000)), 1 << 28)
    assert refusal.value.reason is Reason.DECLARED_TOO_LARGE


def test_comments_do_not_change_what_is_read() -> None:
    notes = PngInfo()
    notes.add_text("Comment", phantoms.MARKERS[4])
    picture = Image.fromarray(phantoms.fundus(2))
    plain, noted = (read_photograph(encoded(picture, pnginfo=n), 1 << 20) for n in (None, notes))
    assert np.array_equal(plain, noted)


STRIPS = pytest.mark.parametrize("strip_pixels", [1, 1000, 1 << 20])


@STRIPS
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "CMYK"])
def test_strips_hold_what_the_whole_picture_holds(
    strip_pixels: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "STRIP_PIXELS", strip_pixels)
    picture = Image.fromarray(phantoms.fundus(1)).crop((0, 0, 64, 49)).convert(mode)
    data = encoded(picture, "JPEG" if mode == "CMYK" else "PNG")
    whole = Image.open(io.BytesIO(data.getvalue()))
    expected = np.asarray(whole.convert("L" if mode in ("L", "LA", "1") else "RGB"))
    assert np.array_equal(read_photograph(data, 1 << 20).squeeze(), expected)


@STRIPS
@pytest.mark.parametrize("top", [0, 3, 300, 65_535])
def test_a_deep_picture_is_stretched_as_its_percentiles_say(
    strip_pixels: int, top: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "STRIP_PIXELS", strip_pixels)
    for seed in range(10):
        deep = np.random.default_rng(seed).integers(0, top + 1, (31 + seed, 17), dtype=np.uint16)
        low, high = np.percentile(deep.astype(np.int64), (0.5, 99.5))
        shares = np.clip((deep.astype(np.int64) - low) / max(high - low, 1), 0, 1)
        pixels = read_photograph(encoded(Image.fromarray(deep)), 1 << 20)
        assert np.array_equal(pixels[..., 0], np.rint(255 * shares).astype(np.uint8))


def shown(data: bytes | io.BytesIO) -> NDArray[np.uint8]:
    if isinstance(data, bytes):
        data = io.BytesIO(data)
    return read_photograph(data, CAP).squeeze()


def refusal_of(data: bytes | io.BytesIO, cap: int = CAP) -> Reason:
    if isinstance(data, bytes):
        data = io.BytesIO(data)
    with pytest.raises(Unusable) as refusal:
        read_photograph(data, cap)
    return refusal.value.reason


def stretched(values: NDArray[Any]) -> NDArray[np.uint8]:
    """The middle 99 % of values over 0..255."""
    low, high = np.percentile(values.astype(np.int64), (0.5, 99.5))
    return np.rint(255 * np.clip((values - low) / (high - low), 0, 1)).astype(np.uint8)


def tiff(pixels: NDArray[Any], order: str = "<", **tags: int | list[int]) -> bytes:
    """A plain TIFF in one strip, or one a plane, with tags set; an empty list takes one away."""
    height, width = pixels.shape[:2]
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    planes = samples if tags.get("t284") == 2 else 1
    if planes > 1:
        pixels = np.moveaxis(pixels, 2, 0)
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    step = len(data) // planes
    entries: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: [8 * pixels.dtype.itemsize] * samples,
        259: [1],
        262: [2 if samples >= 3 else 1],
        273: [8 + step * plane for plane in range(planes)],
        277: [samples],
        278: [height],
        279: [step] * planes,
        339: [{"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]] * samples,
    }
    for name, value in tags.items():
        entries[int(name[1:])] = value if isinstance(value, list) else [value]
    entries = {tag: numbers for tag, numbers in entries.items() if numbers}
    # the directory behind the pixels, and what does not fit into it behind that
    start = 8 + len(data) + len(data) % 2
    beyond = b""
    directory = struct.pack(order + "H", len(entries))
    for tag, numbers in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(packed) > 4:
            place = start + 2 + 12 * len(entries) + 4 + len(beyond)
            beyond += packed
            packed = struct.pack(order + "I", place)
        directory += struct.pack(order + "HHI", tag, 4, len(numbers)) + packed
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(order + "I", start)
    return head + data + bytes(len(data) % 2) + directory + bytes(4) + beyond


def png(pixels: NDArray[Any], kind: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of the pixels' own depth, with chunks before and after its data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width = pixels.shape[:2]
    depth = 8 * pixels.dtype.itemsize
    raw = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in pixels)
    body = [chunk(*one) for one in chunks]
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)),
            *body,
            chunk(b"IDAT", zlib.compress(raw)),
            chunk(b"IEND", b""),
        ]
    )


# formats

WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "TIFF": ("TIFF", {}),
    "TIFF, LZW": ("TIFF", {"compression": "tiff_lzw"}),
    "TIFF, deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "TIFF, pack bits": ("TIFF", {"compression": "packbits"}),
    "BigTIFF": ("TIFF", {"big_tiff": True}),
    "BMP": ("BMP", {}),
    "JP2": ("JPEG2000", {}),
    "JPEG 2000 codestream": ("JPEG2000", {"no_jp2": True}),
    "WebP": ("WEBP", {"lossless": True}),
    "PNG": ("PNG", {}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_each_format_shows_what_was_drawn(name: str) -> None:
    kind, options = WHOLE[name]
    assert np.array_equal(shown(encoded(Image.fromarray(COLOUR), kind, **options)), COLOUR)
    grey = shown(encoded(Image.fromarray(GREY), kind, **options))
    if kind == "WEBP":  # it knows no grey
        assert np.array_equal(grey, np.repeat(GREY[..., None], 3, axis=-1))
    else:
        assert np.array_equal(grey, GREY)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("WEBP", {}),
        ("TIFF", {"compression": "jpeg"}),
        ("JPEG2000", {"quality_layers": [8]}),
    ],
)
def test_lossy_formats_show_nearly_what_was_drawn(kind: str, options: dict[str, Any]) -> None:
    smooth = np.asarray(Image.fromarray(phantoms.fundus(2)).resize((64, 48)))
    seen = shown(encoded(Image.fromarray(smooth), kind, **options))
    assert np.abs(seen.astype(int) - smooth).mean() < 8


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000"])
def test_sixteen_bit_grey_is_stretched_in_every_format(kind: str) -> None:
    assert np.array_equal(shown(encoded(Image.fromarray(DEEP), kind)), stretched(DEEP))


def test_sixteen_bit_colours_keep_their_upper_eight_bits() -> None:
    deep = COLOUR.astype(np.uint16) * 256 + 77
    for data in (png(deep, 2), tiff(deep), tiff(deep, ">")):
        assert np.array_equal(shown(data), COLOUR)


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiffs_of_both_byte_orders_and_layouts(order: str) -> None:
    assert np.array_equal(shown(tiff(COLOUR, order)), COLOUR)
    assert np.array_equal(shown(tiff(COLOUR, order, t284=2)), COLOUR)
    assert np.array_equal(shown(tiff(GREY, order)), GREY)
    assert np.array_equal(shown(tiff(DEEP, order)), stretched(DEEP))


def test_a_tiff_whose_zero_is_white_is_inverted() -> None:
    assert np.array_equal(shown(tiff(GREY, t262=0)), 255 - GREY)
    difference = shown(tiff(DEEP, t262=0)).astype(int) + stretched(DEEP) - 255
    assert np.abs(difference).max() <= 1


def test_a_tiled_tiff_shows_what_was_drawn() -> None:
    pixels = np.zeros((32, 32), np.uint8)
    pixels[:24] = GREY
    tiles = np.concatenate([pixels[y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16)])
    size = {"t256": 32, "t257": 32, "t322": 16, "t323": 16}
    places = {"t324": [8, 264, 520, 776], "t325": [256] * 4}
    no_strips: dict[str, list[int]] = {"t273": [], "t278": [], "t279": []}
    tiled = tiff(tiles.reshape(64, 16), **size, **places, **no_strips)
    assert np.array_equal(shown(tiled), pixels)


def test_ink_of_adobes_jpegs_is_read_as_adobe_writes_it() -> None:
    ink = Image.fromarray(COLOUR).convert("CMYK")
    data = encoded(ink, "JPEG", quality=100, subsampling=0).getvalue()
    assert np.abs(shown(data).astype(int) - COLOUR).mean() < 2
    # without Adobe's mark nobody knows whether 0 is no ink
    place = data.index(b"\xff\xee")
    length = int.from_bytes(data[place + 2 : place + 4], "big")
    assert refusal_of(data[:place] + data[place + 2 + length :]) is Reason.UNSUPPORTED_PIXELS


def test_the_first_picture_of_a_cameras_jpeg_is_taken() -> None:
    picture = Image.fromarray(COLOUR)
    one = encoded(picture, "JPEG")
    two = encoded(picture, "MPO", save_all=True, append_images=[Image.fromarray(255 - COLOUR)])
    assert np.array_equal(shown(two), shown(one))


# what is refused

UNREAD: dict[str, tuple[Callable[[], bytes | io.BytesIO], Reason]] = {
    "a GIF": (lambda: encoded(Image.fromarray(COLOUR), "GIF"), Reason.UNREAD_FORMAT),
    "an AVIF": (lambda: encoded(Image.fromarray(COLOUR), "AVIF"), Reason.UNREAD_FORMAT),
    "a HEIC": (lambda: b"\0\0\0\x18ftypheic" + bytes(64), Reason.UNREAD_FORMAT),
    "a film": (lambda: b"\0\0\0\x18ftypisom" + bytes(64), Reason.UNREAD_FORMAT),
    "a text": (lambda: b"BM is a text and no bitmap, as its header says", Reason.UNKNOWN_FORMAT),
    "nothing": (lambda: b"", Reason.UNKNOWN_FORMAT),
    "an animated PNG": (lambda: film("PNG"), Reason.SEVERAL_PICTURES),
    "an animated WebP": (lambda: film("WEBP"), Reason.SEVERAL_PICTURES),
    "a TIFF of two pages": (lambda: film("TIFF"), Reason.SEVERAL_PICTURES),
    "a preview that stands for a raw image": (
        lambda: tiff(COLOUR, t254=1),
        Reason.SEVERAL_PICTURES,
    ),
    "a TIFF that holds other images": (lambda: tiff(COLOUR, t330=8), Reason.SEVERAL_PICTURES),
    "fractions": (lambda: tiff(GREY.astype(np.float32)), Reason.UNSUPPORTED_PIXELS),
    "negative values": (
        lambda: tiff(GREY.astype(np.int16) - 9),
        Reason.UNSUPPORTED_PIXELS,
    ),
    "17 bits": (lambda: tiff(GREY.astype(np.uint32) + (1 << 16)), Reason.UNSUPPORTED_PIXELS),
    "16-bit grey with alpha": (
        lambda: png(np.stack([DEEP, DEEP], axis=-1), 4),
        Reason.UNSUPPORTED_PIXELS,
    ),
    "16-bit colours in planes of their own": (
        lambda: tiff(COLOUR.astype(np.uint16), t284=2),
        Reason.UNSUPPORTED_PIXELS,
    ),
    "12-bit colours in 16 bits, PNG": (
        lambda: png(COLOUR.astype(np.uint16) * 16, 2),
        Reason.UNSUPPORTED_PIXELS,
    ),
    "12-bit colours in 16 bits, TIFF": (
        lambda: tiff(COLOUR.astype(np.uint16) * 16),
        Reason.UNSUPPORTED_PIXELS,
    ),
    "a codestream of another size than the file's": (
        lambda: exchange(encoded(Image.fromarray(COLOUR), "JPEG2000"), b"ihdr", 4, 25),
        Reason.UNDECODABLE,
    ),
}


def film(kind: str) -> io.BytesIO:
    """Two pictures in one file."""
    other = Image.fromarray(255 - COLOUR)
    return encoded(Image.fromarray(COLOUR), kind, save_all=True, append_images=[other])


def exchange(data: io.BytesIO, mark: bytes, behind: int, value: int) -> bytes:
    """A file with four bytes changed behind a mark."""
    raw = data.getvalue()
    place = raw.index(mark) + behind
    return raw[:place] + value.to_bytes(4, "big") + raw[place + 4 :]


@pytest.mark.parametrize("sentence", UNREAD)
def test_refused_is(sentence: str) -> None:
    make, reason = UNREAD[sentence]
    assert refusal_of(make()) is reason


HUGE: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: phantoms.hollow_png(60000, 60000),
    "JPEG": lambda: resized(encoded(Image.fromarray(COLOUR), "JPEG"), b"\xff\xc0", 5, ">HH"),
    "TIFF": lambda: tiff(GREY, t256=60000, t257=60000),
    "TIFF of one huge tile": lambda: tiff(GREY, t322=60000, t323=60000, t324=8, t325=768),
    "BMP": lambda: resized(encoded(Image.fromarray(COLOUR), "BMP"), b"BM", 18, "<II"),
    "JP2": lambda: exchange(
        encoded(Image.fromarray(COLOUR), "JPEG2000"), b"\xff\x4f\xff\x51", 8, 1 << 24
    ),
    "WebP": lambda: resized(
        encoded(Image.fromarray(COLOUR), "WEBP"), b"\x9d\x01\x2a", 3, "<HH", 16383
    ),
    "WebP, lossless": lambda: resized(
        encoded(Image.fromarray(COLOUR), "WEBP", lossless=True), b"\x2f", 1, "<I", (1 << 28) - 1
    ),
    "WebP, extended": lambda: b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6,
}


def resized(data: io.BytesIO, mark: bytes, behind: int, form: str, size: int = 60000) -> bytes:
    """A file whose header states another size behind a mark."""
    raw = data.getvalue()
    place = raw.index(mark) + behind
    stated = struct.pack(form, *([size] * (len(form) - 1)))
    return raw[:place] + stated + raw[place + len(stated) :]


@pytest.mark.parametrize("kind", HUGE)
def test_a_size_beyond_the_cap_is_refused_before_a_codec_is_asked(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = HUGE[kind]()
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("a codec was asked"))
    if kind.startswith(("WebP", "JP2")):
        # these allocate, or believe another place, as they open
        monkeypatch.setattr(stills, "_open", lambda *_: pytest.fail("the file was opened"))
    assert refusal_of(data, 1 << 28) is Reason.DECLARED_TOO_LARGE


@pytest.mark.parametrize(("mode", "size"), [("L", 1), ("P", 3), ("RGB", 3), ("RGBA", 4)])
def test_the_cap_counts_the_bytes_that_a_pixel_takes(mode: str, size: int) -> None:
    data = encoded(Image.fromarray(COLOUR).convert(mode)).getvalue()
    cap = 24 * 32 * size
    assert read_photograph(io.BytesIO(data), cap).shape[:2] == (24, 32)
    assert refusal_of(data, cap - 1) is Reason.DECLARED_TOO_LARGE


def test_a_format_is_known_by_content_and_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "photograph.png"
    path.write_bytes(encoded(Image.fromarray(phantoms.fundus(3, 32)), "TIFF").getvalue())
    assert read_file(str(path), SETTINGS).pixels.shape == (16, 16, 3)
    path.write_bytes(encoded(Image.fromarray(COLOUR), "GIF").getvalue())
    with pytest.raises(Unusable) as refusal:
        read_file(str(path), SETTINGS)
    assert refusal.value.reason is Reason.UNREAD_FORMAT
    assert kind_of(b"DICM" * 33) is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "JPEG2000", "WEBP"])
def test_any_bytes_are_a_picture_or_a_refusal(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    good = encoded(Image.fromarray(phantoms.fundus(3, 32)), kind).getvalue()
    path.write_bytes(good[: len(good) // 3])
    with pytest.raises(Unusable):
        read_file(str(path), SETTINGS)


# transparency


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG2000"])
def test_transparent_parts_lie_over_black(kind: str) -> None:
    alpha = np.arange(24 * 32).reshape(24, 32) % 256
    clear = np.dstack([COLOUR, alpha.astype(np.uint8)])
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    seen = shown(encoded(Image.fromarray(clear), kind, **options))
    assert np.abs(seen - COLOUR * (alpha[..., None] / 255)).max() <= 1
    assert not seen[alpha == 0].any()


def test_grey_with_alpha_stays_grey_over_black() -> None:
    alpha = np.full_like(GREY, 51)
    data = encoded(Image.fromarray(np.dstack([GREY, alpha]), "LA"))
    seen = shown(data)
    assert seen.shape == GREY.shape
    assert np.abs(seen - GREY / 5).max() <= 1


def test_the_one_clear_colour_of_a_png_is_black() -> None:
    colour = COLOUR[12, 16]
    where = (colour == COLOUR).all(axis=-1)
    for pixels in (COLOUR, COLOUR.astype(np.uint16) * 257):
        value = pixels[12, 16].astype(">u2").tobytes()
        seen = shown(png(pixels, 2, (b"tRNS", value)))
        assert np.array_equal(seen, np.where(where[..., None], 0, COLOUR))
    seen = shown(png(GREY, 0, (b"tRNS", int(GREY[12, 16]).to_bytes(2, "big"))))
    assert np.array_equal(seen, np.where(GREY[12, 16] == GREY, 0, GREY))
    palette = Image.fromarray(COLOUR).quantize(8)
    plain = np.asarray(palette.convert("RGB"))
    clear = np.asarray(palette) == 3
    seen = shown(encoded(palette, transparency=3))
    assert np.array_equal(seen, np.where(clear[..., None], 0, plain))


def test_the_clear_value_of_deep_grey_is_black_and_stretches_nothing() -> None:
    deep = DEEP.copy()
    deep[:10] = 65535
    seen = shown(png(deep, 0, (b"tRNS", b"\xff\xff")))
    assert not seen[:10].any()
    assert np.array_equal(seen[10:], stretched(DEEP[10:]))


# orientation

TURNED: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda scene: scene,
    2: np.fliplr,
    3: lambda scene: np.rot90(scene, 2),
    4: np.flipud,
    5: lambda scene: np.swapaxes(scene, 0, 1),
    6: lambda scene: np.rot90(scene, 1),
    7: lambda scene: np.rot90(np.swapaxes(scene, 0, 1), 2),
    8: lambda scene: np.rot90(scene, -1),
}


def oriented(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


@pytest.mark.parametrize("number", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "WebP", "TIFF", "TIFF, LZW", "JPEG"])
def test_a_camera_that_was_turned_gives_an_upright_picture(kind: str, number: int) -> None:
    # `TURNED` makes of the scene what the camera stored
    stored = np.ascontiguousarray(TURNED[number](COLOUR))
    name, options = WHOLE.get(kind, (kind, {"quality": 95, "subsampling": 0}))
    seen = shown(encoded(Image.fromarray(stored), name, exif=oriented(number), **options))
    assert seen.shape == COLOUR.shape
    if kind == "JPEG":
        assert np.abs(seen.astype(int) - COLOUR).mean() < 3
    else:
        assert np.array_equal(seen, COLOUR)


def test_of_exif_the_orientation_alone_counts() -> None:
    exif = oriented(6)
    plain = shown(encoded(Image.fromarray(COLOUR), "JPEG", exif=exif))
    exif[0x010E] = phantoms.MARKERS[4]  # a description, before the orientation
    exif[0x0128], exif[0x011A] = 2, 300.0  # 300 dots an inch, behind it
    noted = shown(encoded(Image.fromarray(COLOUR), "JPEG", exif=exif))
    assert plain.shape == (32, 24, 3)
    assert np.array_equal(noted, plain)


@pytest.mark.parametrize("big", [False, True])
def test_an_orientation_that_is_none_turns_nothing(big: bool) -> None:
    order = ">" if big else "<"
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(order + "IH", 8, 1)
    for number, upright in ((6, 6), (0, 1), (9, 1), (65535, 1)):
        entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, number, 0)
        assert read_orientation(head + entry) == upright
        assert read_orientation(b"Exif\0\0" + head + entry) == upright
    assert read_orientation(head + struct.pack(order + "HHII", 0x0112, 2, 1, 6)) == 1
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, 6, 0)
    assert read_orientation(head[:2] + b"  " + head[4:] + entry) == 1
    assert read_orientation(head) == 1


def test_any_bytes_have_an_orientation() -> None:
    rng = Random(1)
    good = oriented(8).tobytes()
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        assert read_orientation(bytes(data[: rng.randrange(len(data) + 1)])) in range(1, 9)
