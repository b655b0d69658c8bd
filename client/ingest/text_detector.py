"""Finds text that is burned into a picture, by the two networks of rapidocr-onnxruntime.

In: a framed picture, uint8 [side, side, 1 or 3], larger than the study's own size.
Out: nothing, or `Unusable` (text-in-pixels).
Guarantees: one thread, no download, and no network but the two files that the package brings. What
was read is compared and forgotten: it is neither stored, shown nor logged. The cost is bounded by
the picture's side and by MOST_BOXES.
Not covered: letters of less than a hundredth of the side, which the study's size blurs too; text at
an angle; scripts that the second network does not know; handwriting, mostly.

  1. only parts with fine strokes in two directions can hold letters; most pictures have few
  2. the first network gives each place there a probability of text; places that touch are a box
  3. the second network reads each box
  4. text is LETTERS signs that were read with confidence, markers aside
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.ingest.quarantine import Reason, Unusable
from common.arrays import Pixels

PACKAGE = "rapidocr_onnxruntime"
DETECTOR = "ch_PP-OCRv4_det_infer.onnx"
READER = "ch_PP-OCRv4_rec_infer.onnx"
SIDE_PX = 480  # finds letters of a sixtieth of the side; half as much again for large studies
CELL_PX = 4
# strokes: slopes in grey levels a pixel, on what a blur takes away, in the weaker direction
BLUR_PX = 2
STROKE_WINDOW_PX = 16
STROKES_LIKELY = 2.7  # of lines that the networks read, one in a hundred has less
PART_PX = 16
AROUND_PX = 32  # what the first network sees around strokes
INPUT_PX = 32  # it takes multiples of this
# a part is shown to it flat and with more contrast: it weighs strokes by all that it sees
FLAT_PX = 3
CONTRAST = 4
PLACE_LIKELY = 0.3
BOX_LIKELY = 0.5
MOST_BOXES = 20
READER_PX = 48  # the height at which the second network reads
WIDEST_PX = 960
SURE = 0.6
LETTERS = 4
# what stands on films to say the side, the position and the way of the rays
MARKERS = set(
    "L R LEFT RIGHT LT RT PA AP LAT LATERAL PORT PORTABLE MOBILE BED BEDSIDE ERECT UPRIGHT SUPINE "
    "SITTING SEMI STANDING INSP EXP GRID LINKS RECHTS LIEGEND STEHEND SITZEND GAUCHE DROIT DROITE "
    "DEBOUT COUCHE ASSIS IZQ DER SX DX OD OS OG OI".split()
)

Box = tuple[int, int, int, int]  # top, left, bottom, right


def is_installed() -> bool:
    """Return whether the package with the networks is here."""
    return importlib.util.find_spec(PACKAGE) is not None


def text_sides(size_px: int) -> Iterator[int]:
    """Yield the sides at which a picture can be searched, in pixels, the best first.

    Letters that the study's own size shows are large enough at the first one; the others are for
    pictures that are too small for it. Each is a multiple of 32, which the first network needs.
    """
    yield max(SIDE_PX, size_px * 3 // 2 // 32 * 32)
    yield from (256, 128, 64, 32)


class TextDetector:
    """The two networks, loaded once."""

    def __init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # memory goes back after each picture
        options.enable_mem_pattern = False  # parts differ in shape, and a plan for each would stay
        options.log_severity_level = 4

        def load(name: str) -> Any:
            providers = ["CPUExecutionProvider"]
            return onnxruntime.InferenceSession(str(_models() / name), options, providers=providers)

        self._detector = load(DETECTOR)
        self._reader = load(READER)
        signs = self._reader.get_modelmeta().custom_metadata_map["character"].splitlines()
        self._signs = ["", *signs, " "]

    def check(self, square: Pixels) -> None:
        """Refuse uint8 [side, side, 1 or 3] with text; `side` is a multiple of 32.

        Raises Unusable (text-in-pixels), and MemoryError where the networks find too little.
        """
        colour = np.repeat(square, 3, axis=2) if square.shape[2] == 1 else square
        try:
            lines = [self._read(colour, box) for box in self._boxes(colour)]
        except Exception as error:  # the networks take any picture: memory is what can be missing
            raise MemoryError from error
        if count_letters(lines) >= LETTERS:
            raise Unusable(Reason.TEXT_IN_PIXELS)

    def _boxes(self, colour: Pixels) -> list[Box]:
        """The boxes in which text is likely, at most MOST_BOXES, the likeliest first."""
        found = []
        for top, left, bottom, right in parts_with_strokes(colour):
            part = colour[top:bottom, left:right]
            if part.shape != colour.shape:
                part = _flatten(part)
            for score, box in self._boxes_in(part):
                first, start, last, end = box
                found.append((score, (top + first, left + start, top + last, left + end)))
        found.sort(reverse=True)
        return [box for _, box in found[:MOST_BOXES]]

    def _boxes_in(self, part: Pixels) -> Iterator[tuple[float, Box]]:
        """The boxes of one part and how likely they are (step 2)."""
        likely = self._detector.run(None, {"x": _as_input(part)})[0][0, 0]
        height, width = (length // CELL_PX for length in likely.shape)
        cells = likely[: height * CELL_PX, : width * CELL_PX]
        cells = cells.reshape(height, CELL_PX, width, CELL_PX).max(axis=(1, 3))
        for places in connected_places(cells > PLACE_LIKELY):
            rows, columns = np.array(places).T
            score = float(cells[rows, columns].mean())
            if score >= BOX_LIKELY:
                top, left, bottom, right = _box_of(places)
                yield score, (top * CELL_PX, left * CELL_PX, bottom * CELL_PX, right * CELL_PX)

    def _read(self, colour: Pixels, box: Box) -> str:
        """What the second network reads in a box; empty where it is not sure (step 3)."""
        # a third of the height around it, because the first network's boxes are tight
        top, left, bottom, right = box
        edge = max(2, (bottom - top) * 35 // 100)
        cut = colour[max(0, top - edge) : bottom + edge, max(0, left - edge) : right + edge]
        width = min(WIDEST_PX, max(16, round(READER_PX * cut.shape[1] / cut.shape[0])))
        line = Image.fromarray(cut).resize((width, READER_PX), Image.Resampling.BICUBIC)
        shares = self._reader.run(None, {"x": _as_input(np.asarray(line))})[0][0]

        # the likeliest sign at each step; repeats are one, and sign 0 stands between signs
        steps = shares.argmax(axis=1)
        new = (steps != 0) & (steps != np.concatenate(([0], steps[:-1])))
        if not new.any() or shares.max(axis=1)[new].mean() < SURE:
            return ""
        return "".join(self._signs[int(step)] for step in steps[new])


@functools.cache
def load_detector() -> TextDetector:
    """Return the networks of this process."""
    return TextDetector()


def _models() -> Path:
    """The folder of the networks' files; the package itself is not loaded."""
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "models"


