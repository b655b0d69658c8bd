"""Every reason for which a file or image does not enter a cohort: code, sentence and fix.

Guarantees: `Unusable` is the only exception that a decoder may raise. Neither `Reason` nor
`Unusable` ever carries text from a file, a file's name or another exception. So both may be shown,
counted and logged on site.
"""

from __future__ import annotations

import functools
import tomllib
from enum import Enum
from importlib.resources import files


class Reason(Enum):
    """A stable code (`.value`), what it means (`.sentence`) and what to do (`.fix`)."""

    sentence: str

    def __new__(cls, code: str, sentence: str = "") -> Reason:
        member = object.__new__(cls)
        member._value_ = code
        member.sentence = sentence
        return member

    @property
    def fix(self) -> str:
        """Return what a hospital does about it (reasons.toml)."""
        return str(_fixes()[self.value])

    # the file
    NOT_A_FILE = (
        "not-a-regular-file",
        "A link, pipe or device stands where a file was expected; links are not followed.",
    )
    UNREADABLE = ("unreadable-file", "The operating system did not let us read the file.")
    FILE_TOO_LARGE = ("file-too-large", "The file is larger than the size cap.")
    UNKNOWN_FORMAT = (
        "unknown-format",
        "Neither DICOM (with its mark) nor a photograph, nor NIfTI in a study of volumes.",
    )
    UNREAD_FORMAT = (
        "unread-format",
        "A picture or film in a format that is not read (GIF, HEIC, AVIF, MP4).",
    )
    SEVERAL_PICTURES = (
        "several-pictures",
        "The file holds several pictures (pages, an animation, a preview and a raw image).",
    )
    # the DICOM header
    DAMAGED_HEADER = ("damaged-header", "The header cannot be parsed.")
    NOT_AN_IMAGE = (
        "not-an-image",
        "The DICOM object holds no pixel data (report, plan, directory, waveform).",
    )
    WRONG_MODALITY = ("wrong-modality", "The Modality is missing or not among those of the study.")
    UNSUPPORTED_TRANSFER_SYNTAX = (
        "unsupported-transfer-syntax",
        "No decoder is installed for the transfer syntax.",
    )
    UNSUPPORTED_PIXELS = (
        "unsupported-pixels",
        "Pixels of a kind that is not read: fractions, negative, over 16 bits, label maps.",
    )
    PHOTOMETRIC = (
        "unknown-photometric",
        "PhotometricInterpretation is missing or names no kind of pixels that is read.",
    )
    SAMPLES = (
        "contradicting-samples",
        "SamplesPerPixel does not fit PhotometricInterpretation.",
    )
    BITS = (
        "unsupported-bits",
        "BitsAllocated is not 8 or 16, or BitsStored is not between 2 and BitsAllocated.",
    )
    HIGH_BIT = ("unsupported-high-bit", "HighBit says that the pixels are not in the lowest bits.")
    NO_SIZE = ("no-size", "Rows, Columns, SamplesPerPixel or NumberOfFrames is zero or negative.")
    RESCALE = (
        "bad-rescale",
        "RescaleSlope is 0, or slope or intercept is no number or far too large: no pixel has its "
        "own value.",
    )
    LOOKUP_TABLE = (
        "bad-lookup-table",
        "A lookup table of the header is damaged or lacks entries that the image needs.",
    )
    BURNED_IN_TEXT = (
        "burned-in-text",
        "BurnedInAnnotation says YES, ImageType says SCREEN SAVE, or the Modality is one where "
        "text is common and BurnedInAnnotation is not NO.",
    )
    SECONDARY_CAPTURE = (
        "secondary-capture",
        "The SOP class, ConversionType or a capturing device says that the image was captured from "
        "a screen, a scanner or a video; it names no body part and view, and BurnedInAnnotation is "
        "not NO.",
    )
    DERIVED = (
        "derived-image",
        "ImageType says SECONDARY: a copy that was made after the examination, and "
        "BurnedInAnnotation is not NO.",
    )
    SYNTHETIC = ("synthetic-image", "SyntheticData says YES: the image shows nobody.")
    WRONG_BODY_PART = (
        "wrong-body-part",
        "BodyPartExamined or AnatomicRegionSequence names another body part than the study takes.",
    )
    WRONG_VIEW = (
        "wrong-view",
        "ViewPosition, ViewCodeSequence or PatientOrientation names another view than the study "
        "takes.",
    )
    WRONG_PRESENTATION = (
        "wrong-presentation",
        "PresentationIntentType or the SOP class says that the image is meant for something else "
        "than the study takes; FOR PROCESSING means raw detector values.",
    )
    SILENT_HEADER = (
        "silent-header",
        "The header does not name the body part or the view, and site.yaml refuses such files.",
    )
    SEVERAL_FRAMES = (
        "several-frames",
        "The file holds several frames, perhaps of both eyes; one file is one image.",
    )
    # the pixels
    DECLARED_TOO_LARGE = (
        "declared-too-large",
        "Rows x columns x frames x bytes is larger than the cap; nothing was decoded.",
    )
    TRUNCATED = ("truncated", "There are fewer pixel bytes than the header declares.")
    UNDECODABLE = ("undecodable", "The pixel data cannot be decoded.")
    OUT_OF_MEMORY = ("decoder-out-of-memory", "Decoding needed more memory than allowed.")
    TIMED_OUT = ("decoder-timed-out", "Decoding took longer than allowed; its process was ended.")
    DECODER_DIED = ("decoder-died", "The decoding process ended without an answer.")
    WRONG_CHANNELS = (
        "wrong-channels",
        "In a study of colour photographs: a grey picture, also one of three equal planes, one of "
        "a single colour, or one that ImageType or a contrast agent calls an angiogram.",
    )
    TEXT_IN_PIXELS = (
        "text-in-pixels",
        "Text was read in the picture itself: at least four letters or digits in one line, beside "
        "markers such as L, R or PORTABLE.",
    )
    TOO_SMALL = ("too-small", "The image has less than half of the study's size in pixels.")
    BLANK = ("blank-image", "The image shows one even shade.")
    NO_FIELD = (
        "no-field-of-view",
        "The round field of a fundus camera is not found: there is no dark surround, or no circle.",
    )
    # slices that should make a volume
    NOT_A_VOLUME = ("not-a-volume", "A photograph in a study of volumes.")
    NO_SERIES = ("no-series", "The header names no series.")
    NO_GEOMETRY = (
        "no-geometry",
        "Position, orientation or pixel spacing of the slice is missing or impossible.",
    )
    MULTI_FRAME = (
        "multi-frame-object",
        "One object holds several frames, and its header does not say where each of them lies.",
    )
    MIXED_PATIENTS = ("mixed-patients", "The slices of the series carry different patient ids.")
    MIXED_SERIES = (
        "mixed-series",
        "The slices of the series differ in orientation, size, spacing or pixel format.",
    )
    NOT_AXIAL = ("not-axial", "The slices are nearer to sagittal or coronal than to axial.")
    COLOUR_SLICE = ("colour-slice", "The slice is in colour; only grey ones make a volume.")
    PROJECTION = ("projection-image", "The image is a projection of a volume, no slice of it.")
    OTHER_COMPONENT = (
        "other-component",
        "The image is magnitude, phase, real or imaginary, and the plan takes another of these.",
    )
    DERIVED_PART = (
        "derived-of-series",
        "The series holds original and derived images; the originals enter.",
    )
    OTHER_ECHO = ("other-echo", "The series holds several echoes; the plan takes another one.")
    OTHER_DIFFUSION = (
        "other-diffusion-weight",
        "The series holds several diffusion weights; the lowest enters.",
    )
    OTHER_TIME = (
        "other-time-point",
        "The series holds several time points or acquisitions; the plan takes another one.",
    )
    ALTERED_COPY = (
        "altered-copy",
        "Two files of the series carry one SOPInstanceUID, but differ in pixels or place.",
    )
    DUPLICATE_SLICE = (
        "duplicate-slice",
        "Two slices of the series lie at the same place, with other pixels, and nothing in their "
        "headers says which of them the plan takes.",
    )
    MISSING_SLICE = ("missing-slice", "Between two slices of the series one is missing.")
    UNEVEN_SLICES = (
        "uneven-slices",
        "The slices of the series are not equally spaced along one line.",
    )
    VOLUME_TOO_SMALL = (
        "volume-too-small",
        "Fewer than three slices, or slices smaller than one patch.",
    )
    INCOMPLETE_SERIES = (
        "incomplete-series",
        "Another slice of the series cannot be used; its own code says why.",
    )
    NO_MASK = ("no-mask", "No mask belongs to the series.")
    MASK_REFUSED = ("mask-refused", "The mask of the series cannot be used; its own code says why.")
    SPARE_SERIES = (
        "spare-series-of-person",
        "Other series of this person gave all the patches that a person gives.",
    )
    # masks
    FRACTIONAL_MASK = (
        "fractional-mask",
        "The segmentation holds fractions; only binary ones are read.",
    )
    SEGMENT_COUNT = ("segment-count", "The segmentation does not hold exactly one segment.")
    MASK_GRID = ("mask-grid", "The mask does not lie on the grid of its series.")
    MASK_PIXELS = (
        "mask-pixel-type",
        "The mask's pixels are not one bit each (DICOM), or no plain numbers (NIfTI).",
    )
    MASK_NOWHERE = (
        "mask-without-place",
        "The codes of both transforms of the NIfTI mask are 0, so nothing says where it lies.",
    )
    CONTRADICTORY_MASK = (
        "contradictory-mask",
        "The two transforms of the NIfTI mask both lie on the grid, turned differently.",
    )
    EMPTY_MASK = ("empty-mask", "The mask marks nothing.")
    NOT_BINARY = ("not-binary-mask", "The mask holds more than one value beside zero.")
    TWO_MASKS = ("two-masks", "The series has several masks.")
    UNNAMED_MASK = ("unnamed-mask", "No row of the labels file names this mask.")
    AMBIGUOUS_MASK = (
        "ambiguous-mask",
        "The labels file names the mask for several series; let the row name a slice.",
    )
    MASK_WITHOUT_SERIES = (
        "mask-without-series",
        "The series that the mask or its row of the labels file names is not among the slices "
        "that can be read.",
    )
    MASK_FRAME = (
        "mask-of-other-frame",
        "The series that the mask names has another frame of reference.",
    )
    MASK_FITS_NONE = (
        "mask-fits-no-series",
        "The mask names no series, or several, and lies on the grid of none of the same patient "
        "and frame of reference.",
    )
    MASK_FITS_SEVERAL = (
        "mask-fits-several-series",
        "The mask names no series, or several, and lies on the grids of more than one.",
    )
    MASK_OF_OTHER_PATIENT = (
        "mask-of-other-patient",
        "The mask and its series carry different patient ids.",
    )
    SERIES_REFUSED = (
        "series-refused",
        "The series of the mask cannot be used; its own code says why.",
    )
    # the person
    NO_PATIENT = (
        "no-patient-id",
        "The patient id is empty or a placeholder, so nobody can be protected as one person.",
    )
    WITHDRAWN = ("withdrawn", "The person withdrew; none of their images is used.")
    DISPUTED = (
        "disputed-image",
        "The same picture stands under two ids that persons.csv calls different persons.",
    )
    NO_LABEL = ("no-label", "The labels file has no row for this image.")
    AMBIGUOUS_LABEL = (
        "ambiguous-label",
        "The labels file has several rows that fit, and they differ.",
    )
    UNKNOWN_LABEL = ("unknown-label", "The label is not one that the study declares.")
    NO_LATERALITY = (
        "no-laterality",
        "The study separates left and right eyes, and the side is not known.",
    )
    # choices among the images of one person
    CONFLICTING_LABELS = (
        "conflicting-labels",
        "The person's images carry different labels and the labels have no order.",
    )
    LOWER_LABEL = (
        "lower-label-of-person",
        "Another image of this person carries a higher label, and only those enter.",
    )
    OTHER_SIDE = (
        "other-side-of-person",
        "A person enters with one eye, and the other eye was chosen.",
    )
    DUPLICATE = ("duplicate-image", "The same pixels of this person have entered already.")


class Unusable(Exception):
    """A file or image is refused for one `reason`."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@functools.cache
def _fixes() -> dict[str, object]:
    """What to do about each reason, by code."""
    text = files("client.ingest").joinpath("reasons.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
