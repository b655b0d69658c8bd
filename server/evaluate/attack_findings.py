"""The findings of a report on membership inference and linkage."""

from __future__ import annotations

from common.measure.attacks import Inference, Links
from server.evaluate.findings import Finding, missing, with_interval

MEMBERSHIP = "membership inference, AUC of the worst attacker"
MEMBERSHIP_CHANCE = "membership inference, AUC by chance"
MEMBERSHIP_CONTROL = "membership inference, AUC of the worst attacker on samples of the generator"
MEMBERSHIP_RATE = "membership inference, true positives at 1 % false positives"
LINKS = "linkage, share of the nearest people who took part"


def findings(
    found: Inference | None, control: Inference | None, linked: Links | None, how: str
) -> list[Finding]:
    """Return the findings of a report.

    `found` is the attack on the release, `control` the same on samples of the generator; `how` says
    who took part in which rehearsal.
    """
    if found is None:
        names = (MEMBERSHIP, MEMBERSHIP_CHANCE, MEMBERSHIP_CONTROL, MEMBERSHIP_RATE, LINKS)
        return [missing(name, "too few people on either side") for name in names]

    # the worst attacker, and what it would reach by luck
    worst = found.worst
    said = f"{how}; {len(found.attackers)} attackers, the worst: {worst.attacker}"
    chance = Finding(
        MEMBERSHIP_CHANCE,
        round(found.chance, 4),
        "AUC that the worst exceeds by luck in 1 of 20 cases",
        f"{how}; members and others dealt anew within each label",
    )
    return [
        with_interval(MEMBERSHIP, worst.auc, worst.auc_interval, "AUC; 0.5 is a guess", said),
        chance,
        _control_finding(control, how),
        with_interval(
            MEMBERSHIP_RATE, worst.tpr, worst.tpr_interval, "share; 0.01 is a guess", said
        ),
        _link_finding(linked, how),
    ]


def _control_finding(control: Inference | None, how: str) -> Finding:
    """The same attack on samples of the generator, which nobody here is in."""
    if control is None:
        return missing(MEMBERSHIP_CONTROL, "no generator and no flow was given")
    worst = control.worst
    unit = "AUC; above 0.5: other kinds of people"
    return with_interval(MEMBERSHIP_CONTROL, worst.auc, worst.auc_interval, unit, how)


def _link_finding(linked: Links | None, how: str) -> Finding:
    """How many of the people nearest to the released images took part."""
    if linked is None:
        return missing(LINKS, "too few people of a label")
    unit = f"of {linked.count} nearest; {linked.chance:.4f} is a guess"
    return with_interval(LINKS, linked.precision, linked.interval, unit, how)
