"""The forecast of images in words: a table for a plan, lines for a site's own people.

In: a plan, and on site how many people each stratum has. Out: lines.
Not covered: the numbers (yields.py). The lines on a site's own people stay on its screen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from common.study.plan import Study
from common.study.yields import (
    LEFT_OUT,
    SHARES,
    SIZES,
    Yield,
    people_for,
    yield_of,
    yields_of,
)

COLUMN = 10


def yield_table(study: Study) -> Iterator[str]:
    """Yield how many images one label gives, by the people of a site and the label's share."""
    if study.synthesis is None:
        return
    yield "    images of one label at a site, by its people and the share of them with that label:"
    yield "      people  " + "".join(f"{share:>{COLUMN}.0%}" for share in SHARES)
    for size in SIZES:
        cells = [yield_of(study, round(share * size)).words() for share in SHARES]
        yield f"      {size:>6,}  " + "".join(f"{cell:>{COLUMN}}" for cell in cells)
    for images, words in ((1, "no image"), (2, "one image alone")):
        yield f"      {_needed_words(study, images, words)}"
    for line in assumptions(study):
        yield f"      assumed: {line}"


def _needed_words(study: Study, images: int, words: str) -> str:
    """From how many people on a label surely gives so many images, and else `words`."""
    needed = people_for(study, images)
    if needed is None:
        return f"a label of any size may give {words}: noise, or chance, decides what leaves"
    planned = study.privacy.planned_patients
    return (
        f"a label with fewer than {needed:,} people at a site may give {words}: "
        f"{needed / planned:.0%} of the {planned:,} planned"
    )


def yield_facts(study: Study) -> list[dict[str, int]]:
    """Return the table as `plan --json` prints it: by people with one label at a site."""
    if study.synthesis is None:
        return []
    sizes = sorted({round(share * size) for share in SHARES for size in SIZES})
    found = [yield_of(study, people) for people in sizes]
    return [{"people": one.people, "fewest": one.fewest, "most": one.most} for one in found]


def assumptions(study: Study) -> Iterator[str]:
    """Yield what the forecast rests on."""
    synthesis = study.synthesis
    assert synthesis is not None
    k = synthesis.k
    yield f"groups of {k} people or more ({synthesis.grouping})"
    if synthesis.needs_generator:
        yield f"fewest: {LEFT_OUT:.0%} of the people have no image that inverts well"
    if study.intake.stratify_laterality:
        yield "half of the people take part with each side, and sides are apart"
    yield "nobody's group was released before, and the audit drops nothing"


def own_yield_lines(
    study: Study, people: Mapping[str, Sequence[int]], released: int = 0
) -> Iterator[str]:
    """Yield what this site's own people will give. For its screen alone: it holds counts.

    `people`: the sizes of each label's strata. `released`: how many people are in groups that left
    before.
    """
    if study.synthesis is None:
        return
    found = yields_of(study, people)
    yield (
        f"  images to expect of plan {study.name} from this site's own people "
        "(on this screen alone):"
    )
    for one in found:
        yield f"    {one.label:<20} {one.people:>7,} people   {_images(one)}{_warning(one)}"
    if released:
        yield (
            f"    {released:,} people more are in groups that were released before: the same "
            "images come again, or they stay"
        )
    if any(one.most < 2 for one in found):
        yield f"    {needs_words(study)}"


def needs_words(study: Study) -> str:
    """Return how many people of a label give an image."""
    synthesis = study.synthesis
    assert synthesis is not None
    sides = " of one side" if study.intake.stratify_laterality else ""
    return (
        f"an image needs {synthesis.k} people with its label{sides} who have a usable image; "
        "a label below that gives none, here and in the release"
    )


def _images(one: Yield) -> str:
    """How many images, in words."""
    return "1 image" if one.fewest == one.most == 1 else f"{one.words()} images"


def _warning(one: Yield) -> str:
    """A plain warning where a label gives none or one."""
    if not one.most:
        return "   WARNING: this label gives no image"
    if one.most == 1:
        return "   WARNING: this label gives one image at most"
    return ""
