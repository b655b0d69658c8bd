"""Reads a table that a person exported: encoding, separator, header and rows.

In: a text file of a hospital, as Excel or a database writes it; the columns that are asked for.
Out: a `Table`: its rows one after the other, what was found of its form, and what is wrong.
Guarantees:
  - parsing is total: any bytes give rows or a ConfigurationError, never another exception
  - every problem is counted, with the lines where it stands
  - no cell stands in any message; of the first line the columns' names, once it is a header
Not covered: what cells mean (labels.py); workbooks (.xlsx, .xls, .ods), which are refused by name.

  1. refuse workbooks and files that are no text
  2. find the encoding: UTF-8, UTF-16, else Windows-1252
  3. find the separator: the one that gives the most columns that are known
  4. find our columns in the header
  5. read row by row
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from client.ingest.words import plain, proposed_column
from common.errors import ConfigurationError
from common.storage.files import read_capped

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
WORKBOOKS = {b"PK\x03\x04": "an Excel or OpenDocument workbook", b"\xd0\xcf\x11\xe0": "a workbook"}
MOST_ROWS = 1_000_000
MOST_LINE_CHARACTERS = 1 << 20
MOST_NAMED = 10  # runs of lines, and columns, that one message names
MOST_NAME_CHARACTERS = 40
FAULT = "not a CSV row: a quote is not closed, or a cell is far too long"
CODE = "E-LABELS-FILE"
HINT = (
    "give a CSV with the columns patient,label[,laterality] or file,patient,label[,laterality]; "
    "kohort-site labels --template writes one, data.columns of site.yaml names yours"
)


class Lines:
    """Numbers of lines in rising order: how many, and the first runs of them."""

    def __init__(self) -> None:
        self.count = 0
        self._named = 0
        self._runs: list[list[int]] = []

    def add(self, line: int) -> None:
        """Note one line."""
        self.count += 1
        if self._runs and line == self._runs[-1][1] + 1:
            self._runs[-1][1] = line
        elif len(self._runs) < MOST_NAMED:
            self._runs.append([line, line])
        else:
            return
        self._named += 1

    def words(self) -> str:
        """Return `line 3`, `lines 3, 7 to 9` or `lines 3, 7 and 40 more`."""
        runs = [_run(first, last) for first, last in self._runs]
        more = f" and {self.count - self._named:,} more" if self.count > self._named else ""
        return f"line{'s' if self.count > 1 else ''} {', '.join(runs)}{more}"


def _run(first: int, last: int) -> str:
    """A run of lines: `3`, `3, 4` or `3 to 7`."""
    if last - first > 1:
        return f"{first} to {last}"
    return str(first) if first == last else f"{first}, {last}"


class Findings:
    """Lines by what was found in them; each sentence is said once, with its first lines."""

    def __init__(self) -> None:
        self.lines: dict[str, Lines] = {}

    def add(self, sentence: str, line: int) -> None:
        """Note one line."""
        self.lines.setdefault(sentence, Lines()).add(line)

    def texts(self) -> Iterator[str]:
        """Yield `lines 3, 7 to 9 and 40 more: sentence`."""
        for sentence, lines in self.lines.items():
            yield f"{lines.words()}: {sentence}"


@dataclass(frozen=True)
class Line:
    """One row: its first line in the file, and its cells by our columns, without outer spaces."""

    number: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """An opened table.

    `form`: encoding and separator in words. `columns`: ours, by place. `ignored`: names of the
    others. `problems`: what stops it; `notes`: what does not. Both grow while rows are read.
    """

    path: Path
    form: str
    columns: Mapping[int, str]
    ignored: tuple[str, ...]
    width: int
    reader: _Rows
    problems: Findings = field(default_factory=Findings)
    notes: Findings = field(default_factory=Findings)

    def rows(self) -> Iterator[Line]:
        """Yield every row that holds anything, and note what is wrong with the others."""
        count = 0
        for number, cells in self.reader:
            if not any(cell.strip() for cell in cells):
                continue
            count += 1
            if count > MOST_ROWS:
                raise damaged(self.path, f"more than {MOST_ROWS:,} rows")
            yield self._take(number, cells)
        if self.reader.fault:
            self.problems.add(self.reader.fault, self.reader.line)

    def _take(self, number: int, cells: list[str]) -> Line:
        """Return one row by our columns; cells that it lacks are empty."""
        if any(cell.strip() for cell in cells[self.width :]):
            self.problems.add(
                f"more cells than the first line has columns ({self.width}): "
                "a separator stands inside a cell without quotes",
                number,
            )
        found = dict.fromkeys(self.columns.values(), "")
        for place, column in self.columns.items():
            if place < len(cells):
                found[column] = cells[place].strip(" \t\r\n\0").strip()
        # a quote that is not closed swallows the lines behind it
        if any("\n" in cell or "\r" in cell for cell in found.values()):
            self.problems.add("a line break inside a cell: a quote is not closed", number)
        lacking = [name for place, name in self.columns.items() if place >= len(cells)]
        if lacking:
            self._judge_short(number, found)
        return Line(number, found)

    def _judge_short(self, number: int, found: Mapping[str, str]) -> None:
        """A short row counts if it still says whom it is about, and the label."""
        if found["label"] and (found.get("file") or found.get("patient")):
            self.notes.add("fewer cells than the first line; the missing ones are empty", number)
        else:
            self.problems.add(
                f"fewer cells than the first line has columns ({self.width}), and no label", number
            )


def damaged(path: Path, problem: str) -> ConfigurationError:
    """Return the refusal of a table; its hint is the same for all, for it may stand in a log."""
    return ConfigurationError(f"{path}: {problem}", hint=HINT, code=CODE)


class _Rows:
    """The rows of a text with the line where each begins; a fault ends them and is kept."""

    def __init__(self, text: str, separator: str, first_line: int) -> None:
        self.fault = ""
        self.line = first_line
        self._reader = csv.reader(_lines(text), delimiter=separator, strict=True)
        self._first = first_line

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        while True:
            self.line = self._first + self._reader.line_num
            try:
                cells = next(self._reader)
            except StopIteration:
                return
            except (csv.Error, _LongLine):
                self.fault = FAULT
                return
            yield self.line, cells


class _LongLine(Exception):
    """A line of the file is longer than any table's."""


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a text; raises _LongLine for one that is no table's."""
    for line in io.StringIO(text, newline=""):
        if len(line) > MOST_LINE_CHARACTERS:
            raise _LongLine
        yield line


