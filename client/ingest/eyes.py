"""Asks which persons of an intake are one by their eyes, and lists what a person should look at.

In: the photographs of an intake, who is one person so far, site.yaml's `data.same_eye`.
Out: pairs of photographs that join their persons; a list in the cohort's folder, with pictures.
Guarantees:
  - colour fundus photographs of at least 128 px alone are searched
  - pairs that a person called different are neither joined nor listed; whoever withdrew is not
    listed; what agrees without being turned or moved is listed and not joined, as it may be dust
  - nobody is joined where mirrored pairs reach the threshold more than a quarter as often
  - the list is the site's alone (mode 0600), and goes with the cohort; it names files by their
    paths and has the form of persons.csv
Not covered: how a pair is scored (same_eye.py); photographs of earlier intakes that are gone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from client.ingest.decisions import COLUMNS, FILE, SAME
from client.ingest.persons import ImageRecord
from client.ingest.same_eye import (
    ENOUGH,
    MOST,
    PERHAPS,
    SAME_EYE,
    Match,
    Progress,
    Search,
    find_same_eyes,
)
from client.ingest.vessels import SIDE_PX, Photographs
from client.state.people import People
from common.arrays import Integers, Pixels
from common.storage.files import atomic_write
from common.study.intake import Intake

Switch = Literal["join", "list", "off"]

FOLDER = "same_eye"
TABLE = "pairs.csv"
MOST_LISTED = 200
PAIRS_A_SHEET = 10
TILE_PX = 256
MARGIN_PX = 48  # for a pair's number
TRUE_TO_FALSE = 4  # at least so many pairs for each mirrored one that reaches the threshold


@dataclass(frozen=True)
class Eyes:
    """What a comparison of eyes found.

    `same`: pairs of places in the records that join their persons. `listed`: pairs for a person to
    look at, the best first. `search`: None where nothing was searched. `count`: of photographs.
    """

    switch: Switch = "off"
    search: Search | None = None
    same: tuple[tuple[int, int], ...] = ()
    listed: tuple[Match, ...] = ()
    count: int = 0

    def lines(self, folder: Path) -> Iterator[str]:
        """Yield what the site's screen shows; `folder`: the cohort's."""
        if self.count > MOST:
            yield (
                f"same eye: not searched in {self.count:,} photographs, at most {MOST:,}; one "
                "person under two ids that nothing else links counts as two"
            )
        if self.search is None:
            return
        false = self.search.false_above(SAME_EYE)
        yield (
            f"same eye: {len(self.search.above(SAME_EYE))} of {self.search.pairs:,} pairs under "
            f"different ids score {SAME_EYE} or more, and {false} of as many mirrored pairs, which "
            f"never show one eye twice; {self._what_follows()}"
        )
        if self.listed:
            yield (
                f"same eye: {len(self.listed)} pairs to look at (score {PERHAPS} or more): "
                f"{folder / FOLDER / TABLE}, with pictures; persons.csv takes its rows"
            )

    def _what_follows(self) -> str:
        if self.switch == "list":
            return "none were joined (data.same_eye: list)"
        if self.search is not None and _finds_strangers(self.search):
            return "none were joined, as chance alone finds so many"
        if self.count < ENOUGH:
            return f"none were joined, as there are fewer than {ENOUGH} photographs"
        return f"{len(self.same)} were joined"


def may_show_eyes(intake: Intake) -> bool:
    """Return whether a study's images are colour fundus photographs, large enough to compare."""
    is_fundus = "OP" in intake.dicom_modalities and intake.channels == 3
    return is_fundus and not intake.volumes and intake.size_px >= SIDE_PX


