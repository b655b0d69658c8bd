"""Which images a DICOMweb server has of what site.yaml asks for (QIDO-RS).

In: a connection, the section `dicomweb` of site.yaml. Out: an `Instance` each, sorted.
Guarantees: studies, their series, their images, each in pages, each once; UIDs are digits and dots,
so none leads elsewhere in an address; more than site.yaml allows is refused.
Not covered: whether the server tells all; what the images are, which the intake looks at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.dicomweb.connection import Connection
from client.state.dicomweb import Dicomweb
from common.errors import ConfigurationError, EnvironmentFault
from common.storage.files import read_capped

PAGE = 500
STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
MODALITY, BODY_PART = "00080060", "00180015"
UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*\Z")
STUDIES_CAP_BYTES = 64 << 20


@dataclass(frozen=True, order=True)
class Instance:
    """One image, by its UIDs."""

    study: str
    series: str
    instance: str

    @property
    def name(self) -> str:
        """How a labels file names it."""
        return f"{self.study}/{self.series}/{self.instance}"

    @property
    def path(self) -> str:
        """Where it lies below the server's address."""
        return f"studies/{self.study}/series/{self.series}/instances/{self.instance}"


def find_instances(connection: Connection, settings: Dicomweb) -> list[Instance]:
    """Return what fits, sorted. Raises EnvironmentFault and ConfigurationError."""
    found: set[Instance] = set()
    for study in sorted(_studies(connection, settings)):
        for series in sorted(_series(connection, settings, study)):
            path = f"studies/{study}/series/{series}/instances"
            pages = _pages(connection, path, {}, INSTANCE, settings.max_instances)
            found |= {Instance(study, series, uid) for uid in pages}
            if len(found) > settings.max_instances:
                raise _too_many(settings.max_instances)
    return sorted(found)


def read_studies(path: Path) -> set[str]:
    """Return the UIDs in a file, one a line; raises ConfigurationError, which quotes none."""
    lines = read_capped(path, STUDIES_CAP_BYTES).decode("utf-8-sig", "replace").splitlines()
    found: set[str] = set()
    for number, line in enumerate(lines, 1):
        uid = line.strip()
        if uid and UID.match(uid) is None:
            raise ConfigurationError(
                f"{path}: line {number}: not a StudyInstanceUID",
                hint="one UID a line, digits and dots, at most 64",
                code="E-DICOMWEB",
            )
        found |= {uid} - {""}
    return found


def _studies(connection: Connection, settings: Dicomweb) -> set[str]:
    """The studies that are asked for."""
    if settings.studies_file is not None:
        return read_studies(Path(settings.studies_file))
    days = [day and f"{day:%Y%m%d}" for day in (settings.from_date, settings.to_date)]
    keys = {}
    if any(days):
        keys["StudyDate"] = f"{days[0] or ''}-{days[1] or ''}"
    found: set[str] = set()
    for modality in settings.modalities or ("",):
        if modality:
            keys["ModalitiesInStudy"] = modality
        found |= _pages(connection, "studies", keys, STUDY, settings.max_instances).keys()
    return found


def _series(connection: Connection, settings: Dicomweb, study: str) -> Iterator[str]:
    """The series of a study that fit; what the server does not tell of one fits."""
    keys = {"includefield": BODY_PART}
    path = f"studies/{study}/series"
    pages = _pages(connection, path, keys, SERIES, settings.max_instances)
    for uid, facts in pages.items():
        if _fits(facts, MODALITY, settings.modalities) and _fits(
            facts, BODY_PART, settings.body_parts
        ):
            yield uid


def _fits(facts: Mapping[str, Any], tag: str, wanted: tuple[str, ...]) -> bool:
    """Whether a value is wanted, or is not told."""
    value = value_of(facts, tag)
    return not wanted or not value or value.strip().upper() in wanted


def _pages(
    connection: Connection, path: str, keys: Mapping[str, str], tag: str, most: int
) -> dict[str, Mapping[str, Any]]:
    """Everything that a query gives, by UID; until a page brings nothing new."""
    found: dict[str, Mapping[str, Any]] = {}
    offset = 0
    while True:
        page = connection.query(path, {**keys, "limit": str(PAGE), "offset": str(offset)})
        known = len(found)
        for facts in page:
            found[uid_of(facts, tag)] = facts
        if len(found) > most:
            raise _too_many(most)
        if len(found) == known:
            if len(page) == PAGE and offset == PAGE:
                raise EnvironmentFault(
                    f"DICOMweb: the server gives its first {PAGE} answers alone, again and again",
                    hint="narrow the query: list the studies in dicomweb.studies_file",
                    code="E-DICOMWEB",
                )
            return found
        offset += len(page)


def uid_of(facts: Any, tag: str) -> str:
    """Return a UID of an answer; raises EnvironmentFault where there is none."""
    uid = value_of(facts, tag)
    if UID.match(uid) is None:
        raise EnvironmentFault(
            "DICOMweb: an answer to a query holds no UID, or none that is one",
            hint="ask whoever runs the server",
            code="E-DICOMWEB",
        )
    return uid


def value_of(facts: Any, tag: str) -> str:
    """Return the first value of an attribute in the JSON model of DICOM; empty where none is."""
    element = facts.get(tag) if isinstance(facts, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    first = values[0] if isinstance(values, list) and values else None
    return first if isinstance(first, str) else ""


def _too_many(most: int) -> EnvironmentFault:
    return EnvironmentFault(
        f"DICOMweb: more than {most:,} fit the query",
        hint="narrow the query, or raise dicomweb.max_instances in site.yaml",
        code="E-DICOMWEB",
    )