def open_table(
    path: Path, max_bytes: int, asked: Collection[str], renamed: Mapping[str, str]
) -> Table:
    """Return the table in `path`, of at most `max_bytes`, with its header read.

    `asked`: our columns that may occur; `label`, and `file` or `patient`, must. `renamed`: the
    hospital's names of columns, each with ours. Raises ConfigurationError (E-LABELS-FILE) with
    every problem of the header.
    """
    # (1, 2) text
    text, encoding = _decode(path, read_capped(path, max_bytes))
    text, separator, first_line = _without_separator_line(text)

    # (3) the separator that gives the most columns that are known
    ours = _OurColumns(asked, renamed)
    if separator is None:
        separator = _find_separator(text, ours)
    reader = _Rows(text, separator, first_line)
    _, names = next(iter(reader), (first_line, []))

    # (4) our columns
    columns, ignored = ours.find(names)
    # a quote that is not closed is one with any separator in front of it
    tried = [_first_row(text, one)[1] for one in SEPARATORS] if not columns else [reader.fault]
    if any(tried):
        raise damaged(path, f"line {first_line}: {FAULT}")
    form = f"{encoding}, separated by {SEPARATORS.get(separator, repr(separator))}"
    problems = list(ours.problems(names, columns))
    if problems:
        where = f"{path}: line {first_line}"
        lines = [f"{where}: {problem} ({form})" for problem in problems]
        raise ConfigurationError("\n".join(lines), problems=lines, hint=HINT, code=CODE)
    return Table(path, form, columns, ignored, len(names), reader)


def _decode(path: Path, data: bytes) -> tuple[str, str]:
    """The text and the name of its encoding; raises ConfigurationError for what is no text."""
    for head, name in WORKBOOKS.items():
        if data.startswith(head):
            raise ConfigurationError(
                f"{path}: {name}, not text",
                hint="save the sheet as `CSV UTF-8`, and name that file in data.labels_csv",
                code=CODE,
            )
    for codec, name in _encodings(data):
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text.removeprefix("\ufeff"), name
    raise damaged(path, "neither UTF-8, UTF-16 nor Windows-1252 text")


