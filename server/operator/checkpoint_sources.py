"""Which public sources a plan's checkpoints know, as their files say."""

from __future__ import annotations

from pathlib import Path

from common.study.plan import Study
from common.wire.tensors import SOURCE, metadata

LONGEST_TEXT = 400
MOST_SOURCES = 20


def public_sources(study: Study, folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the sources that each checkpoint of a plan in `folder` names, by its file.

    A checkpoint that names none is left out. What is not printable becomes a question mark. Raises
    RefusedError for a file that is no checkpoint.
    """
    found = {}
    for checkpoint in study.checkpoints():
        texts = metadata(folder / checkpoint.file)
        named = []
        for number in range(1, MOST_SOURCES + 1):
            text = texts.get(f"{SOURCE} {number}")
            if text is not None:
                named.append(_as_line(text))
        if named:
            found[checkpoint.file] = tuple(named)
    return found


def _as_line(text: str) -> str:
    """The text as one printable line of at most LONGEST_TEXT characters."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[:LONGEST_TEXT])
    return shown if len(text) <= LONGEST_TEXT else shown + " …"