def compare_eyes(
    photographs: Photographs,
    persons: Sequence[Sequence[ImageRecord]],
    known: People,
    switch: Switch,
    progress: Progress,
) -> Eyes:
    """Return which photographs of different persons show one eye.

    `photographs`: a row for each record, by its position. `known`: what a person decided.
    """
    count = len(photographs)
    if count > MOST:
        return Eyes(switch, count=count)
    number = np.zeros(count, np.int64)
    names: dict[int, tuple[str, ...]] = {}
    for person, records in enumerate(persons):
        for record in records:
            number[record.position] = person
            names[record.position] = record.pseudonyms
    search = find_same_eyes(photographs, number.tolist(), progress)
    found = []
    for match in search.above(PERHAPS):
        if not known.are_apart(names[match.first], names[match.second]):
            found.append(match)
    same: list[tuple[int, int]] = []
    if switch == "join" and count >= ENOUGH and not _finds_strangers(search):
        for match in found:
            if match.score >= SAME_EYE and not match.in_place:
                same.append((match.first, match.second))
    listed = []
    for match in found:
        if not known.has_withdrawn({*names[match.first], *names[match.second]}):
            listed.append(match)
    return Eyes(switch, search, tuple(same), tuple(listed[:MOST_LISTED]), count)


def find_eyes_among(
    photographs: Pixels, others: NDArray[np.uint8], switch: Switch
) -> list[tuple[int, int]]:
    """Return pairs (i, j) of a photograph and one of the others that show one eye; [N, S, S, 3].

    Nothing where eyes join nobody: by `switch`, or where there are too few or too many.
    """
    count = len(others) + len(photographs)
    if switch != "join" or not ENOUGH <= count <= MOST:
        return []
    together = _Together(others, photographs)
    search = find_same_eyes(together, range(count), since=len(others))
    if _finds_strangers(search):
        return []
    found = []
    for match in search.above(SAME_EYE):
        if match.first < len(others) and not match.in_place:
            found.append((match.second - len(others), match.first))
    return sorted(found)


def _finds_strangers(search: Search) -> bool:
    """Whether chance explains too many of the pairs, by the mirrored ones that score as much."""
    false = search.false_above(SAME_EYE)
    return TRUE_TO_FALSE * false > len(search.above(SAME_EYE))


@dataclass(frozen=True, eq=False)
class _Together:
    """Photographs in two arrays, by one row; they are read one by one."""

    first: NDArray[np.uint8]
    second: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, rows: Integers) -> Pixels:
        found = []
        for row in rows.tolist():
            place = row - len(self.first)
            found.append(self.second[place] if place >= 0 else self.first[row])
        return np.stack(found)


def write_eyes(folder: Path, eyes: Eyes, names: Sequence[str], photographs: Photographs) -> None:
    """Write the list and its pictures below a cohort's folder, where there is something to list.

    `names`: of the files below the data folder, by position.
    """
    if not eyes.listed:
        return
    place = folder / FOLDER
    place.mkdir(mode=0o700)
    atomic_write(place / TABLE, _make_table(eyes.listed, set(eyes.same), names), mode=0o600)
    for start in range(0, len(eyes.listed), PAIRS_A_SHEET):
        pairs = eyes.listed[start : start + PAIRS_A_SHEET]
        sheet = _draw_sheet(pairs, start + 1, photographs)
        atomic_write(place / f"pairs-{start + 1:03}.png", sheet, mode=0o600)


def _make_table(
    listed: Sequence[Match], same: Collection[tuple[int, int]], names: Sequence[str]
) -> bytes:
    """The pairs as rows of persons.csv; those that were joined are decided."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow((*COLUMNS, "score", "picture"))
    for number, match in enumerate(listed, 1):
        files = [FILE + names[match.first], FILE + names[match.second]]
        decision = SAME if (match.first, match.second) in same else ""
        rows.writerow((*files, decision, f"{match.score:.2f}", number))
    return text.getvalue().encode("utf-8", "backslashreplace")


def _draw_sheet(pairs: Sequence[Match], first_number: int, photographs: Photographs) -> bytes:
    """A PNG with one pair a row, each with its number and score."""
    sheet = Image.new("RGB", (MARGIN_PX + 2 * TILE_PX, TILE_PX * len(pairs)))
    pen = ImageDraw.Draw(sheet)
    for row, match in enumerate(pairs):
        top = row * TILE_PX
        pen.text((4, top + 4), f"{first_number + row}\n{match.score:.2f}", fill="white")
        both = photographs[np.array([match.first, match.second])]
        for column, pixels in enumerate(both):
            sheet.paste(_as_tile(pixels), (MARGIN_PX + column * TILE_PX, top))
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return data.getvalue()


def _as_tile(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels).resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC)
