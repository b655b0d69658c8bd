"""Forms groups of at least k distinct patients.

In: who is in the cohort and in which stratum (`Roster`), one code per patient, k, the site's key.
Out: a `Grouping`; the patients it leaves out stay on site.
Guarantees:
  1. every group of `form_groups` has k to 2k-1 patients; a smaller stratum yields none; in mode
     `anchors` there is no upper bound, because to split a cell would be a choice made by the data
  2. a patient with many images counts once
  3. the result depends on the patients and the key, not on the order in which they are listed
  4. mode `random` sees no pixel: it takes a roster and a key and refuses codes; in mode `anchors`
     only the patient's own code decides which cell a patient is in
  5. a frozen group comes again whole or not at all; its patients join no other group
Not covered:
  - k-anonymity is not differential privacy: `similar`, `similar-swap` and `cells` groups depend on
    the images (Jeon et al. 2022; docs/methods/k-salsa.md says what they leak)
  - which `anchors` group is published: that is decided under noise in anchors.py
  - two pseudonyms of one person: the intake merges them
  - frozen groups (client/state/group_store.py); numerics (partition.py)
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.state.group_store import Group, Grouping, Stratum
from client.synthesize import partition
from client.synthesize.partition import Cells
from common.arrays import Floats, Integers
from common.errors import ConfigurationError, PolicyError

Mode = Literal["similar", "similar-swap", "cells", "random", "anchors", "paper"]
MODES: tuple[Mode, ...] = ("similar", "similar-swap", "cells", "random", "anchors", "paper")


@dataclass(frozen=True)
class Roster:
    """The patients that can be grouped, in canonical order, with stratum and image indices."""

    pseudonyms: tuple[str, ...]
    strata: tuple[Stratum, ...]
    images: tuple[tuple[int, ...], ...]

    def without(self, pseudonyms: set[str]) -> Roster:
        """Return the roster without those patients."""
        return self._at([i for i, name in enumerate(self.pseudonyms) if name not in pseudonyms])

    def only(self, pseudonyms: set[str]) -> Roster:
        """Return the roster of those patients alone."""
        return self._at([i for i, name in enumerate(self.pseudonyms) if name in pseudonyms])

    def _at(self, positions: Sequence[int]) -> Roster:
        """The roster of the patients at these positions."""
        return Roster(
            tuple(self.pseudonyms[i] for i in positions),
            tuple(self.strata[i] for i in positions),
            tuple(self.images[i] for i in positions),
        )


def roster(
    pseudonyms: Sequence[str],
    patient_of: NDArray[np.integer],
    label_of: NDArray[np.integer],
    *,
    key: bytes,
    laterality_of: NDArray[np.integer] | None = None,
    usable: NDArray[np.bool_] | None = None,
) -> Roster:
    """Return the patients to group, each in one stratum with the images that count there.

    `patient_of`: int [N], indexes `pseudonyms`. `label_of`: int [N], the merged stratum index (-1:
    leave the image out). `laterality_of`: int [N] (0 unknown, 1 left, 2 right), or None to ignore
    it. `usable`: bool [N], False where inversion rejected the image. Leave it out for mode
    `random`, where no pixel may decide who is grouped.
    A patient's stratum is the highest label among the images, then the eye with that label, ties by
    keyed digest. Only images of that stratum count.
    """
    # the images that count
    sides = laterality_of
    if sides is None:
        sides = np.zeros(len(patient_of), np.int64)
    counts = np.asarray(label_of) >= 0
    if usable is not None:
        counts &= usable

    # by patient and stratum
    images_of: dict[str, dict[Stratum, list[int]]] = {}
    for i in np.flatnonzero(counts).tolist():
        stratum = Stratum(int(label_of[i]), int(sides[i]))
        images_of.setdefault(pseudonyms[int(patient_of[i])], {}).setdefault(stratum, []).append(i)

    # one stratum a patient, in the order of a keyed digest
    names = sorted(images_of, key=lambda name: _keyed_digest(key, "order", name))
    strata = tuple(_choose_stratum(name, images_of[name], key) for name in names)
    images = []
    for name, stratum in zip(names, strata, strict=True):
        images.append(tuple(images_of[name][stratum]))
    return Roster(tuple(names), strata, tuple(images))


def strata_of(
    names: Sequence[str],
    patient_of: NDArray[np.integer],
    label_of: NDArray[np.integer],
    laterality_of: NDArray[np.integer] | None = None,
) -> dict[str, set[Stratum]]:
    """Return every stratum in which a person has an image, by name; arguments as for `roster`."""
    sides = laterality_of
    if sides is None:
        sides = np.zeros(len(patient_of), np.int64)
    found: dict[str, set[Stratum]] = {}
    for i in np.flatnonzero(np.asarray(label_of) >= 0).tolist():
        stratum = Stratum(int(label_of[i]), int(sides[i]))
        found.setdefault(names[int(patient_of[i])], set()).add(stratum)
    return found


def _choose_stratum(name: str, strata: Iterable[Stratum], key: bytes) -> Stratum:
    """The patient's one stratum: highest label, ties between eyes by keyed digest."""
    return max(strata, key=lambda s: (s.label, _keyed_digest(key, f"eye-{s.laterality}", name)))


