"""What a release of pairs is worth to this hospital: trained on it, tested on its own cohort.

In: a release folder, the site's state folder.
Out: a `SiteUtility` for the people of this hospital, kept in utility/ of the state folder.
Steps:
  1 verify the release, signed by this site's operator
  2 find its plan among those approved here, and the plan's cohort
  3 read the pairs
  4 train and choose the network on them alone
  5 open the cohort once, and test
  6 keep the result
Guarantees: nothing is sent, and nothing is written outside the state folder.
Not covered: privacy. The numbers come from patients and must not leave without thought. These are
the very patients whose updates trained the generator, so new patients may fare otherwise.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from client.ingest.cohort import Cohort
from client.state.folder import State
from client.state.plans import Plans
from common.arrays import Pairs, Pixels
from common.devices import CPU
from common.errors import ConfigurationError, RefusedError, damage_named
from common.measure import pair_segmenter
from common.measure import pair_utility as utility
from common.storage.files import atomic_write, read_capped
from kohort import layout, verification
from kohort.forms import mask_of

TABLE_CAP_BYTES = 1 << 26
PICTURE_CAP_BYTES = 1 << 22


@dataclass(frozen=True)
class SiteUtility:
    """The result, for this hospital's eyes; distances in pixels."""

    plan: str
    version: str
    pairs: int
    result: utility.Utility

    def lines(self) -> Iterator[str]:
        """Yield what a person reads."""
        found = self.result
        low, high = found.dsc_interval
        name = f"release {self.version} of plan {self.plan[:12]}"
        interval = f"(95 % interval {low:.3f} to {high:.3f}, over patients)"
        chosen = f"epoch {found.epoch}, DSC {found.validation_dsc:.3f} there"
        yield f"{name}: trained on {self.pairs} pairs, tested on this cohort"
        yield f"  DSC                          {found.dsc:.3f}   {interval}"
        yield f"  balanced average Hausdorff   {found.bahd_mm:.2f} pixels"
        yield f"  95 % Hausdorff               {found.hd95_mm:.2f} pixels"
        yield f"  chosen on released pairs alone: {chosen}"
        where = "they stay here and nothing was sent"
        yield f"these numbers come from this hospital's patients: {where}"


def recipe(*, full: bool) -> pair_segmenter.Recipe:
    """Return how the network is trained: the published recipe, or one for a processor."""
    if full:
        return pair_segmenter.Recipe()
    return pair_segmenter.SMALL


def measure_release(
    release: Path,
    place: State,
    plans: Plans,
    *,
    recipe: pair_segmenter.Recipe = pair_segmenter.SMALL,
    seed: int = 0,
    device: torch.device = CPU,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SiteUtility:
    """Return what the release is worth on this site's cohort, and keep it in the state folder.

    `device`: where the network trains and predicts.
    Raises RefusedError (the release does not verify), PolicyError (its plan is not approved here),
    ConfigurationError (it holds no pairs, or the cohort is not there).
    """
    # (1) verify the release, signed by this site's operator
    found = verification.verify(release, trust=plans.fingerprints())
    # (2) find its plan among those approved here, and the plan's cohort
    study = plans.open(found.study)
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
    # (3) read the pairs
    pairs = read_pairs(release, study.intake.size_px)
    # (4) train and choose the network on them alone
    segmenter = pair_segmenter.fit(pairs, recipe, seed, device=device, progress=progress)
    # (5) open the cohort once, and test
    cohort = Cohort.open(folder)
    images = np.asarray(cohort.images)
    result = utility.measure(segmenter, images, cohort.patient_of, seed=seed)
    # (6) keep the result
    site = SiteUtility(found.study, found.version, len(pairs), result)
    _keep(site, place)
    return site


def read_pairs(release: Path, size_px: int) -> Pairs:
    """Return the pairs uint8 [N, S, S, 2] of a verified release, in the order of its table.

    Raises RefusedError, ConfigurationError.
    """
    table = read_capped(release / "metadata.csv", TABLE_CAP_BYTES).decode("utf-8", "replace")
    rows: list[tuple[str, str]] = []
    with damage_named(RefusedError("metadata.csv: not a CSV table")):
        for row in csv.DictReader(io.StringIO(table)):
            rows.append((row.get("file_name") or "", mask_of(row)))
    if not rows or not all(name and mask for name, mask in rows):
        raise ConfigurationError(
            f"{release}: a release without masks", hint="utility needs image + mask pairs"
        )
    pairs: list[Pixels] = []
    for image_name, mask_name in rows:
        image = _picture(release, image_name, size_px)
        mask = _picture(release, mask_name, size_px)
        pairs.append(np.stack([image, mask], axis=-1))
    return np.stack(pairs)


def _picture(release: Path, name: str, size_px: int) -> Pixels:
    """One grey picture [S, S]; only names that a release may hold are opened."""
    if not layout.is_allowed_name(name):
        raise RefusedError(f"metadata.csv: {name!r} is no name of a picture in a release")
    # PNG alone, of the plan's size, grey
    data = read_capped(release / name, PICTURE_CAP_BYTES)
    damage = RefusedError(f"{name}: not a PNG that can be read")
    with damage_named(damage), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.size != (size_px, size_px) or image.mode != "L":
            expected = f"expected {size_px} x {size_px} grey"
            raise RefusedError(f"{name}: {image.size} of mode {image.mode}, {expected}")
        return np.asarray(image)


def _keep(site: SiteUtility, place: State) -> None:
    """Write the result into the state folder, readable by the site's account alone."""
    folder = place.root / "utility"
    folder.mkdir(exist_ok=True, mode=0o700)
    data = json.dumps(asdict(site), indent=1, sort_keys=True) + "\n"
    atomic_write(folder / f"{site.plan[:12]}-{site.version}.json", data.encode(), mode=0o600)
