"""The patients of benchmarks/quality_vessels.py: procedural phantoms, and DIAS sequences.

In: a `Setting`; for DIAS the folder of dias_dsa_patches_96.npz.
Out: a `Part`, pairs [P, n, S, S, 2] by role. Arrays are kept in the work folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.arrays import Pairs
from server.public_data.phantoms import STYLES, patches, volume

SIZE_PX = 32
SHAPE = (8, 48, 48)
DIAS_FILE = "dias_dsa_patches_96.npz"
Show = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """What is public and equal for all rows of one part."""

    patients: int  # that train, over all sites
    sites: int
    test_patients: int
    public_patients: int
    patches: int  # a patient
    plain_steps: int
    rounds: int
    local_steps: int
    patients_per_step: int
    pairs: int  # that a segmentation network is trained on, in every row
    epochs: int
    architecture: str = "small"


PHANTOMS = Setting(2000, 4, 150, 300, 8, 3000, 10, 20, 32, 1000, 8)
DIAS = Setting(40, 1, 20, 300, 24, 1500, 10, 20, 16, 1000, 8)
QUICK = Setting(40, 2, 10, 10, 4, 40, 2, 2, 8, 60, 2)


@dataclass(frozen=True)
class Part:
    """One data set: pairs [P, n, S, S, 2] of the training and of the held-out test patients, and of
    the public ones.
    """

    name: str
    setting: Setting
    train: Pairs
    test: Pairs
    public: Pairs


def phantoms(style: str, patients: int, per_patient: int, seed: int, show: Show) -> Pairs:
    """Pairs uint8 [P, n, 32, 32, 2] of procedural patients."""
    made = []
    for i in range(patients):
        rng = np.random.default_rng([seed, i])
        made.append(
            patches(volume(rng, STYLES[style], SHAPE, magnify=1), per_patient, SIZE_PX, rng)
        )
        if i % 50 == 49:
            show(f"{style} phantoms: {i + 1} of {patients}")
    return np.stack(made)


def phantom_part(setting: Setting, work: Path, show: Show) -> Part:
    """The procedural patients of two styles."""
    train = load_or_make(
        work / "train.npz", lambda: phantoms("hospital", setting.patients, setting.patches, 3, show)
    )
    test = load_or_make(
        work / "test.npz",
        lambda: phantoms("hospital", setting.test_patients, setting.patches, 2, show),
    )
    return Part("phantoms", setting, train, test, public_pairs(setting, work, show))


def dias_part(setting: Setting, work: Path, folder: Path, show: Show) -> Part:
    """Centre crops at half resolution, vessels turned bright; split by sequence, as the
    set itself says.
    """
    with np.load(folder / DIAS_FILE, allow_pickle=False) as data:
        images = data["images"]
        masks = data["vessel_masks"]
        sequence = data["sequence"]
        held_out = data["split"] == "test"
    images = 255 - images.reshape(len(images), *images.shape[1:3])
    pairs = np.stack(
        [halve(images), (halve((masks > 0) * np.uint8(255)) >= 128) * np.uint8(255)], -1
    )
    edge = (pairs.shape[1] - SIZE_PX) // 2
    pairs = pairs[:, edge : edge + SIZE_PX, edge : edge + SIZE_PX]

    def of(chosen: NDArray[np.bool_]) -> Pairs:
        return np.stack(
            [pairs[sequence == s][: setting.patches] for s in np.unique(sequence[chosen])]
        )

    return Part("dias", setting, of(~held_out), of(held_out), public_pairs(setting, work, show))


def public_pairs(setting: Setting, work: Path, show: Show) -> Pairs:
    """Phantoms of the public style."""
    return load_or_make(
        work.parent / "public.npz", lambda: phantoms("public", setting.public_patients, 8, 1, show)
    )


def halve(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, H, W] averaged over 2x2 pixels."""
    n, h, w = images.shape
    found: NDArray[np.uint8] = (
        images.reshape(n, h // 2, 2, w // 2, 2).mean((2, 4)).round().astype(np.uint8)
    )
    return found


def load_or_make(path: Path, make: Callable[[], Pairs]) -> Pairs:
    """An array from `path`, or made and written there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, pairs=make())
        part.rename(path)
    with np.load(path, allow_pickle=False) as file:
        found: Pairs = file["pairs"]
    return found


def flat(pairs: Pairs) -> Pairs:
    """[P, n, ...] as [P*n, ...]."""
    return pairs.reshape(-1, *pairs.shape[2:])
