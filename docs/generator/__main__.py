"""Writes docs/reference/*.md; with `--check`, names the pages that are not current.

.venv/bin/python -m docs.generator [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from docs.generator.codes import REFERENCE, errors_page, exit_codes_page, health_page, reasons_page
from docs.generator.commands import command_pages
from docs.generator.inputs import inputs_page
from docs.generator.keys import server_page, site_page, study_page

PAGES: dict[str, Callable[[], str]] = {
    "study-yaml.md": study_page,
    "site-yaml.md": site_page,
    "server-yaml.md": server_page,
    "inputs.md": inputs_page,
    "errors.md": errors_page,
    "reasons.md": reasons_page,
    "health.md": health_page,
    "exit-codes.md": exit_codes_page,
}


def pages() -> dict[str, str]:
    """Return every generated page by its file name."""
    return {name: build() for name, build in PAGES.items()} | command_pages()


def stale() -> Iterator[str]:
    """Yield the pages that are not what the sources say."""
    for name, text in pages().items():
        path = REFERENCE / name
        if not path.is_file() or path.read_text() != text:
            yield name


def main() -> None:
    """Write the pages, or name those that are not current."""
    if "--check" in sys.argv[1:]:
        found = list(stale())
        sys.stdout.writelines(f"docs/reference/{name} is not current\n" for name in found)
        sys.exit(1 if found else 0)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text)


if __name__ == "__main__":
    main()
