"""The files of a request, decoded in a child process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from client.daemon.site import Site
from client.ingest.decode import decode_all
from client.ingest.quarantine import Reason
from client.ingest.refresh import choices_of
from client.ingest.request import Photograph, Settings, Wanted
from client.ingest.whose import Names, find_owners
from client.single.flow import Flow
from common.arrays import Images
from common.errors import ConfigurationError
from common.study.plan import Study

DECODE_MEMORY_BYTES = 2 << 30
DECODE_TIMEOUT_S = 30.0
FILES_CAP = 100_000


@dataclass(frozen=True)
class Inputs:
    """The images that can be used, with their names, and the refused files with the reason.

    `owners`: every name of each image's person, () where nobody is known.
    """

    names: tuple[str, ...]
    photographs: tuple[Photograph, ...]
    owners: tuple[Names, ...]
    refused: tuple[tuple[str, Reason], ...]

    @property
    def images(self) -> list[Images]:
        """The pixels of each image."""
        return [photograph.pixels for photograph in self.photographs]

    def unknown_to(self, flow: Flow) -> tuple[str, ...]:
        """Return the names of the images that the flow cannot encode."""
        found = []
        for name, image in zip(self.names, self.images, strict=True):
            if not flow.can_encode(image):
                found.append(name)
        return tuple(found)


def read_inputs(source: Path, site: Site, study: Study) -> Inputs:
    """Return the decoded files of a path; those of persons who withdrew are refused.

    Raises ConfigurationError if no image can be used.
    """
    paths = _list_files(source)
    decoded = list(decode_all(paths, _decode_settings(site, study), 1))
    shown = [path for path, one in zip(paths, decoded, strict=True) if isinstance(one, Photograph)]
    photographs = [one for one in decoded if isinstance(one, Photograph)]
    owners = find_owners(photographs, shown, study.intake, site.state, site.config)
    people = site.records.people().read()
    owner_of = dict(zip(shown, owners, strict=True))
    used: list[tuple[str, Photograph, Names]] = []
    refused: list[tuple[str, Reason]] = []
    for path, outcome in zip(paths, decoded, strict=True):
        name = _name_of(path, source)
        if not isinstance(outcome, Photograph):
            refused.append((name, outcome))
        elif people.has_withdrawn(owner_of[path]):
            refused.append((name, Reason.WITHDRAWN))
        else:
            used.append((name, outcome, owner_of[path]))
    if not used:
        raise ConfigurationError(
            f"{source}: no image that can be used",
            problems=[f"{name}: {reason.value}: {reason.sentence}" for name, reason in refused],
        )
    names, kept, of = zip(*used, strict=True)
    return Inputs(names, kept, of, tuple(refused))


def _name_of(path: Path, source: Path) -> str:
    """Return a file's name as a person reads it."""
    if source.is_dir():
        return str(path.relative_to(source))
    return path.name


def _list_files(source: Path) -> list[Path]:
    """Return the file, or all files of the folder in order of their names."""
    if not source.exists():
        raise ConfigurationError(
            f"{source}: no such file or folder", hint="IN names an image or a folder of images"
        )
    paths = [source]
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.is_file())
    if not 1 <= len(paths) <= FILES_CAP:
        raise ConfigurationError(f"{source}: {len(paths)} files, expected 1 to {FILES_CAP:,}")
    return paths


def _decode_settings(site: Site, study: Study) -> Settings:
    """Return the plan's intake rules under this site's limits."""
    intake = study.intake
    choices = choices_of(site.config.data)
    cap_bytes = site.config.limits.max_file_mib << 20
    return Settings(
        intake.size_px,
        intake.channels,
        intake.dicom_modalities,
        intake.window,
        cap_bytes,
        cap_bytes,
        DECODE_MEMORY_BYTES,
        DECODE_TIMEOUT_S,
        wanted=Wanted.of(intake),
        choices=choices,
    )
