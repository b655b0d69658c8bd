"""Fetches images from a DICOMweb server into the site's sealed folder (WADO-RS).

In: site.yaml, the site's pseudonym key, a credential.
Out: sealed files (client/ingest/sealed.py), and counts for the site's own screen.
Guarantees: no image lies on the disk in clear; one that is there is not fetched again; images,
bytes of each and of all are bounded; one that the server does not give is counted, and the others
come.
Not covered: images that the server no longer has: they stay until the folder is removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from client.dicomweb.connection import Connection
from client.dicomweb.multipart import LeftOut
from client.dicomweb.query import find_instances
from client.ingest.sealed import SealedFolder
from client.state.config import SiteConfig
from common.errors import ConfigurationError, EnvironmentFault, disk_faults_named

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fetched:
    """How many images fit the query, were there before and came now; who is left out, and why."""

    found: int
    there: int
    came: int
    left_out: Mapping[str, int]

    def lines(self) -> Iterator[str]:
        """Yield what a person reads."""
        yield f"{self.found:,} images fit: {self.there:,} were here, {self.came:,} came now"
        for why, count in sorted(self.left_out.items()):
            yield f"left out: {count:,}: {why}"


@dataclass
class _Budget:
    """How many more bytes may come."""

    left: int
    words: str = field(default="dicomweb.max_gib of site.yaml is reached")

    def spend(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        for block in blocks:
            self.left -= len(block)
            if self.left < 0:
                raise EnvironmentFault(
                    f"DICOMweb: {self.words}",
                    hint="raise it, or narrow the query; what came stays, and is not fetched again",
                    code="E-DICOMWEB",
                )
            yield block


def fetch_images(
    config: SiteConfig, key: bytes, credential: str | None, progress: Progress
) -> Fetched:
    """Fetch what fits and is not there. Raises ConfigurationError and EnvironmentFault."""
    settings = config.dicomweb
    if settings.url is None:
        raise ConfigurationError(
            "site.yaml names no DICOMweb server",
            hint="name it in dicomweb.url, and what to ask for below it",
            code="E-DICOMWEB",
        )
    most = config.limits.max_file_mib << 20
    folder = SealedFolder.make(Path(config.data.folder), key)
    with folder.locked(), Connection(settings, credential) as connection:
        budget = _Budget(int(settings.max_gib * (1 << 30)) - folder.held_bytes())
        found = find_instances(connection, settings)
        there, came = 0, 0
        left_out: Counter[str] = Counter()
        for done, instance in enumerate(found, 1):
            if instance.name in folder:
                there += 1
            else:
                try:
                    _take(connection, folder, instance.name, instance.path, budget, most)
                    came += 1
                except LeftOut as why:
                    left_out[str(why)] += 1
            progress(done, len(found))
    return Fetched(len(found), there, came, left_out)


def _take(
    connection: Connection,
    folder: SealedFolder,
    name: str,
    path: str,
    budget: _Budget,
    most: int,
) -> None:
    """Fetch one image."""

    def take(blocks: Iterator[bytes]) -> None:
        with disk_faults_named("cannot seal an image", folder.folder):
            folder.add(name, budget.spend(blocks))

    connection.fetch(path, take, most)
