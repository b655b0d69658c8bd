"""Writes docs/reference/*.md and the rooms of README; with `--check`, names what is not current.

.venv/bin/python -m docs.generator [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from docs.generator.codes import errors_page, exit_codes_page, health_page, reasons_page
from docs.generator.commands import command_pages
from docs.generator.inputs import inputs_page
from docs.generator.keys import server_page, site_page, study_page
from docs.generator.metrics import metrics_page
from docs.generator.rooms import ROOT, with_rooms
from docs.generator.status import status_page

REFERENCE = "docs/reference"
README = "README.md"
PAGES: dict[str, Callable[[], str]] = {
    "study-yaml.md": study_page,
    "site-yaml.md": site_page,
    "server-yaml.md": server_page,
    "inputs.md": inputs_page,
    "errors.md": errors_page,
    "reasons.md": reasons_page,
    "health.md": health_page,
    "exit-codes.md": exit_codes_page,
    "status.md": status_page,
    "metrics.md": metrics_page,
}


def pages() -> dict[str, str]:
    """Return the text of every generated page of the reference, by its file name."""
    return {name: build() for name, build in PAGES.items()} | command_pages()


def files() -> dict[str, str]:
    """Return the text of everything that is generated, by its path below the root."""
    found = {f"{REFERENCE}/{name}": text for name, text in pages().items()}
    found[README] = with_rooms((ROOT / README).read_text())
    return found


def stale() -> Iterator[str]:
    """Yield the paths whose text is not what the sources say."""
    for name, text in files().items():
        path = ROOT / name
        if not path.is_file() or path.read_text() != text:
            yield name


def main() -> None:
    """Write everything, or name what is not current."""
    if "--check" in sys.argv[1:]:
        found = list(stale())
        sys.stdout.writelines(f"{name} is not current\n" for name in found)
        sys.exit(1 if found else 0)
    for name, text in files().items():
        (ROOT / name).write_text(text)


if __name__ == "__main__":
    main()
