"""The rooms of the house: every package and the sentence of its own docstring, for README."""

from __future__ import annotations

import ast

from docs.generator.markdown import table
from docs.generator.sources import ROOT, package_files

PACKAGES = ("client", "server", "common", "kohort", "benchmarks/paper")
BEGIN = "<!-- rooms: written by `python -m docs.generator` -->"
END = "<!-- end of rooms -->"


def rooms() -> dict[str, str]:
    """Return each package's folder with its whole docstring on one line."""
    found = {}
    for package in PACKAGES:
        for path in package_files(package, "__init__.py"):
            doc = ast.get_docstring(ast.parse(path.read_text()))
            found[path.parent.relative_to(ROOT).as_posix()] = " ".join((doc or "").split())
    return found


def with_rooms(readme: str) -> str:
    """Return README's text with the table of rooms as the sources say it."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = [(f"`{name}/`", sentence) for name, sentence in rooms().items()]
    lines = table(("Room", "What it is for, and what it never does"), rows)
    return "\n".join([f"{before}{BEGIN}", *lines, f"{END}{after}"])
