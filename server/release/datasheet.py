"""The datasheet (README.md, with its head for the Hub) and the licence note of a release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.study.plan import Study
from server.operator.config import ReleaseSigning
from server.release.card import front_matter
from server.release.limits import count_sentence
from server.release.loaders import TARS_FROM_IMAGES
from server.release.templating import render, render_with_glossary

REHEARSED = (
    "Attack and downstream figures come from a rehearsal of this plan on public data ({people}), "
    "not from a hospital's patients. Of its own batch each site says only whether its audit "
    "passed."
)
NOT_REHEARSED = (
    "Attacks and the usefulness of labels were not evaluated: no rehearsal of this plan was given."
)
NOT_FOR = (
    "diagnosis, triage or any decision about a person",
    "claims about how common a finding is in any population",
    "attempts to find, reconstruct or link the people behind the images",
)


def readme(
    study: Study,
    statement: Mapping[str, Any],
    report: Mapping[str, Any],
    count: int,
    signers: ReleaseSigning,
) -> str:
    """Return the datasheet of a release of `count` pictures as Markdown."""
    text = render_with_glossary(
        "README.md.j2",
        study=study,
        statement=statement,
        report=report,
        rehearsed=rehearsal_sentence(report),
        counts=count_sentence(study),
        count=count,
        not_for=NOT_FOR,
        signing=signers,
        tars=count >= TARS_FROM_IMAGES,
    )
    return front_matter(study, count) + text


def rehearsal_sentence(report: Mapping[str, Any]) -> str:
    """Return where the attack and utility figures come from."""
    if report["rehearsal"] is None:
        return NOT_REHEARSED
    return REHEARSED.format(people=report["rehearsal"]["cast"])


def licence_text(study: Study) -> str:
    """Return the licence note of the images."""
    return render("LICENSE.j2", study=study)
