"""client/ingest/dicom.py: what is shown equals known truth, and every refusal has its reason."""

from __future__ import annotations

import io
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import Decoder
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from client.ingest import dicom, images
from client.ingest.dicom import DicomImage, read_dicom
from client.ingest.dicom_header import check_size, read_header
from client.ingest.files import open_regular
from client.ingest.quarantine import Reason, Unusable
from tests import phantoms

CAP = 1 << 24


def shown(
    dataset: Dataset, tmp_path: Path, window: tuple[float, float] | None = None, cap: int = CAP
) -> DicomImage:
    path = phantoms.save(dataset, tmp_path / "case.dcm")
    with open(path, "rb") as file:
        return read_dicom(file, ("OP", "CR", "DX", "MR"), window, cap)


def stretched(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    return np.rint(255 * np.clip((values.astype(float) - low) / (high - low), 0, 1)).astype(
        np.uint8
    )


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ],
    ids=lambda uid: uid.name,
)
@pytest.mark.parametrize("deep", [False, True], ids=["colour", "grey16"])
def test_native_transfer_syntaxes_show_the_same_pixels(
    syntax: Any, deep: bool, tmp_path: Path
) -> None:
    if deep:
        pixels = phantoms.grey(1, bits=12)
        image = shown(
            phantoms.with_pixels(phantoms.header("MR", syntax=syntax), pixels, "MONOCHROME2", 12),
            tmp_path,
            (0, 4095),
        )
        assert np.array_equal(image.pixels[..., 0], stretched(pixels, 0, 4095))
    else:
        pixels = phantoms.fundus(1, 64)
        image = shown(
            phantoms.with_pixels(phantoms.header("OP", syntax=syntax), pixels, "RGB"), tmp_path
        )
        assert np.array_equal(image.pixels, pixels)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=lambda uid: uid.name)
@pytest.mark.parametrize("deep", [False, True], ids=["colour", "grey16"])
def test_lossless_compression_shows_the_same_pixels(
    syntax: Any, deep: bool, tmp_path: Path
) -> None:
    pixels = phantoms.grey(2, bits=12) if deep else phantoms.fundus(2, 64)
    plain = phantoms.with_pixels(
        phantoms.header("MR"), pixels, "MONOCHROME2" if deep else "RGB", bits=12 if deep else 8
    )
    if syntax == JPEG2000Lossless and not deep:
        plain.PhotometricInterpretation = "RGB"
    image = shown(phantoms.compressed(plain, syntax), tmp_path, (0, 4095) if deep else None)
    assert np.array_equal(image.pixels.squeeze(), stretched(pixels, 0, 4095) if deep else pixels)


