"""Chooses the one codec that reads each DICOM transfer syntax, and decodes one frame with it.

In: a data set with its pixel data, and the number of a frame.
Out: the stored values of that frame.
Guarantees: a codec sees a frame only when the size that the frame states is the header's; no
second codec tries what the first refused. All codecs are under permissive licences.
Not covered: what a codec does with bytes that are damaged behind their head.

JPEG of 12 bits and lossless JPEG go to libjpeg-turbo (imagecodecs), as a plugin of pydicom. It does
as every sequential decoder should with a scan that states where its spectrum ends: nothing. Some
writers put 0 there (ISO/IEC 10918-1 B.2.3 asks for 63).
"""

from __future__ import annotations

from typing import Any

from imagecodecs import jpeg8_decode
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from client.ingest.codestream import Stated, count_segments, is_cut_off, stated_size
from client.ingest.quarantine import Reason, Unusable

TURBO = "kohort-turbo"  # the name of this module among pydicom's plugins
CODECS: dict[UID, str] = {
    JPEGBaseline8Bit: "pillow",
    JPEGExtended12Bit: TURBO,
    JPEGLossless: TURBO,
    JPEGLosslessSV1: TURBO,
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    HTJ2KLossless: "pylibjpeg",
    HTJ2KLosslessRPCL: "pylibjpeg",
    HTJ2K: "pylibjpeg",
    RLELossless: "pylibjpeg",
}
OWN = tuple(syntax for syntax, name in CODECS.items() if name == TURBO)
DECODER_DEPENDENCIES = {syntax: ("imagecodecs",) for syntax in OWN}


def is_readable(syntax: UID) -> bool:
    """Return whether frames of a transfer syntax can be decoded here."""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return False
    return not syntax.is_encapsulated or CODECS.get(syntax) in decoder.available_plugins


def decode(full: Dataset, index: int, frames: int) -> tuple[NDArray[Any], str]:
    """Return the stored values of one frame, and their photometric interpretation.

    They are [H, W] or [H, W, C], as `full` declares, and may be read-only. Raises Unusable
    (undecodable) before decoding, and whatever a codec raises.
    """
    syntax = full.file_meta.TransferSyntaxUID
    codec = ""
    if syntax.is_encapsulated:
        codec = CODECS[syntax]
        frame = get_frame(full.PixelData, index, number_of_frames=frames)
        _check_frame(frame, full)
    options = as_pixel_options(full, view_only=True)
    # one sample is looked up in a table, which knows what stands beyond the stored bits
    options["correct_unused_bits"] = int(full.SamplesPerPixel) > 1
    decoder = get_decoder(syntax)
    try:
        stored, facts = decoder.as_array(
            full, index=index, raw=True, decoding_plugin=codec, **options
        )
    except BaseException as error:
        # a codec in Rust panics with no Exception: it would end the child
        if type(error).__name__ == "PanicException":
            raise Unusable(Reason.UNDECODABLE) from error
        raise
    return stored, str(facts["photometric_interpretation"])


def _check_frame(frame: bytes, header: Dataset) -> None:
    """Refuse a frame that states another size than the header, or none, or that is cut off."""
    samples = int(header.SamplesPerPixel)
    allocated = int(header.BitsAllocated)
    if header.file_meta.TransferSyntaxUID == RLELossless:
        sound = count_segments(frame) == samples * allocated // 8
    else:
        stated = stated_size(frame)
        sound = stated is not None and _fits(stated, header, samples, allocated)
    # what is missing libjpeg-turbo would fill with grey, and CharLS would look for it for seconds
    if CODECS[header.file_meta.TransferSyntaxUID] in (TURBO, "pyjpegls"):
        sound = sound and not is_cut_off(frame)
    if not sound:
        raise Unusable(Reason.UNDECODABLE)


def _fits(stated: Stated, header: Dataset, samples: int, allocated: int) -> bool:
    """Whether an image has the header's size and fits into its samples."""
    size = (int(header.Rows), int(header.Columns), samples)
    return size == (stated.rows, stated.columns, stated.components) and stated.bits <= allocated


def is_available(syntax: UID) -> bool:
    """Return whether this plugin reads a transfer syntax; pydicom asks."""
    return syntax in OWN


def decode_frame(frame: bytes, runner: DecodeRunner) -> bytes:
    """Return the samples of one JPEG of up to 16 bits, colours as stored; pydicom calls it."""
    colours = None
    if runner.samples_per_pixel == 3:  # equal spaces: nothing is converted
        colours = "RGB"
    samples = jpeg8_decode(frame, colorspace=colours, outcolorspace=colours)
    runner.set_option("bits_allocated", 8 * samples.dtype.itemsize)
    return bytes(samples.tobytes())


for _syntax in OWN:
    if TURBO not in get_decoder(_syntax).available_plugins:
        get_decoder(_syntax).add_plugin(TURBO, ("client.ingest.codecs", "decode_frame"))
