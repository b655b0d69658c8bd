"""The commands of the guides as they are printed there, for machines that do them one by one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.docs.transcripts import FENCE, below, steps_of

DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True)
class Guide:
    """One page; every command in it is found by how it begins."""

    text: str

    @classmethod
    def read(cls, page: str) -> Guide:
        """Return a page of docs/."""
        return cls((DOCS / page).read_text())

    def commands(self) -> list[str]:
        """Return all commands that a reader sees, in order; also those that the page's own test
        does not run.
        """
        found = []
        for match in FENCE.finditer(self.text):
            if match["kind"] == "console":
                found += [step.command for step in steps_of(match["body"], 0, 0)]
        return found

    def command(self, begin: str, folder: Path, site: str = "hospital-a") -> str:
        """Return the one command that is this or begins so, for a site.

        Its absolute paths are below `folder`.
        """
        commands = self.commands()
        found = [one for one in commands if one == begin]
        if not found:
            found = [one for one in commands if one.startswith(begin)]
        assert len(found) == 1, f"{begin}: expected once, got {found}"
        return below(folder, found[0].replace("hospital-a", site))

    def line(self, begin: str) -> str:
        """Return the one line of a YAML block that begins so."""
        blocks = [match["body"] for match in FENCE.finditer(self.text) if match["kind"] == "yaml"]
        found = re.findall(rf"^ *{re.escape(begin)}.*$", "\n".join(blocks), re.MULTILINE)
        assert len(found) == 1, f"{begin}: expected once, got {found}"
        return str(found[0])