def _as_input(colour: Pixels) -> NDArray[np.float32]:
    """uint8 [H, W, 3] as the networks take it: float32 [1, 3, H, W] in -1..1."""
    scaled = colour.astype(np.float32) / 127.5 - 1
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def parts_with_strokes(colour: Pixels) -> list[Box]:
    """Return the parts of uint8 [side, side, 3] that can hold letters (step 1).

    Their sides are multiples of INPUT_PX. A letter has fine strokes in two directions at least;
    ribs, borders and vessels have one, or are not fine. Parts that are together as large as the
    picture become the whole picture.
    """
    # what is fine, and how strong it is in its weaker direction (Shi and Tomasi 1994)
    grey = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY)
    fine = cv2.addWeighted(grey, 1, cv2.GaussianBlur(grey, (0, 0), BLUR_PX), -1, 128)
    squares = cv2.cornerMinEigenVal(fine, STROKE_WINDOW_PX, ksize=3)
    slopes = np.sqrt(squares.clip(0)) * (255 / 2)  # OpenCV divides by 255, and a slope counts twice

    # cells that touch are a part
    side = len(grey)
    count = side // PART_PX
    cells = slopes.reshape(count, PART_PX, count, PART_PX).max(axis=(1, 3))
    parts = []
    area = 0
    for places in connected_places(cells > STROKES_LIKELY):
        top, left, bottom, right = _box_of(places)
        first, last = _widen(top * PART_PX, bottom * PART_PX, side)
        start, end = _widen(left * PART_PX, right * PART_PX, side)
        parts.append((first, start, last, end))
        area += (last - first) * (end - start)
    if area >= side * side:
        return [(0, 0, side, side)]
    return parts


def _flatten(part: Pixels) -> Pixels:
    """Strokes on an even grey, CONTRAST times as strong."""
    blurred = cv2.GaussianBlur(part, (0, 0), FLAT_PX)
    return np.asarray(cv2.addWeighted(part, CONTRAST, blurred, -CONTRAST, 127), dtype=np.uint8)


def _box_of(places: list[tuple[int, int]]) -> Box:
    """The smallest box around places (row, column)."""
    rows, columns = zip(*places, strict=True)
    return min(rows), min(columns), max(rows) + 1, max(columns) + 1


def _widen(first: int, last: int, side: int) -> tuple[int, int]:
    """A stretch with AROUND_PX on both sides, a multiple of INPUT_PX long, inside 0..side."""
    first = max(0, first - AROUND_PX)
    last = min(side, last + AROUND_PX)
    length = -(-(last - first) // INPUT_PX) * INPUT_PX
    first = min(first, side - length)
    return first, first + length


def connected_places(marked: NDArray[np.bool_]) -> Iterator[list[tuple[int, int]]]:
    """Yield the places (row, column) of each connected part of [H, W], by four neighbours."""
    left = set(zip(*(axis.tolist() for axis in np.nonzero(marked)), strict=True))
    while left:
        part = [left.pop()]
        # the list grows while it is gone through
        for row, column in part:
            for near in (
                (row - 1, column),
                (row + 1, column),
                (row, column - 1),
                (row, column + 1),
            ):
                if near in left:
                    left.remove(near)
                    part.append(near)
        yield part


def count_letters(lines: Sequence[str]) -> int:
    """Return how many letters and digits the longest line has, without markers (step 4).

    A sign of Chinese, Japanese or Korean counts twice: names have two or three.
    """
    most = 0
    for line in lines:
        words = re.findall(r"\w+", line)
        rest = "".join(word for word in words if word.upper() not in MARKERS).replace("_", "")
        most = max(most, sum(1 + (sign >= "\u2e80") for sign in rest))
    return most
