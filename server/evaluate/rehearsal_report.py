"""What a rehearsal of a plan on public data found about attacks and utility.

In: a release of a rehearsal, and its public people.
Out: a `Rehearsal`: findings, and the digest of what two equal plans share. It stands in that
release's reports/findings.json, which `kohort-server release --rehearsal FILE` reads.
Guarantees: a file of another plan, too large or with unknown keys is refused.
Not covered: proof that the people were public and took part. The operator answers for that.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import Field

from common.config import FrozenModel
from common.errors import RefusedError, damage_named
from common.storage.files import read_capped
from common.study.plan import Study
from common.study.rehearsed import plan_digest
from server.evaluate import attack_findings, attacks
from server.evaluate.attack_spaces import Networks
from server.evaluate.attacks import Battery
from server.evaluate.downstream import Labelled, downstream
from server.evaluate.findings import Finding
from server.evaluate.people import PublicPeople

FILE_CAP_BYTES = 1 << 20


class Statement(FrozenModel):
    """A finding in a file: a name, a number, a unit and a sentence, no image."""

    name: str = Field(max_length=200)
    value: float | None = Field(allow_inf_nan=False)
    unit: str = Field(max_length=200)
    evidence: str = Field(max_length=1000)
    status: Literal["shown", "not evaluated"]
    interval: tuple[float, float] | None = None

    def finding(self) -> Finding:
        """Return it as a finding."""
        return Finding(**self.model_dump())


class Rehearsal(FrozenModel):
    """What a rehearsal found; `plan` is `plan_digest` of its study, `cast` says who took part."""

    format: Literal["kohort-rehearsal/1"]
    plan: str = Field(pattern="^[0-9a-f]{64}$")
    cast: str = Field(max_length=200)
    findings: tuple[Statement, ...] = Field(max_length=200)


def rehearse(
    released: Labelled, people: PublicPeople, study: Study, attacker: Networks
) -> Rehearsal:
    """Return what attackers find out from `released`, and what a classifier learns from it."""
    who = attacks.people(
        (people.members.images, people.members.labels, people.members_strata),
        (people.heldout.images, people.heldout.labels, people.heldout_strata),
    )

    # attack the release and, for comparison, images that none of these people is in
    battery = Battery(who, attacker)
    inference = battery.membership(released.images, released.labels)
    control = battery.control(released.labels)
    linked = attacks.linkage(released.images, released.labels, who)
    found = attack_findings.findings(inference, control, linked, people.name)

    # train classifiers on the release and on members, test them on held-out people
    found += downstream(released, people.members, people.heldout, study.strata(), people.name)
    return Rehearsal(
        format="kohort-rehearsal/1",
        plan=plan_digest(study),
        cast=people.name,
        findings=tuple(Statement.model_validate(asdict(one)) for one in found),
    )


def read_rehearsal(path: Path, study: Study) -> Rehearsal:
    """Return the rehearsal in a release's reports/findings.json.

    Raises RefusedError for a file without a rehearsal, and for a rehearsal of another plan.
    """
    # read it
    text = read_capped(path, FILE_CAP_BYTES)
    damage = RefusedError(
        f"{path}: holds no rehearsal",
        hint="give reports/findings.json of a release that was built with --members and --heldout",
    )
    with damage_named(damage):
        found = Rehearsal.model_validate(json.loads(text)["rehearsal"])

    # refuse another plan's
    if found.plan != plan_digest(study):
        raise RefusedError(
            f"{path}: is a rehearsal of another plan",
            hint="rehearse this plan: models, privacy, synthesis and intake must be equal to "
            "the last digit",
        )
    return found


def findings(rehearsal: Rehearsal | None) -> tuple[list[Finding], list[Finding]]:
    """Return what the report says of utility, and of attacks."""
    utility: list[Finding] = []
    attacked: list[Finding] = []
    if rehearsal is None:
        return utility, attacked
    for statement in rehearsal.findings:
        if statement.name.startswith("downstream"):
            utility.append(statement.finding())
        else:
            attacked.append(statement.finding())
    return utility, attacked
