"""What is known of a release since it was published: that it was withdrawn, or superseded.

In: a release's digest, name and version; the catalogues that this user saw.
Out: notices, each with who says so and when that was seen. Nothing is fetched here.
Guarantees: a withdrawal counts by the digest of SHA256SUMS, so it is about these very bytes.
Not covered: a catalogue that this user never saw.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kohort.catalogue import REASONS, version_order
from kohort.console import plain
from kohort.errors import KohortError, RefusedError
from kohort.files import file_digest
from kohort.layout import SUMS
from kohort.manifest import Manifest
from kohort.seen import Seen, read_seen

WITHDRAWN = "E-WITHDRAWN"
Kind = Literal["withdrawn", "superseded"]


@dataclass(frozen=True)
class Notice:
    """One fact about a release: its kind, a sentence, the catalogue's address, when it was seen."""

    kind: Kind
    text: str
    url: str
    seen: str

    @property
    def line(self) -> str:
        """What a person reads."""
        return f"{self.text} (says {self.url}, seen {self.seen[:10]})"


def known_notices(
    folder: Path, manifest: Manifest, seen: Sequence[Seen] | None = None
) -> list[Notice]:
    """Return what the catalogues say of the release in `folder`, withdrawals first.

    `seen` None: those in the cache of this user.
    """
    catalogues = read_seen() if seen is None else seen
    found = list(_of_catalogues(file_digest(folder / SUMS), manifest, catalogues))
    return sorted(found, key=lambda one: one.kind != "withdrawn")


def _of_catalogues(digest: str, manifest: Manifest, seen: Iterable[Seen]) -> Iterable[Notice]:
    """Yield each catalogue's word on it."""
    title = f"{manifest.name} {manifest.version}"
    for one in seen:
        newest = one.catalogue.newest(manifest.name)
        for gone in one.catalogue.withdrawn:
            if gone.sums == digest:
                why = f"{REASONS[gone.reason]}: {gone.sentence}"
                text = f"{title} was WITHDRAWN on {gone.date}: {why}"
                if newest is not None:
                    text += f"; {newest.name} {newest.version} is offered"
                yield Notice("withdrawn", text, one.url, one.seen)
        entry = one.catalogue.find(manifest.name, manifest.version)
        if entry is None or entry.sums != digest or newest is None:
            continue
        if version_order(newest.version) > version_order(entry.version):
            text = f"{title} is superseded by {newest.name} {newest.version}"
            yield Notice("superseded", text, one.url, one.seen)


def warn_of_notices(release: Path, manifest: Manifest, *, strict: bool = False) -> None:
    """Say on standard error what the catalogues seen last know of a release.

    With `strict` one that is known as withdrawn is refused: RefusedError (E-WITHDRAWN).
    """
    try:
        found = known_notices(release, manifest)
    except KohortError as error:
        sys.stderr.write(plain(f"kohort: warning: {error}\n"))
        return
    for one in found:
        if strict and one.kind == "withdrawn":
            raise RefusedError(
                f"{release}: {one.line}",
                hint="use another version, and stop using this copy",
                code=WITHDRAWN,
            )
        sys.stderr.write(plain(f"kohort: warning: {one.line}\n"))
