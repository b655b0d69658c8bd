"""Makes the hospitals of `kohort demo` from public images or phantoms, and the public reference.

In: the plan, the hospitals' names, deploy/demo.
Out: one DICOM folder with its `Truth` for each hospital, and a `Reference`.
Guarantees: nobody is at two hospitals; the same call writes the same bytes; nobody in a reference
of radiographs or phantoms is at a hospital.
Not covered: a fundus reference of other people; its photographs are those of the patients.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

import numpy as np
from PIL import Image

from common.arrays import Pixels
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
DEALT_HOSPITALS = 3  # the hospitals that the demo's tables name
PATIENTS_A_SITE_AT_LEAST = 30
PHANTOMS_A_SITE = 60
REFERENCE_PATIENTS = 40
REFERENCE_PATCHES = 6
# seeds of the hospitals and of the reference; public pretraining draws from seed 0
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

    `name` is what the report calls them; if it is empty, the path. `members` are the people at the
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
    """Return the path of the study's plan.

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
    """Write one hospital for each name below `folder`, and return their truths.

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
    """Write the fundus photographs as DICOM.

    Three sites get the photographs of the demo's table; any other number shares them evenly.
    """
    # the table, which must have enough people
    with open(DEPLOY / "demo" / "fundus" / "labels.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if len(rows) // len(names) < PATIENTS_A_SITE_AT_LEAST:
        most = len(rows) // PATIENTS_A_SITE_AT_LEAST
        raise ConfigurationError(
            f"--sites {len(names)}: the demo's photographs are enough for 2 to {most} hospitals"
        )

    # each hospital gets every n-th person of each kind, or those that the table gives it
    hospitals = {}
    by_kind = sorted(rows, key=lambda r: (r["grade"], r["laterality"], r["file"]))
    for index, name in enumerate(names):
        own = by_kind[index :: len(names)]
        if len(names) == DEALT_HOSPITALS:
            own = [row for row in rows if row["hospital"] == name]
        crops = []
        for row in own:
            path = DEPLOY / "demo" / "fundus" / row["file"]
            crops.append((path, int(row["grade"]), row["laterality"]))
        hospitals[name] = write_hospital(crops, folder / name, index)
        progress(index + 1, len(names))
    return hospitals


def radiograph_hospitals(
    folder: Path, names: Sequence[str], progress: Progress, patients: int | None = None
) -> dict[str, Truth]:
    """Write the chest radiographs as DX and CR files.

    A hospital has at most `patients` people. Three sites get the people of the demo's table; any
    other number shares them evenly.
    """
    hospitals = {}
    for index, (name, own) in enumerate(_deal(names, patients).items()):
        hospitals[name] = write_chest_hospital(own, folder / name, index)
        progress(index + 1, len(names))
    return hospitals


def _deal(names: Sequence[str], patients: int | None) -> dict[str, list[Radiographed]]:
    """The people of each hospital, at most `patients`, taken evenly so that all labels stay."""
    # there must be enough people
    people = radiographed_people()
    everyone = sorted(chain.from_iterable(people.values()), key=lambda one: one.label)
    if len(everyone) // len(names) < PATIENTS_A_SITE_AT_LEAST:
        most = len(everyone) // PATIENTS_A_SITE_AT_LEAST
        raise ConfigurationError(
            f"--sites {len(names)}: the demo's radiographs are enough for 2 to {most} hospitals"
        )

    # each hospital gets every n-th person of each label, or those that the table gives it
    dealt = {}
    for index, name in enumerate(names):
        own = everyone[index :: len(names)]
        if len(names) == len(people):
            own = people[name]
        if patients is not None:
            own = own[:: max(1, len(own) // patients)][:patients]
        dealt[name] = own
    return dealt


def radiographed_people() -> dict[str, list[Radiographed]]:
    """Return the people of each of the demo's chest hospitals, in a fixed shuffled order."""
    # the radiographs of one person stand together in the table
    images, rows = _radiographs()
    found: dict[str, list[Radiographed]] = {}
    patients = [(row, image) for row, image in zip(rows, images, strict=True) if row["person"]]
    for (hospital, _, label), some in groupby(patients, _person_of):
        own = tuple(image[..., 0] for _, image in some)
        found.setdefault(hospital, []).append(Radiographed(own, label))

    # shuffle the people of each hospital
    random = np.random.default_rng(HOSPITAL_STREAM)
    shuffled = {}
    for name, people in found.items():
        shuffled[name] = [people[i] for i in random.permutation(len(people))]
    return shuffled


