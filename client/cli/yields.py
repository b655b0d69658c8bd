"""The images that this site's own people will give, and those that wait: for a person's screen."""

from __future__ import annotations

from collections.abc import Iterator

from client.daemon.own_people import own_people
from client.egress.facts import Facts
from client.state.folder import State
from common.errors import KohortError
from common.study.plan import Study
from common.study.yield_words import own_yield_lines


def yield_lines(state: State, study: Study) -> Iterator[str]:
    """Yield the forecast for this site's own people; nothing where no image is planned.

    It holds counts of patients: never in a log, never in what leaves.
    """
    if study.synthesis is None:
        return
    try:
        found = own_people(state, study)
    except KohortError as error:
        yield f"  images to expect: unknown, the cohort cannot be read ({error.code})"
        return
    if found is None:
        yield "  images to expect: kohort-site ingest builds the cohort, then says so"
        return
    yield from own_yield_lines(study, found.by_label, found.released)


def waiting_lines(facts: Facts) -> Iterator[str]:
    """Yield how many images of each label are in a batch, and how many people they rest on."""
    for label in dict.fromkeys(image.label for image in facts.images):
        images = [image for image in facts.images if image.label == label]
        people = sum({image.group: image.persons for image in images}.values())
        noised = sum(image.privatized for image in images)
        noise = f", {noised} with noise" if noised else ""
        warning = "   WARNING: one image alone" if len(images) == 1 else ""
        amount = "1 image" if len(images) == 1 else f"{len(images):,} images"
        yield f"  {label:<20} {amount} of {people:,} people{noise}{warning}"