def patient_codes(image_codes: NDArray[np.floating], who: Roster) -> Floats:
    """Return float64 [patients, D] in roster order: means of image_codes [N, D] over their images.

    Each patient weighs 1, whatever the number of images.
    """
    if not who.images:
        return np.zeros((0, *image_codes.shape[1:]))
    codes = np.asarray(image_codes, np.float64)
    means = []
    for rows in who.images:
        # sorted, so that the order of summation does not depend on the order of the images
        means.append(np.sort(codes[list(rows)], axis=0).mean(axis=0))
    return np.stack(means)


def form_groups(
    who: Roster,
    k: int,
    mode: Mode,
    *,
    key: bytes,
    codes: NDArray[np.floating] | None = None,
    cells: Cells | None = None,
) -> Grouping:
    """Return groups of k to 2k-1 patients, stratum by stratum, and the suppressed patients.

    Suppressed are patients of strata below k. The modes:
      similar       outlier-first greedy on `codes`, float [patients, D] in roster order (whitened:
                    reference.py)
      similar-swap  the same with exchanges of pairs, which tighten the groups and leak more
      cells         by keyed hash within cells of about 4k patients (2k at least) around the public
                    `cells`
      random        by keyed hash alone; refuses codes
      anchors       each patient in the nearest of the public `cells`; no upper bound; cells below k
                    are suppressed
      paper         the greedy rule in float64 on raw W+ codes (Jeon et al. 2022; the remainder rule
                    is ours)
    Raises PolicyError when there are fewer than k patients in all, ConfigurationError on codes or
    cells that are missing, not finite or not allowed.
    """
    points = _check_codes(who, mode, codes, cells)
    if len(who.pseudonyms) < k:
        raise PolicyError(
            f"grouping: expected at least k={k} distinct patients with a usable image; got fewer",
            hint="ingest more patients, or agree on a study with a smaller k",
            code="E-GROUP-SIZE",
        )
    groups: list[Group] = []
    grouped: set[str] = set()
    for stratum in sorted(set(who.strata)):
        rows = _rows_of(who, stratum)
        if len(rows) < k:
            continue

        # the stratum's parts
        names = [who.pseudonyms[i] for i in rows]
        own = None
        if points is not None:
            own = points[rows]
        for part in _parts(names, own, k, mode, key, cells):
            if len(part) >= k:  # fewer only in a cell of `anchors`
                groups.append(Group(tuple(names[i] for i in part), stratum, k))
                grouped.update(groups[-1].members)
    return Grouping(tuple(groups), tuple(sorted(set(who.pseudonyms) - grouped)))


def _rows_of(who: Roster, stratum: Stratum) -> Integers:
    """The positions of a stratum's patients on the roster."""
    return np.flatnonzero([own == stratum for own in who.strata])


def _parts(
    names: Sequence[str], points: Floats | None, k: int, mode: Mode, key: bytes, cells: Cells | None
) -> list[list[int]]:
    """One stratum's rows in parts, by the mode's rule."""
    # random
    if points is None:
        return _random_parts(names, list(range(len(names))), k, key)
    # similar, similar-swap, paper
    if cells is None:
        rules = {"paper": partition.greedy_paper, "similar-swap": partition.greedy_with_swaps}
        rule = rules.get(mode, partition.greedy)
        return partition.parts_of(rule(points, k))
    # anchors
    if mode == "anchors":
        near = partition.nearest(points, cells.centres)
        return [np.flatnonzero(near == cell).tolist() for cell in np.unique(near)]
    # cells
    least = partition.CELL_LEAST * k
    parts: list[list[int]] = []
    for area in partition.parts_of(partition.cells_of_rows(points, cells.centres, least)):
        parts += _random_parts(names, area, k, key)
    return parts