def test_jpeg_baseline_bytes_show_the_colours_of_the_jpeg(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(phantoms.fundus(3)).save(buffer, "JPEG", quality=92)
    dataset = phantoms.with_pixels(phantoms.header("OP"), phantoms.fundus(3), "RGB")
    phantoms.encapsulated(dataset, buffer.getvalue(), JPEGBaseline8Bit, "YBR_FULL_422")
    expected = np.asarray(Image.open(buffer)).astype(int)
    assert np.abs(shown(dataset, tmp_path).pixels - expected).mean() < 1.0


@pytest.mark.parametrize(("rows", "columns"), [(65, 64), (64, 4096)])
def test_a_compressed_image_of_another_size_is_not_decoded(
    rows: int, columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (columns, rows), "red").save(buffer, "JPEG")
    dataset = phantoms.with_pixels(phantoms.header("OP"), phantoms.fundus(3), "RGB")
    phantoms.encapsulated(dataset, buffer.getvalue(), JPEGBaseline8Bit, "YBR_FULL_422")
    monkeypatch.setattr(Decoder, "as_array", lambda *_, **__: pytest.fail("a codec was asked"))
    with pytest.raises(Unusable) as refusal:
        shown(dataset, tmp_path)
    assert refusal.value.reason is Reason.UNDECODABLE


@pytest.mark.parametrize("strip_pixels", [1, 300])
@pytest.mark.parametrize("kind", ["grey8", "grey16", "RGB", "YBR_FULL"])
def test_strips_show_what_a_whole_image_shows(
    kind: str, strip_pixels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind.startswith("grey"):
        bits = int(kind[4:])
        header = phantoms.header("DX")
        dataset = phantoms.with_pixels(header, phantoms.grey(4, bits=bits), "MONOCHROME2")
    else:
        dataset = phantoms.with_pixels(phantoms.header("OP"), phantoms.fundus(4), kind)
    whole = shown(dataset, tmp_path).pixels
    monkeypatch.setattr(images, "STRIP_PIXELS", strip_pixels)
    assert np.array_equal(shown(dataset, tmp_path).pixels, whole)


def test_monochrome1_is_the_inverse_of_monochrome2(tmp_path: Path) -> None:
    one, two = (
        shown(
            phantoms.with_pixels(phantoms.header("DX"), phantoms.grey(4), kind, 12),
            tmp_path,
            (0, 4095),
        ).pixels.astype(int)
        for kind in ("MONOCHROME1", "MONOCHROME2")
    )
    assert np.abs(one + two - 255).max() <= 1


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_rescale_then_the_files_window(bits: int, signed: bool, tmp_path: Path) -> None:
    pixels = phantoms.grey(5, bits=bits, signed=signed)
    dataset = phantoms.with_pixels(phantoms.header("MR"), pixels, "MONOCHROME2", bits)
    dataset.RescaleSlope, dataset.RescaleIntercept = "2", "-100"
    centre, width = float(2 * pixels.astype(float).mean() - 100), float(1 << bits)
    dataset.WindowCenter, dataset.WindowWidth = f"{centre:.6g}", f"{width:.6g}"
    centre = float(dataset.WindowCenter)
    expected = np.clip((2.0 * pixels - 100 - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    assert np.array_equal(
        shown(dataset, tmp_path).pixels[..., 0], np.rint(255 * expected).astype(np.uint8)
    )


def test_the_studys_window_comes_before_the_files(tmp_path: Path) -> None:
    pixels = phantoms.grey(6)
    dataset = phantoms.with_pixels(phantoms.header("MR"), pixels, "MONOCHROME2", 12)
    dataset.WindowCenter, dataset.WindowWidth = "40", "80"
    assert np.array_equal(
        shown(dataset, tmp_path, (500, 2500)).pixels[..., 0], stretched(pixels, 500, 2500)
    )


def test_deep_images_without_a_window_use_their_middle_99_percent(tmp_path: Path) -> None:
    pixels = phantoms.grey(7, bits=16)
    pixels[0, 0] = 65535
    image = shown(
        phantoms.with_pixels(phantoms.header("CR"), pixels, "MONOCHROME2"), tmp_path
    ).pixels[..., 0]
    expected = stretched(pixels, *np.percentile(pixels, (0.5, 99.5)))
    assert np.abs(image.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("source", ["the study", "the file", "eight bits", "nothing"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_values_are_counted_only_where_the_display_depends_on_it(
    source: str, padded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = 8 if source == "eight bits" else 12
    dataset = phantoms.with_pixels(
        phantoms.header("DX"), phantoms.grey(8, bits=bits), "MONOCHROME2", bits
    )
    if source == "the file":
        dataset.WindowCenter, dataset.WindowWidth = "1000", "900"
    if padded:
        dataset.PixelPaddingValue = 0
        dataset["PixelPaddingValue"].VR = "US"
    window = (0.0, 3000.0) if source == "the study" else None
    counted = []
    count = dicom.count_values
    monkeypatch.setattr(dicom, "count_values", lambda raw: counted.append(1) or count(raw))
    found = shown(dataset, tmp_path, window).pixels
    assert bool(counted) == (padded or source == "nothing")
    # counting never changes the picture
    monkeypatch.setattr(dicom, "_counts_for", lambda _, raw, *__: count(raw))
    assert np.array_equal(shown(dataset, tmp_path, window).pixels, found)


def test_a_voi_lut_is_applied(tmp_path: Path) -> None:
    dataset = phantoms.with_pixels(phantoms.header("DX"), phantoms.grey(8, bits=8), "MONOCHROME2")
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 16], [65535 - 257 * i for i in range(256)]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    dataset.VOILUTSequence = Sequence([table])
    assert np.array_equal(shown(dataset, tmp_path).pixels[..., 0], 255 - phantoms.grey(8, bits=8))


def test_padding_is_black_and_does_not_stretch_the_window(tmp_path: Path) -> None:
    pixels = phantoms.grey(9, bits=12, signed=True)
    pixels[:20] = -2000
    dataset = phantoms.with_pixels(phantoms.header("MR"), pixels, "MONOCHROME1", 12)
    dataset.PixelPaddingValue = -2000
    dataset["PixelPaddingValue"].VR = "SS"
    image = shown(dataset, tmp_path).pixels[..., 0]
    assert not image[:20].any()
    assert image[20:].max() == 255


def test_palettes_become_colour(tmp_path: Path) -> None:
    index = phantoms.grey(10, bits=8)
    dataset = phantoms.with_pixels(phantoms.header("OP"), index, "PALETTE COLOR")
    levels = np.arange(256, dtype="<u2")
    for name, table in (("Red", levels), ("Green", levels[::-1]), ("Blue", levels // 2)):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        dataset[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(
            dataset, f"{name}PaletteColorLookupTableData", (table * 257).astype("<u2").tobytes()
        )
    assert np.array_equal(
        shown(dataset, tmp_path).pixels, np.stack([index, 255 - index, index // 2], axis=-1)
    )


def test_ybr_full_becomes_rgb(tmp_path: Path) -> None:
    pixels = phantoms.fundus(11, 64)
    ybr = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
    image = shown(phantoms.with_pixels(phantoms.header("OP"), ybr, "YBR_FULL"), tmp_path)
    assert np.abs(image.pixels.astype(int) - pixels).max() <= 3


def test_of_many_frames_the_middle_one_is_taken(tmp_path: Path) -> None:
    frames = np.stack([phantoms.grey(i, bits=8) for i in range(5)])
    image = shown(
        phantoms.with_pixels(phantoms.header("MR"), frames, "MONOCHROME2", frames=5), tmp_path
    )
    assert np.array_equal(image.pixels[..., 0], frames[2])


def test_identity_and_side_are_read_and_nothing_else(tmp_path: Path) -> None:
    dataset = phantoms.with_pixels(phantoms.header("OP", " 0042 "), phantoms.fundus(12), "RGB")
    dataset.IssuerOfPatientID, dataset.ImageLaterality = "CLINIC", "L"
    image = shown(dataset, tmp_path)
    assert (image.patient_id.strip(), image.issuer, image.laterality) == ("0042", "CLINIC", 1)


def without(name: str) -> Callable[[Dataset], None]:
    return lambda dataset: delattr(dataset, name)


def setting(**values: Any) -> Callable[[Dataset], None]:
    return lambda dataset: (
        [setattr(dataset, name, value) for name, value in values.items()] and None
    )


REFUSALS: dict[str, tuple[Callable[[Dataset], None], Reason]] = {
    "pixels are missing": (without("PixelData"), Reason.NOT_AN_IMAGE),
    "rows are missing": (without("Rows"), Reason.NOT_AN_IMAGE),
    "the modality is another": (setting(Modality="US"), Reason.WRONG_MODALITY),
    "the modality is missing": (without("Modality"), Reason.WRONG_MODALITY),
    "text is admitted": (setting(BurnedInAnnotation="YES"), Reason.BURNED_IN_TEXT),
    "it is a screen shot": (
        setting(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]),
        Reason.BURNED_IN_TEXT,
    ),
    "it is secondary and says nothing of text": (
        setting(ImageType=["DERIVED", "SECONDARY"]),
        Reason.DERIVED,
    ),
    "the photometric interpretation is unknown": (
        setting(PhotometricInterpretation="HSV"),
        Reason.PHOTOMETRIC,
    ),
    "samples contradict colour": (setting(SamplesPerPixel=1), Reason.SAMPLES),
    "32 bits": (setting(BitsAllocated=32), Reason.BITS),
    "one bit": (setting(BitsAllocated=1, BitsStored=1, HighBit=0), Reason.BITS),
    "high bit elsewhere": (setting(HighBit=6), Reason.HIGH_BIT),
    "46341 x 65535 declared": (setting(Rows=46341, Columns=65535), Reason.DECLARED_TOO_LARGE),
    "a billion frames declared": (setting(NumberOfFrames=10**9), Reason.DECLARED_TOO_LARGE),
    "no rows": (setting(Rows=0), Reason.NO_SIZE),
    "it holds two frames": (setting(NumberOfFrames=2), Reason.SEVERAL_FRAMES),
    "more rows than bytes": (setting(Rows=200), Reason.TRUNCATED),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_when(case: str, tmp_path: Path) -> None:
    change, reason = REFUSALS[case]
    dataset = phantoms.with_pixels(phantoms.header("OP"), phantoms.fundus(13), "RGB")
    change(dataset)
    with pytest.raises(Unusable) as refusal:
        shown(dataset, tmp_path)
    assert refusal.value.reason is reason


def test_secondary_images_that_deny_text_are_read(tmp_path: Path) -> None:
    dataset = phantoms.with_pixels(phantoms.header("OP"), phantoms.fundus(13), "RGB")
    dataset.ImageType, dataset.BurnedInAnnotation = ["DERIVED", "SECONDARY"], "NO"
    assert shown(dataset, tmp_path).pixels.shape == (128, 128, 3)


def test_a_deflate_bomb_is_refused_before_it_inflates(tmp_path: Path) -> None:
    path = phantoms.save(
        phantoms.header("OP", syntax=DeflatedExplicitVRLittleEndian), tmp_path / "bomb.dcm"
    )
    data = path.read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(data[:start] + squeezer.compress(bytes(64 << 20)) + squeezer.flush())
    assert path.stat().st_size < 1 << 17
    with open(path, "rb") as file, pytest.raises(Unusable) as refusal:
        read_dicom(file, ("OP",), None, CAP)
    assert refusal.value.reason is Reason.DECLARED_TOO_LARGE


def test_deep_nesting_is_refused_or_skipped(tmp_path: Path) -> None:
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    sequence = b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff"
    path = phantoms.save(phantoms.header("OP"), tmp_path / "deep.dcm")
    data = path.read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    path.write_bytes(data[:start] + (sequence + item) * 5000 + data[start:])
    with open(path, "rb") as file, pytest.raises(Unusable):
        read_dicom(file, ("OP",), None, CAP)


def test_a_refusal_quotes_nothing_of_the_file(tmp_path: Path) -> None:
    for change, _ in REFUSALS.values():
        dataset = phantoms.with_pixels(phantoms.header("OP"), phantoms.fundus(13), "RGB")
        change(dataset)
        with pytest.raises(Unusable) as refusal:
            shown(dataset, tmp_path)
        assert not any(marker in str(refusal.value) for marker in phantoms.MARKERS)


def test_a_length_beyond_the_end_of_the_file_takes_no_memory(tmp_path: Path) -> None:
    path = phantoms.write_fundus(tmp_path / "a.dcm", "P-1", phantoms.fundus(1, 16))
    whole = path.read_bytes()
    # PixelData, explicit VR: tag, OB, two reserved bytes, length
    place = whole.index(b"\xe0\x7f\x10\x00OB") + 8
    path.write_bytes(whole[:place] + (0x7FFFFFF0).to_bytes(4, "little") + whole[place + 4 :])
    tracemalloc.start()
    try:
        with open_regular(str(path), 1 << 20) as file:
            # the pixels that are there are enough
            assert read_dicom(file, ("OP",), None, 1 << 20).pixels.shape == (16, 16, 3)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_size_that_cannot_be_read_is_a_damaged_header(tmp_path: Path) -> None:
    for name, value in (("Rows", b"\1\0\2\0"), ("BitsAllocated", b""), ("NumberOfFrames", b"x")):
        path = phantoms.write_fundus(tmp_path / "a.dcm", "P-1", phantoms.fundus(1, 16))
        header = read_header(io.BytesIO(path.read_bytes()), pixels=False)
        header[name] = RawDataElement(Tag(name), "??", len(value), value, 0, False, True)
        with pytest.raises(Unusable):
            check_size(header, 1 << 20)
