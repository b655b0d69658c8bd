"""What a rehearsal of a plan says of attacks and utility: measured on people who are public, carried over to the real study.

In: a release whose patients were played by public people, these people, and public people who took no part. Out: a `Rehearsal`:
findings and the digest of what makes a plan the same; it stands in that release's evaluation.json, and a real study's release
takes it from there (`kohort-server release --rehearsal FILE`).
Guaranteed: a file of another plan is refused, one of another size or with unknown keys too; findings carry a name, a number, a
unit and a sentence, and no image or name of anybody. The same plan: everything but sites, quorum, deadline, name, title and the
release's version, date and size is equal. Not: proof that the operator's people were public and took part: the operator says so.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from common.config import FrozenModel
from common.errors import ConfigurationError, RefusedError
from common.models.encoder import load_encoder
from common.models.glow import Glow
from common.models.glow_checkpoint import load_weights
from common.models.stylegan import load_critic, load_generator
from common.storage.files import read_capped
from common.study.plan import Study
from common.wire.messages import canonical
from common.wire.tensors import read
from server.evaluate import attacks
from server.evaluate.attacks import Battery, Networks
from server.evaluate.downstream import Labelled, downstream
from server.evaluate.findings import Finding
from server.public_data.images import SOURCE_CAP_BYTES, arrays_of, read_source

TABLE_CAP_BYTES, FILE_CAP_BYTES, WEIGHTS_CAP_BYTES = 1 << 22, 1 << 20, 1 << 32
OTHER_IN_EVERY_STUDY = {"name", "title", "sites", "quorum", "round_deadline_s", "release"}
SIDES = {"": 0, "L": 1, "R": 2}


@dataclass(frozen=True)
class Cast:
    """Public people: `members` played the patients, `heldout` took no part; strata (label and eye) [N] beside each."""

    members: Labelled
    members_strata: NDArray[np.int64]
    heldout: Labelled
    heldout_strata: NDArray[np.int64]
    name: str


class Statement(FrozenModel):
    """A finding in a file."""

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
    """What a rehearsal found: `plan` is `digest` of its study, `cast` says who played."""

    format: Literal["kohort-rehearsal/1"]
    plan: str = Field(pattern="^[0-9a-f]{64}$")
    cast: str = Field(max_length=200)
    findings: tuple[Statement, ...] = Field(max_length=200)


def digest(study: Study) -> str:
    """Return the SHA-256 of all of a plan that a rehearsal must share."""
    fields = study.model_dump(mode="json", exclude=OTHER_IN_EVERY_STUDY)
    return hashlib.sha256(canonical(fields)).hexdigest()


def read_cast(members: Path, heldout: Path, study: Study) -> Cast:
    """Return the people of two sources: folders of photographs with labels.csv (file, label, perhaps laterality L or R), or
    .npz files with `images`, `names`, `labels` and perhaps `laterality`, one image a person."""
    inside, outside = (_read_people(folder, study) for folder in (members, heldout))
    sizes = len(inside[0].images), len(outside[0].images)
    name = f"{sizes[0]} public people of {members.name} played the patients, {sizes[1]} did not take part"
    return Cast(*inside, *outside, name)


def _read_people(place: Path, study: Study) -> tuple[Labelled, NDArray[np.int64]]:
    """Images at the plan's size, labels as positions in the plan's strata, and label and eye as one number."""
    rows = _table(place) if place.is_dir() else _arrays(place)
    source = read_source(place, study.intake.size_px, study.intake.channels)
    strata, labels, sides = study.strata(), [], []
    for name in source.names:
        given, side = rows.get(name, ("", ""))
        merged = study.intake.merge_labels.get(given, given)
        if merged not in strata:
            raise ConfigurationError(
                f"{place}: {name}: label is {given!r}, expected one of {', '.join(strata)}"
            )
        labels.append(strata.index(merged))
        sides.append(SIDES.get(side, 0) if study.intake.stratify_laterality else 0)
    found = np.array(labels, np.int64)
    return Labelled(source.images, found), found * len(SIDES) + np.array(sides, np.int64)


def _table(folder: Path) -> dict[str, tuple[str, str]]:
    """Label and side by file, from labels.csv."""
    table = folder / "labels.csv"
    if not table.is_file():
        raise ConfigurationError(
            f"{table}: missing",
            hint="a CSV file with columns file, label and, if known, laterality",
        )
    text = read_capped(table, TABLE_CAP_BYTES).decode("utf-8-sig")
    return {
        row.get("file") or "": (row.get("label") or "", row.get("laterality") or "")
        for row in csv.DictReader(io.StringIO(text))
    }


def _arrays(path: Path) -> dict[str, tuple[str, str]]:
    """Label and side by name, from the arrays of an .npz."""
    found = arrays_of(
        read_capped(path, SOURCE_CAP_BYTES), path, ("images", "names", "labels", "laterality")
    )
    counts = {key: array.shape[0] if array.ndim else 0 for key, array in found.items()}
    if (
        not {"images", "names", "labels"} <= set(counts)
        or len(set(counts.values())) > 1
        or len(set(found["names"].tolist())) < counts["names"]
    ):
        raise ConfigurationError(
            f"{path}: expected `images`, `names` and `labels` (and `laterality`) of one length, no name twice, found {counts}",
            hint="or give a folder of photographs with labels.csv",
        )
    right = found.get("laterality")
    sides = (
        [""] * counts["names"]
        if right is None
        else ["R" if one else "L" for one in right.astype(bool)]
    )
    return {
        str(n): (str(v), side)
        for n, v, side in zip(found["names"], found["labels"], sides, strict=True)
    }


def networks(study: Study, weights: Mapping[str, Path], checkpoints: Path) -> Networks:
    """Return what an attacker has: the final generator and critic (else their starting checkpoint), the public encoder; of a
    study whose images a flow alone makes, the flow."""
    plan, coder, intake = study.models.gan, study.models.encoder, study.intake
    file = weights.get("gan") or (plan and plan.start and checkpoints / plan.start.name)
    if plan is None:
        return _flow(study, weights, checkpoints)
    if not file or not file.is_file():
        return Networks(iterations=1)
    arrays = read(file, max_bytes=WEIGHTS_CAP_BYTES)
    generator, critic = (
        load(arrays, plan, intake.size_px, intake.channels)
        for load in (load_generator, load_critic)
    )
    if coder is None or coder.start is None or not (checkpoints / coder.start.name).is_file():
        return Networks(generator, critic, iterations=1)  # type: ignore[arg-type]
    start = read(checkpoints / coder.start.name, max_bytes=WEIGHTS_CAP_BYTES)
    encoder = load_encoder(start, coder.width, plan.latent, intake.size_px, intake.channels)
    return Networks(generator, critic, encoder, iterations=1)  # type: ignore[arg-type]


def _flow(study: Study, weights: Mapping[str, Path], checkpoints: Path) -> Networks:
    """The final flow, else its starting checkpoint, and the temperature of the plan's images."""
    plan, intake, synthesis = study.models.glow, study.intake, study.synthesis
    file = weights.get("glow") or (plan and plan.start and checkpoints / plan.start.name)
    if plan is None or not file or not file.is_file():
        return Networks(iterations=1)
    flow = Glow(intake.size_px, intake.channels, plan.levels, plan.steps_per_level, plan.width)
    load_weights(flow, read(file, max_bytes=WEIGHTS_CAP_BYTES))
    warmth = synthesis.privatize.temperature if synthesis and synthesis.privatize else 1.0
    return Networks(iterations=1, flow=flow, temperature=warmth)


