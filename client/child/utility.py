"""What a release of pairs is worth to this hospital: trained on the release, tested on its own cohort. The result stays here.

In: a release folder, the site's state folder. Out: a `SiteUtility` for the people of this hospital, kept in
utility/<plan>-<version>.json of the state folder. Guaranteed: the release verifies first, signed by this site's operator; the
network is trained and chosen on released pairs alone and the cohort is opened once, afterwards; nothing is sent, and nothing is
written outside the state folder. Not: private (the numbers come from patients and must not leave without thought); whether
patients whose updates trained the generator are like new ones (they are these very patients).

  1. Verify the release.  2. Find its plan among those approved here, and the plan's cohort.  3. Read the pairs.
  4. Train on them.  5. Open the cohort.  6. Keep the result.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from client.ingest.cohort import Cohort
from client.state.folder import State
from client.state.plans import Plans
from common.arrays import Pairs
from common.errors import ConfigurationError, RefusedError
from common.measure import pair_utility as utility
from common.storage.files import atomic_write, read_capped
from common.wire import signing
from kohort import layout, verification

TABLE_CAP_BYTES, PICTURE_CAP_BYTES = 1 << 26, 1 << 22


@dataclass(frozen=True)
class SiteUtility:
    """The result, for this hospital's eyes: distances in pixels, `plan` and `version` of the release."""

    plan: str
    version: str
    pairs: int
    result: utility.Utility

    def lines(self) -> Iterator[str]:
        """Yield what a person reads."""
        found, (low, high) = self.result, self.result.dsc_interval
        yield f"release {self.version} of plan {self.plan[:12]}: trained on {self.pairs} pairs, tested on this cohort"
        yield f"  DSC                          {found.dsc:.3f}   (95 % interval {low:.3f} to {high:.3f}, over patients)"
        yield f"  balanced average Hausdorff   {found.bahd_mm:.2f} pixels"
        yield f"  95 % Hausdorff               {found.hd95_mm:.2f} pixels"
        yield f"  chosen on released pairs alone: epoch {found.epoch}, DSC {found.validation_dsc:.3f} there"
        yield "these numbers come from this hospital's patients: they stay here and nothing was sent"


def recipe(*, full: bool) -> utility.Recipe:
    """Return how the network is trained: the published recipe, or one for a processor."""
    return utility.Recipe() if full else utility.SMALL


def measure_release(
    release: Path,
    place: State,
    plans: Plans,
    *,
    recipe: utility.Recipe = utility.SMALL,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SiteUtility:
    """Return what the release is worth on this site's cohort, after keeping it in the state folder.

    Raises RefusedError (the release does not verify), PolicyError (its plan is not approved here), ConfigurationError (it
    holds no pairs, or the cohort is not there).
    """
    found = verification.verify(release, trust=signing.public_text(plans.operator))  # 1
    study = plans.open(found.study)  # 2
    folder = place.cohort(study.intake)
    if study.intake.volumes is None:
        raise ConfigurationError(
            f"{release}: its plan makes images without masks",
            hint="utility needs image + mask pairs",
        )
    if not folder.is_dir():
        raise ConfigurationError(
            "there is no cohort of this plan", hint=f"kohort-site ingest --state {place.root}"
        )
    pairs = read_pairs(release, study.intake.size_px)  # 3
    segmenter = utility.fit(pairs, recipe, seed, progress=progress)  # 4
    cohort = Cohort.open(folder)
    result = utility.measure(
        segmenter, np.asarray(cohort.images), cohort.patient_of, seed=seed
    )  # 5
    site = SiteUtility(found.study, found.version, len(pairs), result)
    _keep(site, place)  # 6
    return site


def read_pairs(release: Path, size_px: int) -> Pairs:
    """Return the pairs uint8 [N, S, S, 2] of a verified release, in the order of its table; raises RefusedError."""
    table = read_capped(release / "metadata.csv", TABLE_CAP_BYTES).decode("utf-8", "replace")
    rows = [
        (row.get("file_name") or "", row.get("mask") or "")
        for row in csv.DictReader(io.StringIO(table))
    ]
    if not rows or not all(name and mask for name, mask in rows):
        raise ConfigurationError(
            f"{release}: a release without masks", hint="utility needs image + mask pairs"
        )
    pairs = [np.stack([_picture(release, name, size_px) for name in row], axis=-1) for row in rows]
    return np.stack(pairs)


def _picture(release: Path, name: str, size_px: int) -> NDArray[np.uint8]:
    """One grey picture [S, S]; only names that a release may hold are opened."""
    if not layout.allowed_name(name):
        raise RefusedError(f"metadata.csv: {name!r} is no name of a picture in a release")
    data = read_capped(release / name, PICTURE_CAP_BYTES)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (size_px, size_px) or image.mode != "L":
                raise RefusedError(
                    f"{name}: {image.size} of mode {image.mode}, expected {size_px} x {size_px} grey"
                )
            return np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise RefusedError(f"{name}: not a PNG that can be read") from error


def _keep(site: SiteUtility, place: State) -> None:
    """The result in the state folder, readable by the site's account alone."""
    folder = place.root / "utility"
    folder.mkdir(exist_ok=True, mode=0o700)
    data = json.dumps(asdict(site), indent=1, sort_keys=True) + "\n"
    atomic_write(folder / f"{site.plan[:12]}-{site.version}.json", data.encode(), mode=0o600)
