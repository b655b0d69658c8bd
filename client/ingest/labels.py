"""Reads the hospital's labels file: which label, patient and eye belongs to which image.

In: a table (table.py), what its words mean (`Wording`), the folder's files.
Out: `Labels`, asked once an image; its `match` tells the site's own screen what fitted.
Guarantees: no id and no file name of the table stands in any message; a word of the columns `label`
or `laterality` does where the rows of at least five people have it.
Not covered: whether a row is right.

  label       required: one of the study's labels
  patient     the patient id as in the DICOM header; required for photographs
  file        path below the source folder, or a file name that occurs once there; required for
              photographs
  laterality  optional: left or right, in words of several languages (words.py); a DICOM header that
              names a side wins
  mask        studies of volumes only, optional: the NIfTI mask of the series that `file` is a slice
              of, or of the patient's only series; a path as for `file`

A row with a file speaks for that file. A row without one speaks for all images of the patient, or
for those of its side if it names one. A DICOM file's own patient id and the id in its row are taken
for the same person.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from client.ingest.match import FolderIndex, Match, file_key
from client.ingest.persons import normalise_id
from client.ingest.quarantine import Reason, Unusable
from client.ingest.spelling import spell
from client.ingest.table import CODE, HINT, Findings, Line, Table, name_columns, open_table
from client.ingest.words import plain, side_of
from common.errors import ConfigurationError

COLUMNS = {"file", "patient", "label", "laterality"}
PEOPLE_BEHIND_A_WORD = 5  # fewer, and a word of the table could tell who is meant
MOST_WORDS = 1000
MOST_WORD_CHARACTERS = 40


@dataclass(frozen=True)
class Wording:
    """How the hospital calls things, from site.yaml.

    `columns`: its columns, each with ours. `values`: its words, each with a label or a side.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One row, normalised; label as the study spells it, else as written."""

    patient: str
    label: str
    laterality: int


@dataclass(frozen=True)
class Labels:
    """Rows by file and by patient.

    `declared`: the study's labels, in order. `everywhere`: there is no labels file, and the only
    label fits all. `masks`: for each mask the (file, patient) of the rows that name it; either may
    be empty. `spellings`: patients of rows by the forms of their ids (spelling.py).
    """

    declared: tuple[str, ...]
    by_file: dict[str, list[Row]] = field(default_factory=dict)
    by_patient: dict[str, list[Row]] = field(default_factory=dict)
    everywhere: bool = False
    masks: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    spellings: dict[str, set[str]] = field(default_factory=dict)
    match: Match = field(default_factory=Match)

    def row_of_files(self, relatives: Iterable[str]) -> Row | None:
        """Return the row that names one of these files of one image.

        Raises Unusable (ambiguous-label).
        """
        rows: list[Row] = []
        for relative in relatives:
            rows += self.by_file.get(file_key(relative), [])
        return _agree(rows)

    def row_of_patient(self, patient: str, laterality: int) -> Row | None:
        """Return the row for this patient's image of this side (0: side unknown).

        An id that no row has counts as the one that differs from it in spelling alone, if there is
        exactly one. Raises Unusable (ambiguous-label).
        """
        name = normalise_id(patient)
        if name not in self.by_patient:
            alike: set[str] = set()
            for form in spell("", name).owns:
                alike |= self.spellings.get(form, set())
            if len(alike) != 1:
                return None
            (name,) = alike
            self.match.nearly += 1
        self.match.met.add(name)
        rows = self.by_patient[name]
        if not laterality:
            return _agree(rows)
        # rows of this side, else those that name no side
        by_side: dict[int, list[Row]] = {}
        for row in rows:
            by_side.setdefault(row.laterality, []).append(row)
        return _agree(by_side.get(laterality) or by_side.get(0, []))

    def index(self, row: Row | None) -> int:
        """Return the label's position among the declared ones.

        Raises Unusable (no-label, unknown-label).
        """
        if self.everywhere:
            return 0
        if row is None:
            raise Unusable(Reason.NO_LABEL)
        if row.label not in self.declared:
            raise Unusable(Reason.UNKNOWN_LABEL)
        return self.declared.index(row.label)

    def check_match(self) -> None:
        """Raise ConfigurationError (E-LABELS-MATCH) unless rows and images are of each other."""
        if self.match.fits():
            return
        problems = [f"labels and images do not fit: {self.match.counts()}"]
        problems += self.match.notes.texts()
        raise ConfigurationError(
            "\n".join(problems), problems=problems, hint=MATCH_HINT, code="E-LABELS-MATCH"
        )


NO_PATIENT = "a file without a patient; it stays out unless its DICOM header says whose it is"
MATCH_HINT = "nothing was frozen; correct the table, data.folder or data.labels_csv"


def _agree(rows: Sequence[Row]) -> Row | None:
    """The row that all rows agree on; a side in which they differ is unknown."""
    if not rows:
        return None
    if len({(row.patient, row.label) for row in rows}) > 1:
        raise Unusable(Reason.AMBIGUOUS_LABEL)
    sides = {row.laterality for row in rows}
    laterality = 0
    if len(sides) == 1:
        laterality = sides.pop()
    return Row(rows[0].patient, rows[0].label, laterality)


def read_labels(
    path: Path | None,
    declared: Sequence[str],
    files: Iterable[str],
    max_bytes: int,
    *,
    masks: bool = False,
    wording: Wording | None = None,
) -> Labels:
    """Return the labels in `path` for a study with `declared` labels and `files` (relative paths).

    `masks`: the column `mask` is read. Without `declared`, no label is judged. Raises
    ConfigurationError, with every problem at once: no file although the study has several labels;
    no table; a missing or doubled column; rows that cannot be meant; no label of the study.
    """
    if path is None:
        if len(declared) == 1:
            return Labels(tuple(declared), everywhere=True)
        raise ConfigurationError(
            f"the study declares {len(declared)} labels, but no labels file was given", hint=HINT
        )
    wording = wording or Wording()
    asked = COLUMNS | {"mask"} if masks else COLUMNS
    table = open_table(path, max_bytes, asked, wording.columns)
    labels = Labels(tuple(declared), match=Match(form=table.form, ignored=_ignored(table)))
    _Reading(table, labels, wording).take_all(FolderIndex(files))
    return labels


def _ignored(table: Table) -> str:
    """Which columns are not read, for the screen."""
    return f"; not read: {name_columns(table.ignored)}" if table.ignored else ""


@dataclass(frozen=True)
class _Meant:
    """One row with what it names: its line, its file and mask as keys."""

    line: int
    file: str
    mask: str
    row: Row


class _Reading:
    """Takes the rows of one table into `labels`."""

    def __init__(self, table: Table, labels: Labels, wording: Wording) -> None:
        self.table = table
        self.labels = labels
        self.values = {plain(word): meant for word, meant in wording.values.items()}
        self.declared = {_label_key(label): label for label in labels.declared}
        self.sides = _Strangers("`laterality` is no side that is known")
        self.unknown = _Strangers("`label` is none of the study's")
        self.known = 0

    def take_all(self, index: FolderIndex) -> None:
        """Read every row, find its file, and add it; raises ConfigurationError."""
        meant = [self._meant(line) for line in self.table.rows()]
        self._refuse(len(meant))
        self.labels.match.notes = self.table.notes

        # (1) rows that name their file exactly; (2) the others, among the files that are left
        exact = [index.exact(one.file) if one.file else None for one in meant]
        taken = {file for file in exact if file}
        for one, file in zip(meant, exact, strict=True):
            self._add(one, file or self._nearly(one, index, taken), index)

    def _meant(self, line: Line) -> _Meant:
        """One row, with its words as the study's."""
        cells = line.cells
        patient = normalise_id(cells.get("patient", ""))
        who = patient or cells.get("file", "")
        side = self._side(cells.get("laterality", ""), who, line.number)
        row = Row(patient, self._label(cells["label"], who, line.number), side)
        file = file_key(cells.get("file", ""))
        if not file and not patient:
            self.table.notes.add(
                "names neither file nor patient, and counts for nobody", line.number
            )
        elif not patient:
            self.table.notes.add(NO_PATIENT, line.number)
        return _Meant(line.number, file, file_key(cells.get("mask", "")), row)

    def _side(self, cell: str, who: str, line: int) -> int:
        """The side in a cell; an unknown word is a problem."""
        side = side_of(self.values.get(plain(cell), cell))
        if side is None:
            side = side_of(cell)
        if side is None:
            self.sides.add(cell, who, line)
        return side or 0

    def _label(self, cell: str, who: str, line: int) -> str:
        """The label that a cell means, else the cell; an empty one is none."""
        if not cell:
            self.table.notes.add("`label` is empty; such images stay out", line)
            return ""
        meant = self.values.get(plain(cell), cell)
        label = self.declared.get(_label_key(meant))
        if label is None:
            if self.declared:
                self.unknown.add(cell, who, line)
            return meant
        self.known += 1
        if label != meant:
            self.table.notes.add("label in another spelling than the study's", line)
        return label

    def _refuse(self, rows: int) -> None:
        """Raise ConfigurationError with all problems, if there are any."""
        problems = self.table.problems
        self.sides.tell(problems, "; correct it, or map the word in data.values of site.yaml")
        if not rows:
            problems.add("no row below the first line", 1)
        labels = ", ".join(self.labels.declared)
        if self.known or not self.declared:
            fix = "; such images stay out unless data.values of site.yaml maps the word"
            self.unknown.tell(self.table.notes, self._close() + fix)
        elif rows and not self.unknown.words:
            problems.add("no row has a label; fill in the column `label`", 1)
        elif rows:
            fix = f"; map the words to {labels} in data.values of site.yaml"
            self.unknown.tell(problems, self._close() + fix)
        texts = [f"{self.table.path}: {text}" for text in problems.texts()]
        if texts:
            raise ConfigurationError("\n".join(texts), problems=texts, hint=HINT, code=CODE)

    def _close(self) -> str:
        """The labels of the study that unknown words nearly are; public words alone."""
        near: dict[str, None] = {}
        for word in self.unknown.words:
            for found in difflib.get_close_matches(_label_key(word), self.declared, 1):
                near[self.declared[found]] = None
        return f"; nearly {', '.join(near)}" if near else ""

    def _nearly(self, one: _Meant, index: FolderIndex, taken: set[str]) -> str | None:
        """The file that a row nearly names; whatever comes of it is noted."""
        if not one.file:
            return None
        file, sentence = index.nearly(one.file, taken)
        self.labels.match.notes.add(sentence, one.line)
        return file

    def _add(self, one: _Meant, file: str | None, index: FolderIndex) -> None:
        """Add one row by its file, else by its patient; a row with neither belongs to nobody."""
        labels = self.labels
        row = one.row
        place = file or one.file
        labels.match.rows += bool(place or row.patient)
        if one.mask and (place or row.patient):
            mask = index.exact(one.mask) or index.nearly(one.mask)[0] or one.mask
            labels.masks.setdefault(mask, []).append((place, row.patient))
        if place:
            labels.match.file_rows += file is not None
            labels.by_file.setdefault(place, []).append(row)
        elif row.patient:
            labels.match.patient_rows.setdefault(row.patient, []).append(one.line)
            labels.by_patient.setdefault(row.patient, []).append(row)
            for form in spell("", row.patient).owns:
                labels.spellings.setdefault(form, set()).add(row.patient)


def _label_key(text: str) -> str:
    """A label without case, and with one sign between its words."""
    return "-".join(plain(text).replace("_", " ").replace("-", " ").split())


class _Strangers:
    """Words that are not known: their lines, and those that the rows of enough people have."""

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence
        self.words: dict[str, set[str]] = {}
        self._lines: list[int] = []

    def add(self, word: str, who: str, line: int) -> None:
        """Note a word of one row."""
        self._lines.append(line)
        if word in self.words or len(self.words) < MOST_WORDS:
            people = self.words.setdefault(word, set())
            if len(people) < PEOPLE_BEHIND_A_WORD:
                people.add(who)

    def tell(self, findings: Findings, fix: str) -> None:
        """Add a sentence with all lines; it quotes words of at least five people."""
        quoted = []
        for word, people in self.words.items():
            common = len(people) >= PEOPLE_BEHIND_A_WORD
            if common and word.isprintable() and 0 < len(word) <= MOST_WORD_CHARACTERS:
                quoted.append(f"`{word}`")
        which = f" ({', '.join(quoted[:10])})" if quoted else ""
        for line in self._lines:
            findings.add(f"{self.sentence}{which}{fix}", line)
