"""How many images a label's people give: a forecast, before anything is computed. No I/O.

In: a plan, and how many people each stratum has. Out: the fewest and the most images.
Guarantees: from public constants of the plan and the sizes that the caller gives. `most` is never
exceeded. At least `fewest` are made where at most `LEFT_OUT` of each stratum's people have no
usable image and the audit drops nothing.
Not covered: what the audit or a reviewer drops, who withdraws, what an earlier study released.

Groups of one stratum of n people, by grouping (client/synthesize/group.py, partition.py):
similar, similar-swap: n // k. cells: areas of 2k people or more, each loses k - 1 people at most.
random: n // k, formed before anybody looks at an image; without noise on all of them a group with
an unusable image gives none. anchors: at most one a cell, and noise decides which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.study.plan import Study
from common.study.synthesis import Synthesis

LEFT_OUT = 0.25  # of a stratum's people: no image inverts well, or the flow encodes none
SIZES = (50, 100, 200, 500, 1000)  # people at a site
SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)  # of them with one label
CELL_LEAST = 2  # times k: client/synthesize/partition.py
MOST_PEOPLE = 10_000


@dataclass(frozen=True)
class Yield:
    """The images of one label: from `fewest` to `most`, of `people`."""

    label: str
    people: int
    fewest: int
    most: int

    def words(self) -> str:
        """Return the range in words."""
        if not self.most:
            return "none"
        if self.fewest == self.most:
            return f"{self.most:,}"
        return f"{self.fewest:,} to {self.most:,}"


def yields_of(study: Study, people: Mapping[str, Sequence[int]]) -> tuple[Yield, ...]:
    """Return each label's images; `people`: the sizes of its strata, one a side, by label."""
    synthesis = study.synthesis
    if synthesis is None:
        return ()
    found = []
    for label, sizes in people.items():
        fewest = sum(_images(study, size)[0] for size in sizes)
        most = sum(_images(study, size)[1] for size in sizes)
        found.append(Yield(label, sum(sizes), fewest, most))
    return _within_cap(found, synthesis.max_images_per_site)


def yield_of(study: Study, people: int) -> Yield:
    """Return the images of a label of so many people; half of them have each side."""
    sizes = [people]
    if study.intake.stratify_laterality:
        sizes = [people - people // 2, people // 2]
    return yields_of(study, {"": sizes})[0]


def people_for(study: Study, images: int) -> int | None:
    """Return the fewest people of a label whose forecast begins at so many images.

    None where even `MOST_PEOPLE` do not.
    """
    for people in range(images, MOST_PEOPLE + 1):
        if yield_of(study, people).fewest >= images:
            return people
    return None


def groups_of(study: Study, synthesis: Synthesis, people: int) -> tuple[int, int]:
    """Return the fewest and the most groups of one stratum."""
    k = synthesis.k
    most = people // k
    if synthesis.anchors is not None:
        return 0, min(most, study.cells_per_stratum)
    if synthesis.grouping == "random" and not synthesis.needs_generator:
        return most, most
    lost = math.floor(LEFT_OUT * people)
    if synthesis.grouping == "random":
        return max(0, most - lost), most
    usable = people - lost
    if synthesis.grouping != "cells" or usable < k:
        return usable // k, most
    areas = max(1, usable // (CELL_LEAST * k))
    return math.ceil((usable - areas * (k - 1)) / k), most


def _images(study: Study, people: int) -> tuple[int, int]:
    """The fewest and the most images of one stratum."""
    synthesis = study.synthesis
    assert synthesis is not None
    fewest, most = groups_of(study, synthesis, people)
    outputs = synthesis.outputs_per_group
    # a privatized group gives one image
    share = 0.0
    if synthesis.privatize is not None and synthesis.privatizes_averages:
        share = synthesis.privatize.share
    return fewest * (1 if share else outputs), most * (1 if share == 1 else outputs)


def _within_cap(found: Sequence[Yield], cap: int) -> tuple[Yield, ...]:
    """The same under the plan's cap, where a secret order chooses which images leave."""
    total = sum(one.most for one in found)
    capped = []
    for one in found:
        others = total - one.most
        fewest = min(one.fewest, max(0, cap - others))
        capped.append(Yield(one.label, one.people, fewest, min(one.most, cap)))
    return tuple(capped)
