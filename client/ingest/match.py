"""Finds the file of a folder that a row of the labels file names, and counts what fits nothing.

In: the folder's relative paths; the paths that rows name; which patients and images turned up.
Out: for each row a file or the likely cause why there is none; a `Match` in words.
Guarantees: a path that fits exactly counts before one that nearly fits; where several files nearly
fit, none is taken; a file that one row names exactly is taken by no other row.
Not covered: whether the row is right about the file.

  1. the path as it stands, or a bare name that occurs once
  2. the same without regard to case, and to folders in front that one of the two lacks
  3. else the likely cause: another folder, another ending, leading zeros
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from client.ingest.table import Findings

NEARLY = "the file that is named differs in case or in leading folders from the one that is there"
SEVERAL = "several files fit the name; give the path below the data folder"
TAKEN = "no such file; another row names the one that is nearly called so"
FOLDER = "no such file; one of that name lies in another folder"
ENDING = "no such file; one with another ending is there"
ZEROS = "no such file; one whose number has other leading zeros is there"
ABSENT = "no such file below the data folder"
MOST = 0.5  # below this share of rows, and of images, the file and the folder are not of each other


def file_key(text: str) -> str:
    """Return a path below the source in the form in which rows and files are compared."""
    return unicodedata.normalize("NFC", text).strip().replace("\\", "/").removeprefix("./")


class FolderIndex:
    """The files of a folder, by what a row can call them."""

    def __init__(self, files: Iterable[str]) -> None:
        self.keys: set[str] = set()
        self._by_name: dict[str, list[str]] = {}
        self._by_folded: dict[str, list[str]] = {}
        self._stems: set[str] = set()
        self._numbers: set[str] = set()
        for file in files:
            key = file_key(file)
            self.keys.add(key)
            name = key.rpartition("/")[2]
            folded = name.casefold()
            self._by_name.setdefault(name, []).append(key)
            self._by_folded.setdefault(folded, []).append(key)
            self._stems.add(_stem(folded))
            self._numbers.add(_stem(folded).lstrip("0"))

    def exact(self, key: str) -> str | None:
        """Return the file that a path names as it stands, or as a name that occurs once."""
        if key in self.keys:
            return key
        named = self._by_name.get(key, ())
        return named[0] if len(named) == 1 else None

    def nearly(self, key: str, taken: Collection[str] = ()) -> tuple[str | None, str]:
        """Return the one file not `taken` that a path nearly names, and a sentence about it."""
        path = _folded_path(key)
        name = path.rpartition("/")[2]
        same_name = self._by_folded.get(name, [])
        fitting = [file for file in same_name if _ends_alike(path, _folded_path(file))]
        if len(fitting) > 1:
            return None, SEVERAL
        if fitting:
            file = fitting[0]
            return (None, TAKEN) if file in taken else (file, NEARLY)
        if same_name:
            return None, FOLDER
        if _stem(name) in self._stems:
            return None, ENDING
        return None, ZEROS if _stem(name).lstrip("0") in self._numbers else ABSENT


def _folded_path(key: str) -> str:
    """A path without case, and without empty and dotted folders."""
    return "/".join(part for part in key.casefold().split("/") if part not in ("", "."))


def _ends_alike(one: str, other: str) -> bool:
    """Whether one path is the other, or its last folders and name."""
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")


def _stem(name: str) -> str:
    """A name without its last ending."""
    return name.rpartition(".")[0] or name


@dataclass
class Match:
    """What rows and folder have in common; for the site's own screen.

    `form`, `ignored`: the table's form and its other columns, in words. `rows`: all that name a
    file or a patient. `file_rows`: those whose file is here. `patient_rows`: lines of the rows
    without a file, by patient. `images`: that can be read; `labelled`: those with a row. `met`:
    patients of rows whom an image showed. `nearly`: images whose id differs from that of its row in
    spelling. `unit`: what is counted as images.
    """

    form: str = ""
    ignored: str = ""
    unit: str = "images"
    rows: int = 0
    file_rows: int = 0
    patient_rows: dict[str, list[int]] = field(default_factory=dict)
    notes: Findings = field(default_factory=Findings)
    images: int = 0
    labelled: int = 0
    nearly: int = 0
    met: set[str] = field(default_factory=set)

    def note_image(self, *, labelled: bool) -> None:
        """Count one image."""
        self.images += 1
        self.labelled += labelled

    @property
    def met_rows(self) -> int:
        """Rows that name a file or a patient that is here."""
        found = sum(len(self.patient_rows.get(patient, ())) for patient in self.met)
        return self.file_rows + found

    def table_lines(self) -> Iterator[str]:
        """Yield what is known once the table is read."""
        if not self.form:
            return
        yield f"labels: {self.form}, {self.rows:,} rows{self.ignored}"
        for text in self.notes.texts():
            yield f"labels: {text}"

    def lines(self) -> Iterator[str]:
        """Yield what is known once the images are read, too."""
        yield from self.table_lines()
        if not self.form:
            return
        yield f"labels: {self.counts()}"
        if self.nearly:
            yield f"labels: {self.nearly:,} images whose id is spelled otherwise in their row"
        for text in self._strangers().texts():
            yield f"labels: {text}"

    def counts(self) -> str:
        """Return both directions in one sentence."""
        return (
            f"{self.met_rows:,} of {self.rows:,} rows name a file or patient that is here; "
            f"{self.labelled:,} of {self.images:,} {self.unit} have a row"
        )

    def _strangers(self) -> Findings:
        """Lines of the patients whom no image showed."""
        lines = [self.patient_rows[name] for name in self.patient_rows if name not in self.met]
        found = Findings()
        for line in sorted(line for of_one in lines for line in of_one):
            found.add("no image is of this patient", line)
        return found

    def fits(self) -> bool:
        """Whether rows and images are of each other.

        A table of more people than the folder holds is fine, and so is a folder with more images
        than the table has rows. Where most of both are left over, or nothing fits, neither is.
        """
        if not self.form or not self.images:
            return True
        if not self.met_rows and not self.labelled:
            return False
        few_rows = self.met_rows < MOST * self.rows
        few_images = self.labelled < MOST * self.images
        return not (few_rows and few_images)
