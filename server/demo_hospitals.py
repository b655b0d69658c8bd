"""Who plays the patients of `kohort demo`: public photographs or invented phantoms, and the public reference beside them.

In: the plan, the hospitals' names, deploy/demo. Out: one DICOM folder with `Truth` a hospital, and a `Reference` that belongs to
no hospital. Guaranteed: nobody plays at two hospitals; phantoms of the reference come from a stream of their own, so that nobody
in it is at a hospital or behind a starting checkpoint; the same call writes the same bytes. Not: real patients.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import ConfigurationError
from common.study import Study, load_study
from server.hospitals import Truth, write_hospital
from server.vessel_hospitals import write_vessel_hospital
from server.vessel_phantoms import STYLES, patches, volume

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
PHANTOM_STUDIES = ("vessels",)
PATIENTS_A_SITE_AT_LEAST = 30
PHANTOMS_A_SITE = 60
REFERENCE_PATIENTS, REFERENCE_PATCHES = 40, 6
HOSPITAL_STREAM, REFERENCE_STREAM = 2026, 2027  # of numpy's seed sequences; public pretraining draws from seed 0
PHANTOM_REFERENCE = "phantoms: invented patients in the style of the hospitals', at no hospital, held out"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reference:
    """Public images, or image + mask pairs, to compare the release with, and what the report calls them ("": the path)."""

    path: Path
    name: str = ""


PHOTOGRAPHS = Reference(DEPLOY / "demo" / "fundus")


def preset_of(study: str) -> Path:
    """Return the preset's path. Raises ConfigurationError for a study that nobody can play: no photographs, no phantoms."""
    able = [p.name for p in (DEPLOY / "demo").iterdir() if (DEPLOY / "studies" / f"{p.name}.yaml").is_file()]
    able = sorted({*able, *PHANTOM_STUDIES})
    if study not in able:
        raise ConfigurationError(
            f"--study {study}: no public photographs and no phantoms play its patients",
            hint=f"these can be rehearsed: {', '.join(able)}",
        )
    return DEPLOY / "studies" / f"{study}.yaml"


def make_hospitals(preset: Path, folder: Path, names: Sequence[str], progress: Progress) -> dict[str, Truth]:
    """Write one hospital a name below `folder` for this preset; `progress(done, total)` counts hospitals."""
    if load_study(preset).intake.volumes is None:
        return photograph_hospitals(folder, names, progress)
    return phantom_hospitals(folder, names, progress)


def photograph_hospitals(folder: Path, names: Sequence[str], progress: Progress) -> dict[str, Truth]:
    """DICOM around the fundus photographs; with other than three sites they are dealt anew."""
    with open(DEPLOY / "demo" / "fundus" / "labels.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if len(rows) // len(names) < PATIENTS_A_SITE_AT_LEAST:
        most = len(rows) // PATIENTS_A_SITE_AT_LEAST
        raise ConfigurationError(f"--sites {len(names)}: the demo's photographs are enough for 2 to {most} hospitals")
    hospitals = {}
    by_kind = sorted(rows, key=lambda r: (r["grade"], r["laterality"], r["file"]))
    for index, name in enumerate(names):
        own = [r for r in rows if r["hospital"] == name] if len(names) == 3 else by_kind[index :: len(names)]
        crops = [(DEPLOY / "demo" / "fundus" / r["file"], int(r["grade"]), r["laterality"]) for r in own]
        hospitals[name] = write_hospital(crops, folder / name, index)
        progress(index + 1, len(names))
    return hospitals


def phantom_hospitals(
    folder: Path, names: Sequence[str], progress: Progress, patients: int = PHANTOMS_A_SITE
) -> dict[str, Truth]:
    """MR series and vessel masks of `patients` invented people a hospital."""
    hospitals = {}
    for index, name in enumerate(names):
        rng = np.random.default_rng([HOSPITAL_STREAM, index])
        volumes = [volume(rng, STYLES["hospital"]) for _ in range(patients)]
        hospitals[name] = write_vessel_hospital(volumes, folder / name, index)
        progress(index + 1, len(names))
    return hospitals


def make_reference(study: Study, folder: Path) -> Reference:
    """Return the reference of a study: the photographs, or fresh phantoms written to `folder`/phantoms.npz."""
    return PHOTOGRAPHS if study.intake.volumes is None else phantom_reference(folder, study.intake.size_px)


def phantom_reference(folder: Path, size_px: int, patients: int = REFERENCE_PATIENTS) -> Reference:
    """Pairs of invented patients of the hospitals' style who are at no hospital."""
    rng = np.random.default_rng(REFERENCE_STREAM)
    pairs = [patches(volume(rng, STYLES["hospital"]), REFERENCE_PATCHES, size_px, rng) for _ in range(patients)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "phantoms.npz"
    np.savez(path, pairs=np.concatenate(pairs), patient_of=np.repeat(np.arange(patients), REFERENCE_PATCHES))
    return Reference(path, PHANTOM_REFERENCE)