def _person_of(patient: tuple[dict[str, str], np.ndarray]) -> tuple[str, str, str]:
    """Hospital, person and label of a row with its radiograph."""
    row, _ = patient
    return row["hospital"], row["person"], row["label"]


def _radiographs() -> tuple[np.ndarray, list[dict[str, str]]]:
    """Images uint8 [N, 28, 28, 1] and their rows in labels.csv."""
    data = read_capped(RADIOGRAPHS / "radiographs.npz", RADIOGRAPHS_CAP_BYTES)
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        images = file["images"]
    with open(RADIOGRAPHS / "labels.csv", encoding="utf-8") as table:
        return images, list(csv.DictReader(table))


def phantom_hospitals(
    folder: Path, names: Sequence[str], progress: Progress, patients: int = PHANTOMS_A_SITE
) -> dict[str, Truth]:
    """Write MR series and vessel masks; each hospital has `patients` invented people."""
    hospitals = {}
    for index, name in enumerate(names):
        rng = np.random.default_rng([HOSPITAL_STREAM, index])
        volumes = [volume(rng, STYLES["hospital"]) for _ in range(patients)]
        hospitals[name] = write_vessel_hospital(volumes, folder / name, index)
        progress(index + 1, len(names))
    return hospitals


def make_reference(study: Study, folder: Path, patients: int | None = None) -> Reference:
    """Return the reference of a study.

    It is the photographs, or an .npz in `folder` of held-out radiographs or other phantoms.
    `patients` is the limit that `radiograph_hospitals` was given.
    """
    if study.modality == "fundus":
        return PHOTOGRAPHS
    if study.modality == "chest":
        names = [site.name for site in study.sites]
        return radiograph_reference(folder, study.intake.size_px, names, patients)
    return phantom_reference(folder, study.intake.size_px)


def radiograph_reference(
    folder: Path, size_px: int, names: Sequence[str] | None = None, patients: int | None = None
) -> Reference:
    """Write held-out radiographs, and the first of each person at the hospitals `names`.

    Without `names` these are all three hospitals of the table. Both files have `images` uint8
    [N, S, S, 1], as the hospitals ingest them, and `labels` and `names` [N]; the names are numbers.
    """
    # radiographs of nobody at a hospital
    images, rows = _radiographs()
    others = []
    for image, row in zip(images, rows, strict=True):
        if not row["person"]:
            others.append((image[..., 0], row["label"]))

    # one radiograph of each person at a hospital
    dealt = _deal(names or list(radiographed_people()), patients)
    people = chain.from_iterable(dealt.values())
    members = [(one.radiographs[0], one.label) for one in people]

    folder.mkdir(parents=True, exist_ok=True)
    heldout = folder / "radiographs.npz"
    at_hospitals = folder / "patients.npz"
    _write_radiographs(heldout, others, size_px)
    _write_radiographs(at_hospitals, members, size_px)
    return Reference(heldout, RADIOGRAPH_REFERENCE, members=at_hospitals, heldout=heldout)


def _write_radiographs(path: Path, some: Sequence[tuple[Pixels, str]], size_px: int) -> None:
    """Write radiographs with their labels, named by number."""
    small = np.stack([as_ingested(picture, size_px) for picture, _ in some])
    labels = np.array([label for _, label in some])
    numbers = np.array([f"{i:04d}" for i in range(len(some))])
    np.savez(path, images=small, labels=labels, names=numbers)


def as_ingested(radiograph: np.ndarray, size_px: int) -> np.ndarray:
    """Return a uint8 [H, W] crop as uint8 [S, S, 1], as a hospital ingests its file."""
    big = Image.fromarray(np.rint(255 * enlarge(radiograph)).astype(np.uint8))
    return np.asarray(big.resize((size_px, size_px), Image.Resampling.BICUBIC))[..., None]


def phantom_reference(folder: Path, size_px: int, patients: int = REFERENCE_PATIENTS) -> Reference:
    """Write pairs of invented patients of the hospitals' style who are at no hospital."""
    rng = np.random.default_rng(REFERENCE_STREAM)
    pairs = []
    for _ in range(patients):
        phantom = volume(rng, STYLES["hospital"])
        pairs.append(patches(phantom, REFERENCE_PATCHES, size_px, rng))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "phantoms.npz"
    patient_of = np.repeat(np.arange(patients), REFERENCE_PATCHES)
    np.savez(path, pairs=np.concatenate(pairs), patient_of=patient_of)
    return Reference(path, PHANTOM_REFERENCE)