def rehearse(released: Labelled, cast: Cast, study: Study, attacker: Networks) -> Rehearsal:
    """Return what attackers find out from `released`, and what a classifier learns from it."""
    who = attacks.people(
        (cast.members.images, cast.members.labels, cast.members_strata),
        (cast.heldout.images, cast.heldout.labels, cast.heldout_strata),
    )
    battery = Battery(who, attacker)
    inference, control = (
        battery.membership(released.images, released.labels),
        battery.control(released.labels),
    )
    found = attacks.findings(
        inference, control, attacks.linkage(released.images, released.labels, who), cast.name
    )
    found += downstream(released, cast.members, cast.heldout, study.strata(), cast.name)
    statements = tuple(Statement.model_validate(asdict(one)) for one in found)
    return Rehearsal(
        format="kohort-rehearsal/1", plan=digest(study), cast=cast.name, findings=statements
    )


def read_rehearsal(path: Path, study: Study) -> Rehearsal:
    """Return the rehearsal in a release's evaluation.json; raises RefusedError for another plan's, or for anything else."""
    try:
        data = json.loads(read_capped(path, FILE_CAP_BYTES))
        found = Rehearsal.model_validate(data["rehearsal"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise RefusedError(
            f"{path}: holds no rehearsal",
            hint="give the evaluation.json of a release that was built with --members and --heldout",
        ) from error
    if found.plan != digest(study):
        raise RefusedError(
            f"{path}: is a rehearsal of another plan",
            hint="rehearse this plan: models, privacy, synthesis and intake must be equal to the last digit",
        )
    return found


def findings(rehearsal: Rehearsal | None) -> tuple[list[Finding], list[Finding]]:
    """Return what the report says of utility, and of attacks."""
    found = [] if rehearsal is None else [one.finding() for one in rehearsal.findings]
    utility = [one for one in found if one.name.startswith("downstream")]
    return utility, [one for one in found if one not in utility]
