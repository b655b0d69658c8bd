"""The files of a request, decoded in a child process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from client.daemon.site import Site
from client.ingest.decode import decode_all
from client.ingest.quarantine import Reason
from client.ingest.request import Photograph, Settings
from client.single.flow import Flow
from common.arrays import Images
from common.errors import ConfigurationError
from common.study.plan import Study

DECODE_MEMORY_BYTES = 2 << 30
DECODE_TIMEOUT_S = 30.0
FILES_CAP = 100_000


@dataclass(frozen=True)
class Inputs:
    """The images that can be used, with their names, and the refused files with the reason."""

    names: tuple[str, ...]
    photographs: tuple[Photograph, ...]
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
    """Return the decoded files of a path; raises ConfigurationError if no image can be used."""
    paths = _list_files(source)
    names: list[str] = []
    photographs: list[Photograph] = []
    refused: list[tuple[str, Reason]] = []
    decoded = decode_all(paths, _decode_settings(site, study), 1)
    for path, outcome in zip(paths, decoded, strict=True):
        name = path.name
        if source.is_dir():
            name = str(path.relative_to(source))
        if isinstance(outcome, Photograph):
            names.append(name)
            photographs.append(outcome)
        else:
            refused.append((name, outcome))
    if not photographs:
        raise ConfigurationError(
            f"{source}: no image that can be used",
            problems=[f"{name}: {reason.value}: {reason.sentence}" for name, reason in refused],
        )
    return Inputs(tuple(names), tuple(photographs), tuple(refused))


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
    )
