"""Makes the hospitals of `kohort demo` from public images or phantoms, and the public reference.

In: the plan, the hospitals' names, deploy/demo.
Out: one DICOM folder with its `Truth` for each hospital, and a `Reference`.
Guarantees: nobody is at two hospitals; the same call writes the same bytes; radiographs and
phantoms of the reference are of nobody at a hospital.
Not covered: a reference apart from the patients in the fundus study, whose photographs are few.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from common.errors import ConfigurationError
from common.storage.files import read_capped
from common.study.plan import Study, load_study
from server.demo.chest_hospitals import Radiographed, enlarge, write_chest_hospital
from server.demo.export import Truth
from server.demo.fundus_hospitals import write_hospital
from server.demo.vessel_hospitals import write_vessel_hospital
from server.public_data.phantoms import STYLES, patches, volume

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PRESETS = {"fundus": "fundus.yaml", "vessels": "vessels.yaml", "chest": "chest-demo.yaml"}
PATIENTS_A_SITE_AT_LEAST = 30
PHANTOMS_A_SITE = 60
REFERENCE_PATIENTS = 40
REFERENCE_PATCHES = 6
# of numpy's seed sequences; public pretraining draws from seed 0
HOSPITAL_STREAM = 2026
REFERENCE_STREAM = 2027
RADIOGRAPHS = DEPLOY / "demo" / "chest"
RADIOGRAPHS_CAP_BYTES = 16 << 20
RADIOGRAPH_REFERENCE = (
    "PneumoniaMNIST, validation split: public radiographs of nobody at a hospital"
)
PHANTOM_REFERENCE = (
    "phantoms: invented patients in the style of the hospitals', at no hospital, held out"
)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reference:
    """Public images, or image + mask pairs, to compare the release with.

    `name` is what the report calls them (empty: the path). `members` are the people at the
    hospitals, `heldout` people at none. Where both are known, the release is attacked and a
    classifier learns from it (server/evaluate/rehearsal_report.py).
    """

    path: Path
    name: str = ""
    members: Path | None = None
    heldout: Path | None = None


PHOTOGRAPHS = Reference(
    DEPLOY / "demo" / "fundus",
    members=DEPLOY / "demo" / "fundus",
    heldout=DEPLOY / "demo" / "fundus-heldout",
)


def preset_of(study: str) -> Path:
    """Return the preset's path.

    Raises ConfigurationError for a study without public images or phantoms.
    """
    if study not in PRESETS:
        raise ConfigurationError(
            f"--study {study}: there are no public images or phantoms for it",
            hint=f"expected one of: {', '.join(sorted(PRESETS))}",
        )
    return DEPLOY / "studies" / PRESETS[study]


def make_hospitals(
    preset: Path, folder: Path, names: Sequence[str], progress: Progress
) -> dict[str, Truth]:
    """Write one hospital a name below `folder` for this preset.

    `progress(done, total)` counts hospitals.
    """
    makers = {
        "fundus": photograph_hospitals,
        "chest": radiograph_hospitals,
        "vessels": phantom_hospitals,
    }
    return makers[load_study(preset).modality](folder, names, progress)


def photograph_hospitals(
    folder: Path, names: Sequence[str], progress: Progress
) -> dict[str, Truth]:
    """Write the fundus photographs as DICOM; with other than three sites they are dealt anew."""
    with open(DEPLOY / "demo" / "fundus" / "labels.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if len(rows) // len(names) < PATIENTS_A_SITE_AT_LEAST:
        most = len(rows) // PATIENTS_A_SITE_AT_LEAST
        raise ConfigurationError(
            f"--sites {len(names)}: the demo's photographs are enough for 2 to {most} hospitals"
        )
    hospitals = {}
    by_kind = sorted(rows, key=lambda r: (r["grade"], r["laterality"], r["file"]))
    for index, name in enumerate(names):
        own = (
            [r for r in rows if r["hospital"] == name]
            if len(names) == 3
            else by_kind[index :: len(names)]
        )
        crops = [
            (DEPLOY / "demo" / "fundus" / r["file"], int(r["grade"]), r["laterality"]) for r in own
        ]
        hospitals[name] = write_hospital(crops, folder / name, index)
        progress(index + 1, len(names))
    return hospitals


def radiograph_hospitals(
    folder: Path, names: Sequence[str], progress: Progress, patients: int | None = None
) -> dict[str, Truth]:
    """Write the chest radiographs as DX and CR, at most `patients` people a hospital.

    With other than three sites the people are dealt anew.
    """
    hospitals = {}
    for index, (name, own) in enumerate(_deal(names, patients).items()):
        hospitals[name] = write_chest_hospital(own, folder / name, index)
        progress(index + 1, len(names))
    return hospitals


def _deal(names: Sequence[str], patients: int | None) -> dict[str, list[Radiographed]]:
    """The people of each hospital, at most `patients`, taken evenly so that all labels stay."""
    people = radiographed_people()
    everyone = sorted((one for some in people.values() for one in some), key=lambda one: one.label)
    if len(everyone) // len(names) < PATIENTS_A_SITE_AT_LEAST:
        most = len(everyone) // PATIENTS_A_SITE_AT_LEAST
        raise ConfigurationError(
            f"--sites {len(names)}: the demo's radiographs are enough for 2 to {most} hospitals"
        )
    own = (
        people
        if len(names) == len(people)
        else {n: everyone[i :: len(names)] for i, n in enumerate(names)}
    )
    if patients is None:
        return {name: own[name] for name in names}
    return {name: own[name][:: max(1, len(own[name]) // patients)][:patients] for name in names}


def radiographed_people() -> dict[str, list[Radiographed]]:
    """Return the people of each of the demo's chest hospitals, in a mixed order that is always the
    same.
    """
    images, rows = _radiographs()
    mixed = np.random.default_rng(HOSPITAL_STREAM)
    found: dict[str, list[Radiographed]] = {}
    patients = [(row, i) for i, row in enumerate(rows) if row["person"]]
    for (hospital, _, label), some in groupby(
        patients, lambda p: (p[0]["hospital"], p[0]["person"], p[0]["label"])
    ):
        found.setdefault(hospital, []).append(
            Radiographed(tuple(images[i][..., 0] for _, i in some), label)
        )
    return {
        name: [people[i] for i in mixed.permutation(len(people))] for name, people in found.items()
    }


def _radiographs() -> tuple[np.ndarray, list[dict[str, str]]]:
    """uint8 images [N, 28, 28, 1] and their rows in labels.csv."""
    data = read_capped(RADIOGRAPHS / "radiographs.npz", RADIOGRAPHS_CAP_BYTES)
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        images = file["images"]
    with open(RADIOGRAPHS / "labels.csv", encoding="utf-8") as table:
        return images, list(csv.DictReader(table))


def phantom_hospitals(
    folder: Path, names: Sequence[str], progress: Progress, patients: int = PHANTOMS_A_SITE
) -> dict[str, Truth]:
    """Write MR series and vessel masks of `patients` invented people a hospital."""
    hospitals = {}
    for index, name in enumerate(names):
        rng = np.random.default_rng([HOSPITAL_STREAM, index])
        volumes = [volume(rng, STYLES["hospital"]) for _ in range(patients)]
        hospitals[name] = write_vessel_hospital(volumes, folder / name, index)
        progress(index + 1, len(names))
    return hospitals


def make_reference(study: Study, folder: Path, patients: int | None = None) -> Reference:
    """Return the reference of a study.

    It is the photographs, or an .npz in `folder` of held-out radiographs or fresh phantoms.
    `patients`: the limit that `radiograph_hospitals` was given.
    """
    if study.modality == "fundus":
        return PHOTOGRAPHS
    if study.modality == "chest":
        return radiograph_reference(
            folder, study.intake.size_px, [site.name for site in study.sites], patients
        )
    return phantom_reference(folder, study.intake.size_px)


def radiograph_reference(
    folder: Path, size_px: int, names: Sequence[str] | None = None, patients: int | None = None
) -> Reference:
    """Write held-out radiographs, and one of each person at the hospitals `names` (all three by
    default).

    Both pass the hospitals' enlargement and have one format: `images` uint8 [N, S, S, 1], `labels`
    and `names` [N]. The names are numbers. Of a person with several radiographs the first stands
    for all.
    """
    images, rows = _radiographs()
    others = [(images[i][..., 0], row["label"]) for i, row in enumerate(rows) if not row["person"]]
    dealt = _deal(names or list(radiographed_people()), patients)
    members = [(one.radiographs[0], one.label) for some in dealt.values() for one in some]
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "radiographs.npz", folder / "patients.npz"
    for path, some in zip(paths, (others, members), strict=True):
        small = np.stack([as_ingested(picture, size_px) for picture, _ in some])
        numbers = np.array([f"{i:04d}" for i in range(len(some))])
        np.savez(path, images=small, labels=np.array([label for _, label in some]), names=numbers)
    return Reference(paths[0], RADIOGRAPH_REFERENCE, members=paths[1], heldout=paths[0])


def as_ingested(radiograph: np.ndarray, size_px: int) -> np.ndarray:
    """Return uint8 [S, S, 1] of a uint8 [H, W] crop, as a hospital's ingest reads its DICOM file.
    """
    big = Image.fromarray(np.rint(255 * enlarge(radiograph)).astype(np.uint8))
    return np.asarray(big.resize((size_px, size_px), Image.Resampling.BICUBIC))[..., None]


def phantom_reference(folder: Path, size_px: int, patients: int = REFERENCE_PATIENTS) -> Reference:
    """Write pairs of invented patients of the hospitals' style who are at no hospital."""
    rng = np.random.default_rng(REFERENCE_STREAM)
    pairs = [
        patches(volume(rng, STYLES["hospital"]), REFERENCE_PATCHES, size_px, rng)
        for _ in range(patients)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "phantoms.npz"
    np.savez(
        path,
        pairs=np.concatenate(pairs),
        patient_of=np.repeat(np.arange(patients), REFERENCE_PATCHES),
    )
    return Reference(path, PHANTOM_REFERENCE)
