"""Writes the line counts of the promise pages: `python docs/promises/count_lines.py [--check]`.

In: the tables of docs/promises/*.md whose first cell is a file of the repository.
Out: each file's number of lines, blank lines and comments included, and each page's total.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "promises"
ROW = re.compile(r"^\| `([\w./-]+\.py)` \| [\d,]* *\|", re.MULTILINE)
TOTAL = re.compile(r"^\*\*[\d,]* lines in \d* files\.\*\*", re.MULTILINE)
ONE = re.compile(r"^(\| \[\d [^|]*\]\(([\w-]+\.md)\) \|) [\d,]* \| [\d,]* \|", re.MULTILINE)


def lines_of(name: str) -> int:
    """The number of lines of a file of the repository."""
    return len((ROOT / name).read_text(encoding="utf-8").splitlines())


def files_of(text: str) -> list[str]:
    """The files that a page's tables name, each once."""
    return list(dict.fromkeys(ROW.findall(text)))


def counted(text: str) -> str:
    """The page with current numbers."""
    files = files_of(text)
    total = sum(lines_of(name) for name in files)
    text = ROW.sub(lambda row: f"| `{row[1]}` | {lines_of(row[1]):,} |", text)
    return TOTAL.sub(f"**{total:,} lines in {len(files)} files.**", text)


def summarised(text: str) -> str:
    """The index with each page's number of files and lines."""

    def row(found: re.Match[str]) -> str:
        files = files_of((FOLDER / found[2]).read_text(encoding="utf-8"))
        return f"{found[1]} {len(files)} | {sum(map(lines_of, files)):,} |"

    return ONE.sub(row, text)


def outdated() -> dict[Path, str]:
    """The pages whose numbers are not current, with the text that they should have."""
    found = {}
    for path in sorted(FOLDER.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        new = summarised(text) if path.name == "index.md" else counted(text)
        if new != text:
            found[path] = new
    return found


def main() -> int:
    """Write the numbers, or name the pages that are not current."""
    stale = outdated()
    if "--check" in sys.argv[1:]:
        for path in stale:
            sys.stderr.write(f"{path.relative_to(ROOT)}: not current\n")
        return int(bool(stale))
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