def _encodings(data: bytes) -> Iterator[tuple[str, str]]:
    """The encodings to try, in order; marks at the start come first."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        yield "utf-16", "UTF-16"
        return
    # Latin letters in UTF-16 have a zero in every other byte
    if data[1:2] == b"\0":
        yield "utf-16-le", "UTF-16"
    if data[:1] == b"\0":
        yield "utf-16-be", "UTF-16"
    yield "utf-8", "UTF-8"
    yield "cp1252", "Windows-1252"


def _without_separator_line(text: str) -> tuple[str, str | None, int]:
    """Excel's own first line `sep=;`: the text behind it, the separator, the header's line."""
    first, _, rest = text.partition("\n")
    first = first.strip("\r").strip('"')
    if len(first) == 5 and first.lower().startswith("sep=") and first[4] in SEPARATORS:
        return rest, first[4], 2
    return text, None, 1


def _find_separator(text: str, ours: _OurColumns) -> str:
    """The separator with which the first line names most of our columns, then most columns."""

    def worth(separator: str) -> tuple[int, int]:
        names, _ = _first_row(text, separator)
        return len(ours.find(names)[0]), len(names)

    return max(SEPARATORS, key=worth)


def _first_row(text: str, separator: str) -> tuple[list[str], str]:
    """The cells of the first line, and what is wrong with it."""
    rows = _Rows(text, separator, 1)
    _, names = next(iter(rows), (1, []))
    return names, rows.fault


class _OurColumns:
    """Finds our columns among a header's names. A name that site.yaml maps counts before ours."""

    def __init__(self, asked: Collection[str], renamed: Mapping[str, str]) -> None:
        self.asked = asked
        self.renamed = {plain(name): ours for name, ours in renamed.items() if ours in asked}
        self.spelled = {plain(name): name for name in renamed}

    def find(self, names: Sequence[str]) -> tuple[dict[int, str], tuple[str, ...]]:
        """Return our columns by place, and the names of the others that have one."""
        mapped = set(self.renamed.values())
        columns: dict[int, str] = {}
        ignored: list[str] = []
        for place, name in enumerate(names):
            key = plain(name)
            if key in self.renamed:
                columns[place] = self.renamed[key]
            elif key in self.asked and key not in mapped:
                columns[place] = key
            elif key:
                ignored.append(name)
        return columns, tuple(ignored)

    def problems(self, names: Sequence[str], columns: Mapping[int, str]) -> Iterator[str]:
        """Yield everything that is wrong with a header.

        Its names are said only where one of them is known: else it may be a row of patients.
        """
        found = list(columns.values())
        is_header = bool(found) or any(proposed_column(name) for name in names)
        for column in dict.fromkeys(found):
            if found.count(column) > 1:
                yield f"several columns are `{column}`; one must be"
        present = {plain(name) for name in names}
        for key, name in self.spelled.items():
            if key in self.renamed and key not in present:
                yield f"no column `{name}`, which data.columns of site.yaml names"
        missing = [] if "label" in found else ["`label`"]
        if not {"file", "patient"} & set(found):
            missing.append("`file` or `patient`")
        if not missing:
            return
        text = f"no column {', nor '.join(missing)}"
        if is_header:
            yield f"{text}, among {name_columns(names)}{self._proposal(names, found)}"
        else:
            yield f"{text}; the first line must name the columns"

    def _proposal(self, names: Sequence[str], found: Collection[str]) -> str:
        """What data.columns could say, made of names that often mean a column that is missing."""
        proposed: dict[str, str] = {}
        for name in names:
            column = proposed_column(name)
            if column in self.asked and column not in (*found, *proposed.values()):
                proposed[_shown(name)] = str(column)
        if not proposed:
            return ""
        pairs = ", ".join(f"{name}: {column}" for name, column in proposed.items())
        return f"; is it data.columns: {{{pairs}}}?"


def name_columns(names: Sequence[str]) -> str:
    """Return the names of columns as a message shows them: the first ones, shortened."""
    filled = [name for name in names if name.strip()]
    shown = ", ".join(f"`{_shown(name)}`" for name in filled[:MOST_NAMED])
    more = len(filled) - MOST_NAMED
    return f"{shown} and {more} more" if more > 0 else shown


def _shown(name: str) -> str:
    """One name, on one line and not too long."""
    text = " ".join(name.split())
    printable = "".join(sign for sign in text if sign.isprintable())
    return printable[:MOST_NAME_CHARACTERS]