def _check_codes(
    who: Roster, mode: Mode, codes: NDArray[np.floating] | None, cells: Cells | None
) -> Floats | None:
    """Return the codes as float64, or None for `random`; refuse what does not fit the mode."""
    # codes and cells are there for the modes that take them, and for no others
    if mode not in MODES:
        raise ConfigurationError(f"grouping: mode {mode!r}; expected one of {', '.join(MODES)}")
    if (mode in ("cells", "anchors")) != isinstance(cells, Cells):
        raise ConfigurationError(
            "grouping: modes cells and anchors, and they alone, take Cells of generator samples"
        )
    if mode == "random":
        if codes is not None:
            raise ConfigurationError(
                "grouping: mode random takes no codes; no pixel may decide who is grouped"
            )
        return None
    if codes is None or len(codes) != len(who.pseudonyms):
        raise ConfigurationError(f"grouping: mode {mode} needs one code per patient of the roster")

    # finite numbers, as many a patient as a cell has
    points = np.asarray(codes, np.float64).reshape(len(codes), math.prod(codes.shape[1:]))
    if not np.isfinite(points).all():
        raise ConfigurationError(
            "grouping: a patient's code is not finite; expected finite numbers",
            hint="leave the image out of the roster (usable=False): inversion rejects such images",
        )
    if cells is not None and (not len(cells.centres) or cells.centres.shape[1] != points.shape[1]):
        raise ConfigurationError(
            f"grouping: cells of shape {cells.centres.shape} for codes of {points.shape[1]} numbers"
        )
    return points


def _random_parts(names: Sequence[str], rows: Sequence[int], k: int, key: bytes) -> list[list[int]]:
    """Equal parts of the permutation of `rows` that the keyed hash of each pseudonym gives."""
    order = sorted(rows, key=lambda i: _keyed_digest(key, "random", names[i]))
    return [part.tolist() for part in np.array_split(np.array(order, np.int64), len(rows) // k)]


def _keyed_digest(key: bytes, purpose: str, pseudonym: str) -> bytes:
    """The digest that orders patients; without the site's key nobody can predict it."""
    return hmac.digest(key, f"kohort-group-{purpose}\0{pseudonym}".encode(), "sha256")


def settle_frozen(
    frozen: Sequence[Group],
    who: Roster,
    k: int,
    *,
    present: Mapping[str, Collection[Stratum]] | None = None,
) -> tuple[tuple[Group, ...], tuple[str, ...], Roster]:
    """Return frozen groups to release again, patients held back, and the roster of all others.

    A frozen group comes again only whole: k members or more, each of them present in its stratum.
    Whoever withdrew is not present. The members of any other frozen group are held back: averaging
    those that are left would isolate who is missing. Nobody of a frozen group is on the roster that
    is returned. `present`: each person's strata, by name; by default those of the roster.
    """
    if present is None:
        present = {name: (own,) for name, own in zip(who.pseudonyms, who.strata, strict=True)}
    # the frozen groups that are whole
    again = []
    for group in frozen:
        whole = all(group.stratum in present.get(member, ()) for member in group.members)
        if whole and len(group.members) >= k:
            again.append(Group(group.members, group.stratum, k))

    # the members of the others are held back
    taken = set(chain.from_iterable(group.members for group in frozen))
    released = set(chain.from_iterable(group.members for group in again))
    held = tuple(sorted((taken - released) & present.keys()))
    return tuple(again), held, who.without(taken)


def regroup(
    frozen: Sequence[Group],
    who: Roster,
    k: int,
    mode: Mode,
    *,
    key: bytes,
    codes: NDArray[np.floating] | None = None,
    cells: Cells | None = None,
    present: Mapping[str, Collection[Stratum]] | None = None,
) -> Grouping:
    """Return frozen groups that come again, and new groups among patients who are in none.

    Nothing is frozen here. Arguments and errors are those of `form_groups` and `settle_frozen`.
    When frozen groups come again, fewer than k new patients wait (suppressed).
    """
    again, held, fresh = settle_frozen(frozen, who, k, present=present)
    if again and len(fresh.pseudonyms) < k:
        return Grouping(again, (*held, *fresh.pseudonyms))

    # group the new patients by their own codes
    row_of = {name: i for i, name in enumerate(who.pseudonyms)}
    left = None
    if codes is not None:
        left = np.asarray(codes)[[row_of[name] for name in fresh.pseudonyms]]
    new = form_groups(fresh, k, mode, key=key, codes=left, cells=cells)
    return Grouping((*again, *new.groups), (*held, *new.suppressed))
