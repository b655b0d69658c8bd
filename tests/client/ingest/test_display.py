"""client/ingest/window.py, lookup.py, palettes.py: exports that viewers show and readers get wrong.

Each picture equals what its attributes say, or is refused with a reason that names the attribute.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from client.ingest import lookup
from client.ingest.dicom import read_dicom
from client.ingest.lookup import look_up, read_segmented, read_table
from client.ingest.quarantine import Reason, Unusable
from tests import phantoms

CAP = 1 << 22
SIDE = 32
EIGHT = np.arange(SIDE * SIDE, dtype=np.uint32).reshape(SIDE, SIDE).astype(np.uint8)
TWELVE = (4 * np.arange(SIDE * SIDE, dtype=np.uint32)).reshape(SIDE, SIDE).astype(np.uint16)
SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)


def grey(pixels: NDArray[Any] = EIGHT, bits: int = 8, *, syntax: UID = SYNTAXES[0]) -> Dataset:
    return phantoms.with_pixels(phantoms.header("DX", syntax=syntax), pixels, "MONOCHROME2", bits)


def shown(dataset: Dataset, tmp_path: Path) -> NDArray[np.uint8]:
    path = phantoms.save(dataset, tmp_path / "case.dcm")
    with open(path, "rb") as file:
        return read_dicom(file, ("OP", "DX"), None, CAP).pixels.squeeze()


def refusal_of(dataset: Dataset, tmp_path: Path) -> Reason:
    with pytest.raises(Unusable) as refusal:
        shown(dataset, tmp_path)
    return refusal.value.reason


def shares(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)


def linear(values: NDArray[Any], center: float, width: float) -> NDArray[np.uint8]:
    """A window by the formula of LINEAR."""
    return shares((values.astype(float) - (center - 0.5)) / (width - 1) + 0.5)


def table(
    descriptor: list[int], data: bytes | list[int], *, big: bool = False, vr: str = "OW"
) -> Dataset:
    """One item of a LUT sequence; raw data in words, as the byte order has them."""
    if isinstance(data, bytes) and big:
        data = np.frombuffer(data + b"\0" * (len(data) % 2), "<u2").astype(">u2").tobytes()
    item = Dataset()
    item.LUTDescriptor, item.LUTData = descriptor, data
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", vr
    return item


# windows


@pytest.mark.parametrize("width", ["0", "0.5", "-40"])
def test_a_window_narrower_than_one_is_ignored(width: str, tmp_path: Path) -> None:
    dataset = grey()
    dataset.WindowCenter, dataset.WindowWidth = "40", width
    assert np.array_equal(shown(dataset, tmp_path), EIGHT)


def test_a_window_of_width_one_is_a_threshold(tmp_path: Path) -> None:
    dataset = grey()
    dataset.WindowCenter, dataset.WindowWidth = "41", "1"
    assert np.array_equal(shown(dataset, tmp_path), np.where(EIGHT > 40, 255, 0))


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_other_functions_take_widths_below_one(function: str, tmp_path: Path) -> None:
    dataset = grey()
    dataset.RescaleSlope, dataset.RescaleIntercept = "0.001", "0"
    dataset.WindowCenter, dataset.WindowWidth = "0.1", "0.08"
    dataset.VOILUTFunction = function
    values = EIGHT * 0.001
    exact = (values - 0.1) / 0.08 + 0.5
    sigmoid = 1 / (1 + np.exp(-4 * (values - 0.1) / 0.08))
    expected = shares(exact if function == "LINEAR_EXACT" else sigmoid)
    assert np.array_equal(shown(dataset, tmp_path), expected)
    dataset.WindowWidth = "0"
    assert np.array_equal(shown(dataset, tmp_path), EIGHT)


def test_of_several_windows_the_first_valid_one_is_taken(tmp_path: Path) -> None:
    dataset = grey()
    dataset.WindowCenter, dataset.WindowWidth = ["5", "100", "90"], ["0", "80", "20"]
    assert np.array_equal(shown(dataset, tmp_path), linear(EIGHT, 100, 80))


def test_an_unknown_function_is_linear(tmp_path: Path) -> None:
    dataset = grey()
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = "100", "80", "CURVED"
    assert np.array_equal(shown(dataset, tmp_path), linear(EIGHT, 100, 80))


# polarity


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("shape", [None, "", "IDENTITY", "INVERSE", "BENT"])
def test_the_presentation_shape_decides_polarity_before_the_photometric_interpretation(
    shape: str | None, photometric: str, tmp_path: Path
) -> None:
    dataset = grey()
    dataset.PhotometricInterpretation = photometric
    if shape is not None:
        dataset.PresentationLUTShape = shape
    inverted = photometric == "MONOCHROME1"
    if shape in ("IDENTITY", "INVERSE"):
        inverted = shape == "INVERSE"
    expected = 255 - EIGHT if inverted else EIGHT
    assert np.array_equal(shown(dataset, tmp_path), expected)


# lookup tables

CURVE = np.rint(255 * (np.arange(256) / 255) ** 2).astype(np.uint8)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
@pytest.mark.parametrize("entries", [256, 255])
def test_eight_bit_entries_stand_one_a_byte(entries: int, syntax: UID, tmp_path: Path) -> None:
    dataset = grey(syntax=syntax)
    data = CURVE[:entries].tobytes() + b"\0" * (entries % 2)
    big = syntax == ExplicitVRBigEndian
    dataset.VOILUTSequence = Sequence([table([entries, 0, 8], data, big=big)])
    expected = CURVE[np.minimum(EIGHT, entries - 1)]
    assert np.array_equal(shown(dataset, tmp_path), expected)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
@pytest.mark.parametrize("depth", [8, 16])
def test_entries_that_stand_one_a_word_are_words(depth: int, syntax: UID, tmp_path: Path) -> None:
    dataset = grey(syntax=syntax)
    words = CURVE.astype("<u2") * (257 if depth == 16 else 1)
    big = syntax == ExplicitVRBigEndian
    dataset.VOILUTSequence = Sequence([table([256, 0, depth], words.tobytes(), big=big)])
    assert np.array_equal(shown(dataset, tmp_path), CURVE[EIGHT])


@pytest.mark.parametrize("stated", [8, 10, 16, 0, 300])
def test_a_depth_that_the_entries_contradict_is_that_of_the_entries(
    stated: int, tmp_path: Path
) -> None:
    dataset = grey()
    entries = np.rint(np.arange(256) * 4095 / 255).astype("<u2")
    dataset.VOILUTSequence = Sequence([table([256, 0, stated], entries.tobytes())])
    assert np.array_equal(shown(dataset, tmp_path), EIGHT)


def test_the_first_voi_table_that_has_entries_is_taken(tmp_path: Path) -> None:
    dataset = grey()
    full = table([256, 0, 8], CURVE.tobytes())
    dataset.VOILUTSequence = Sequence([table([256, 0, 8], b""), full])
    assert np.array_equal(shown(dataset, tmp_path), CURVE[EIGHT])
    # without any, the window
    dataset.VOILUTSequence = Sequence([table([256, 0, 8], b"")])
    dataset.WindowCenter, dataset.WindowWidth = "100", "80"
    assert np.array_equal(shown(dataset, tmp_path), linear(EIGHT, 100, 80))


def test_entries_that_no_pixel_needs_may_be_missing(tmp_path: Path) -> None:
    # a length of 0 stands for 65,536 entries; twelve bits need 4,096 of them
    entries = np.arange(4096).astype("<u2") << 4
    dataset = grey(TWELVE, 12)
    dataset.VOILUTSequence = Sequence([table([0, 0, 16], entries.tobytes())])
    assert np.array_equal(shown(dataset, tmp_path), shares((TWELVE << 4) / 65535))
    dataset.VOILUTSequence = Sequence([table([4096, 0, 16], entries[:2000].tobytes())])
    assert refusal_of(dataset, tmp_path) is Reason.LOOKUP_TABLE


@pytest.mark.parametrize("data", [b"", b"\1"])
def test_a_modality_table_without_its_entries_is_refused(data: bytes, tmp_path: Path) -> None:
    dataset = grey()
    dataset.ModalityLUTSequence = Sequence([table([256, 0, 16], data)])
    assert refusal_of(dataset, tmp_path) is Reason.LOOKUP_TABLE


def test_the_first_value_is_signed_where_values_can_be_negative(tmp_path: Path) -> None:
    dataset = grey(EIGHT.astype(np.int16) - 128, 12)
    dataset.VOILUTSequence = Sequence([table([256, 65536 - 128, 8], CURVE.tobytes())])
    assert np.array_equal(shown(dataset, tmp_path), CURVE[EIGHT])
    # unsigned values of a rescaled image can be negative as well
    dataset = grey()
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-128"
    dataset.VOILUTSequence = Sequence([table([256, 65536 - 128, 8], CURVE.tobytes())])
    assert np.array_equal(shown(dataset, tmp_path), CURVE[EIGHT])
    # and those of others are large
    values = EIGHT.astype(np.uint16) + 40000
    dataset = grey(values, 16)
    dataset.VOILUTSequence = Sequence([table([256, 40000, 8], CURVE.tobytes())])
    assert np.array_equal(shown(dataset, tmp_path), CURVE[EIGHT])


# rescale, frames, padding


def test_a_slope_of_zero_is_refused_and_named(tmp_path: Path) -> None:
    dataset = grey()
    dataset.RescaleSlope, dataset.RescaleIntercept = "0", "5"
    reason = refusal_of(dataset, tmp_path)
    assert reason is Reason.RESCALE
    assert "RescaleSlope is 0" in reason.sentence


@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept"])
@pytest.mark.parametrize("value", ["nan", "inf", "1e308"])
def test_a_slope_or_intercept_that_is_no_finite_number_is_refused(
    name: str, value: str, tmp_path: Path
) -> None:
    dataset = grey()
    dataset.RescaleSlope, dataset.RescaleIntercept = "2", "0"
    placed = dataset[name]
    path = phantoms.save(dataset, tmp_path / "plain.dcm")
    data = path.read_bytes()
    # written into the file, since no data set takes such a value
    tag = placed.tag.elem.to_bytes(2, "little") + b"DS"
    place = data.index(b"\x28\x00" + tag)
    text = value.encode().ljust(6)
    length = int.from_bytes(data[place + 6 : place + 8], "little")
    head = data[: place + 6] + len(text).to_bytes(2, "little") + text
    with pytest.raises(Unusable) as refusal:
        read_dicom(io.BytesIO(head + data[place + 8 + length :]), ("DX",), None, CAP)
    assert refusal.value.reason is Reason.RESCALE


@pytest.mark.parametrize("frames", [0, None, "1"])
def test_no_frames_are_one_frame(frames: int | str | None, tmp_path: Path) -> None:
    dataset = grey()
    dataset.NumberOfFrames = frames
    assert np.array_equal(shown(dataset, tmp_path), EIGHT)


def test_fewer_frames_than_none_are_refused(tmp_path: Path) -> None:
    dataset = grey()
    dataset.NumberOfFrames = -1
    assert refusal_of(dataset, tmp_path) is Reason.NO_SIZE


@pytest.mark.parametrize(
    ("pixels", "padding", "vr"),
    [
        # a negative value in an image without a sign, and the other way round
        (np.where(TWELVE < 800, 63536, TWELVE).astype(np.uint16), -2000, "SS"),
        (np.where(TWELVE < 800, -2000, TWELVE).astype(np.int16), 63536, "US"),
    ],
)
def test_padding_with_the_other_sign_is_padding(
    pixels: NDArray[Any], padding: int, vr: str, tmp_path: Path
) -> None:
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        dataset = grey(pixels, 16)
        dataset.PhotometricInterpretation = photometric
        dataset.add_new("PixelPaddingValue", vr, padding)
        dataset.WindowCenter, dataset.WindowWidth = "2048", "4096"
        seen = linear(TWELVE, 2048, 4096).astype(int)
        if photometric == "MONOCHROME1":
            seen = 255 - seen
        expected = np.where(TWELVE < 800, 0, seen)
        assert np.abs(shown(dataset, tmp_path).astype(int) - expected).max() <= 1


def test_padding_beyond_the_stored_bits_is_padding(tmp_path: Path) -> None:
    pixels = np.where(TWELVE < 800, 0x8000, TWELVE).astype(np.uint16)
    dataset = grey(pixels, 12)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.add_new("PixelPaddingValue", "US", 0x8000)
    dataset.WindowCenter, dataset.WindowWidth = "2048", "4096"
    expected = np.where(TWELVE < 800, 0, 255 - linear(TWELVE, 2048, 4096).astype(int))
    assert np.abs(shown(dataset, tmp_path).astype(int) - expected).max() <= 1


def test_a_range_of_padding_is_padding_in_either_order(tmp_path: Path) -> None:
    for first, limit in ((0, 799), (799, 0)):
        dataset = grey(TWELVE, 12)
        dataset.PhotometricInterpretation = "MONOCHROME1"
        dataset.add_new("PixelPaddingValue", "US", first)
        dataset.add_new("PixelPaddingRangeLimit", "US", limit)
        seen = shown(dataset, tmp_path)
        assert not seen[TWELVE < 800].any()
        assert seen[TWELVE == 800].min() > 250


def test_padding_that_no_pixel_can_have_changes_nothing(tmp_path: Path) -> None:
    dataset = grey()
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    assert np.array_equal(shown(dataset, tmp_path), EIGHT)


# palettes

RAMPS = np.stack([np.arange(256), np.arange(256)[::-1], np.arange(256) // 2]).astype(np.uint8)


def palette(
    pixels: NDArray[Any],
    descriptor: list[int],
    tables: list[bytes],
    *,
    syntax: UID = SYNTAXES[0],
    kind: str = "",
) -> Dataset:
    """A palette image; `kind`: nothing, or Segmented."""
    header = phantoms.header("OP", syntax=syntax)
    dataset = phantoms.with_pixels(header, pixels, "PALETTE COLOR")
    for name, data in zip(("Red", "Green", "Blue"), tables, strict=True):
        plain = f"{name}PaletteColorLookupTable"
        if syntax == ExplicitVRBigEndian:
            data = np.frombuffer(data, "<u2").astype(">u2").tobytes()
        dataset.add_new(f"{plain}Descriptor", "US", descriptor)
        dataset.add_new(f"{kind}{plain}Data", "OW", data)
    return dataset


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
@pytest.mark.parametrize("width", ["bytes", "words", "deep", "words that are called deep"])
def test_palettes_of_all_depths_give_their_colours(width: str, syntax: UID, tmp_path: Path) -> None:
    words = RAMPS.astype("<u2") * (257 if width == "deep" else 1)
    tables = [row.tobytes() for row in (RAMPS if width == "bytes" else words)]
    depth = 8 if width in ("bytes", "words") else 16
    dataset = palette(EIGHT, [256, 0, depth], tables, syntax=syntax)
    assert np.array_equal(shown(dataset, tmp_path), np.moveaxis(RAMPS[:, EIGHT], 0, -1))


def test_a_dark_part_of_a_deep_palette_stays_dark(tmp_path: Path) -> None:
    # no pixel has a colour above 255 of 65,535; the palette has
    tables = [(np.arange(256) * 257).astype("<u2").tobytes()] * 3
    dataset = palette(np.minimum(EIGHT, 1), [256, 0, 16], tables)
    assert shown(dataset, tmp_path).max() == 1


def test_sixteen_bit_values_look_up_eight_bit_colours(tmp_path: Path) -> None:
    pixels = (TWELVE >> 2) + 700
    lots = np.stack([np.arange(1024) // 4, np.arange(1024) % 256, 255 - np.arange(1024) // 4])
    tables = [row.astype(np.uint8).tobytes() for row in lots]
    dataset = palette(pixels.astype(np.uint16), [1024, 700, 8], tables)
    expected = np.moveaxis(lots[:, TWELVE >> 2], 0, -1)
    assert np.array_equal(shown(dataset, tmp_path), expected)
    # values below the first entry have its colour, values above the last the last one's
    dataset = palette(pixels.astype(np.uint16), [256, 900, 8], [t[:256] for t in tables])
    expected = np.moveaxis(lots[:, np.clip((TWELVE >> 2) - 200.0, 0, 255).astype(int)], 0, -1)
    assert np.array_equal(shown(dataset, tmp_path), expected)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
@pytest.mark.parametrize("depth", [8, 16])
def test_segmented_palettes_give_their_colours(depth: int, syntax: UID, tmp_path: Path) -> None:
    scale = 257 if depth == 16 else 1
    kind = "<u2" if depth == 16 else "u1"
    # 2 entries as they are, a line of 126 more, then both once more; the offset is in bytes
    head = [0, 2, 0, scale, 1, 126, 127 * scale]
    again = [2, 2, 0, 0] if depth == 16 else [2, 2, 0, 0, 0, 0]
    data = np.array(head + again, kind).tobytes()
    data += b"\0" * (len(data) % 2)
    dataset = palette(EIGHT, [256, 0, depth], [data] * 3, syntax=syntax, kind="Segmented")
    expected = np.repeat((EIGHT % 128)[..., None], 3, axis=-1)
    assert np.array_equal(shown(dataset, tmp_path), expected)


BROKEN: dict[str, Callable[[Dataset], None]] = {
    "a colour is missing": lambda d: d.__delattr__("GreenPaletteColorLookupTableData"),
    "a table is short": lambda d: setattr(d, "BluePaletteColorLookupTableData", bytes(20)),
    "a descriptor is missing": lambda d: d.__delattr__("RedPaletteColorLookupTableDescriptor"),
    "a descriptor has two numbers": lambda d: setattr(
        d, "RedPaletteColorLookupTableDescriptor", [256, 0]
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_palette_is_refused_when(fault: str, tmp_path: Path) -> None:
    dataset = palette(EIGHT, [256, 0, 8], [row.tobytes() for row in RAMPS])
    BROKEN[fault](dataset)
    assert refusal_of(dataset, tmp_path) is Reason.LOOKUP_TABLE


@pytest.mark.parametrize(
    "segments",
    [
        [1, 5, 200],  # a line from nowhere
        [0, 1, 7, 2, 1, 4, 0],  # a pointer to a pointer, at byte 4 of words
        [9, 1, 1],  # an unknown kind
        [0, 1, 7, 1, 5],  # a line to nowhere
        [0, 1, 7, 2, 1, 999, 0],  # a pointer beyond the end
    ],
)
def test_segments_that_mean_nothing_are_refused(segments: list[int]) -> None:
    with pytest.raises(Unusable) as refusal:
        read_segmented([256, 0, 16], np.array(segments, "<u2").tobytes(), swapped=False)
    assert refusal.value.reason is Reason.LOOKUP_TABLE


@pytest.mark.parametrize(
    ("segments", "most"),
    [
        # one entry, then a thousand long lines
        ([0, 1, 7, *([1, 65535, 9] * 1000)], 2),
        # 51 short ones, of which all but the first are pointed to
        ([0, 1, 7, *([1, 4, 9] * 50), *([2, 65535, 6, 0] * 1000)], 65),
    ],
)
def test_a_segmented_table_never_grows_beyond_what_it_declares(
    segments: list[int], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expanded = []
    expand_one = lookup._expand_one
    monkeypatch.setattr(lookup, "_expand_one", lambda *a: expanded.append(1) or expand_one(*a))
    data = np.array(segments, "<u2").tobytes()
    assert len(read_segmented([256, 0, 16], data, swapped=False).entries) == 256
    assert len(expanded) <= most


def test_any_bytes_are_a_table_or_a_refusal() -> None:
    rng = Random(5)
    values = np.arange(-300, 300)
    outcomes = set()
    for _ in range(600):
        descriptor = [rng.choice([0, 1, 3, 255, 256, 65535, -1]) for _ in range(3)]
        data = rng.randbytes(rng.choice([0, 1, 2, 7, 255, 256, 512]))
        read = rng.choice([read_table, read_segmented])
        try:
            found = look_up(read(descriptor, data, swapped=rng.random() < 0.3), values)
            assert found.shape == values.shape
            outcomes.add(None)
        except Unusable as refusal:
            outcomes.add(refusal.reason)
    assert outcomes == {None, Reason.LOOKUP_TABLE}
