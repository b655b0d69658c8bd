"""The child process: one round of private training, or one image batch. `python -m client.child.job FOLDER`.

In: a job folder (client/daemon/jobs.py) and, as one line on standard input, the grouping secret. Out: out.safetensors, written last
and whole; for images also evidence.json and contact_sheet.png; on refusal `error` with a code. Guaranteed: no signing key and
no network is used here; fresh noise from the operating system; the process dies with its parent. Not covered: whether the
output may leave: the parent's gate decides, and freezes the groups that are only proposed here.

An image batch, numbered: 1 encoder on generator samples  2 invert  3 group (frozen groups come again)  4 align and render
5 privatize a public share of the groups  6 audit, drop what fails  7 random order, write
Where all of `random` groups are privatized, 1, 2 and 4 have nothing to do. Where epsilon holds per patient (`random` groups),
6 drops no privatized image: patients' images must not choose among noised ones, so one that fails stops the whole batch.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import resource
import secrets
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.egress.audit import Code, audit, contact_sheet, gives_away_members
from client.egress.evidence import EVIDENCE_CAP_BYTES, Evidence
from client.egress.review import SHEET
from client.ingest.cohort import Cohort
from client.learn import train_encoder, train_gan, train_glow, train_wgan
from client.state.canaries import TALLY_CAP_BYTES
from client.state.group_store import Group, Grouping, GroupStore, Stratum
from client.state.jobs import CANARIES, TALLY, Job, write_progress
from client.state.ledger import Reservation
from client.synthesize.align import AlignmentPlan, align, gather, measure_patients, outputs
from client.synthesize.anchors import cells_of, noisy_means
from client.synthesize.anchors import images as decoded
from client.synthesize.group import Roster, patient_codes, regroup, roster
from client.synthesize.inversion_sheet import FILE as INVERSIONS
from client.synthesize.inversion_sheet import inversion_sheet
from client.synthesize.invert import Inversion, InversionPlan, Reference, invert, reference
from client.synthesize.metric import cells_in, points_of
from client.synthesize.partition import Cells
from client.synthesize.privatize import privatize
from client.synthesize.spread import directions_of
from common.arrays import Images
from common.errors import ConfigurationError, KohortError, PolicyError
from common.models.encoder import load_encoder
from common.models.glow import Glow
from common.models.glow_checkpoint import load_weights as load_glow
from common.models.latents import Basis
from common.models.latents import load as load_basis
from common.models.stylegan import Critic, Generator, load_critic, load_generator
from common.privacy.canaries import Canaries
from common.privacy.events import anchors_event, latent_event
from common.privacy.noise import NoiseSource
from common.process import end_with_input, end_with_parent
from common.storage.files import atomic_write, read_capped
from common.study.plan import Study, load_study
from common.study.synthesis import Synthesis
from common.wire.tensors import Arrays, dumps, read, write

WEIGHTS_CAP_BYTES = 1 << 32
MOST_LINKED = 2  # ids of one person in mode `anchors`: a third may have joined two strangers (methods/ksalsa.md, trap 18)
# Elsewhere a refusal by patients' images would not be covered by epsilon.
CHOSEN_BY_IMAGES = ("similar", "similar-swap", "cells")
BY_PATIENTS = (
    "A-COPY",
    "A-NEAR",
)  # the audit's codes that compare with patients' images; the others look at what leaves alone


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the job in the folder named on the command line; returns 0, or the exit code of the refusal."""
    folder = Path((arguments or sys.argv[1:])[0])
    secret = bytes.fromhex(sys.stdin.readline().strip())
    end_with_parent(signal.SIGKILL)
    end_with_input(70)
    try:
        job = Job.read(folder)
        confine(job)
        work(job, folder, secret)
    except KohortError as error:
        atomic_write(folder / "error", error.code.encode())
        sys.stderr.write(f"{error.code}: {error}\n")  # child.log, which stays in the job folder
        return error.exit_code
    return 0


def confine(job: Job) -> None:
    """Apply the job's limits on threads and memory."""
    torch.set_num_threads(job.threads or os.cpu_count() or 1)
    if job.memory_gib:
        size_bytes = int(job.memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (size_bytes, size_bytes))


def work(job: Job, folder: Path, secret: bytes) -> None:
    """Train or synthesize, and write the output."""
    study = load_study(Path(job.plan) / "study.yaml")
    cohort = Cohort.open(Path(job.cohort))
    weights = read(folder / "in.safetensors", max_bytes=WEIGHTS_CAP_BYTES)
    if job.kind == "train":
        write(folder / "out.safetensors", train(job, study, cohort, weights, folder))
    else:
        synthesize(Batch(study, cohort, weights, Path(job.plan), folder, secret, job.reservation))


def train(job: Job, study: Study, cohort: Cohort, weights: Arrays, folder: Path) -> Arrays:
    """One round of the job's model with its reservation and fresh noise; returns float32 deltas."""
    trainers = {"gan": train_gan.train, "glow": train_glow.train, "wgan": train_wgan.train}
    if job.model not in trainers:
        raise ConfigurationError(f"no trainer for model {job.model!r}", code="E-MODEL-UNKNOWN")
    reservation, canaries = Reservation.from_json(job.reservation), canaries_in(folder)
    steps = trainers[job.model](
        cohort,
        study,
        weights,
        reservation,
        NoiseSource(),
        lambda done, total: write_progress(folder, done, total),
        canaries,
    )
    if canaries is not None:
        atomic_write(folder / TALLY, dumps(canaries.tally().arrays()), mode=0o600)
    return dict(steps)


def canaries_in(folder: Path) -> Canaries | None:
    """The canaries whose coins lie in the job folder, or None."""
    path = folder / CANARIES
    return (
        Canaries(read(path, max_bytes=TALLY_CAP_BYTES)["included"].astype(np.bool_))
        if path.is_file()
        else None
    )


@dataclass(frozen=True)
class Batch:
    """What an image batch is made from."""

    study: Study
    cohort: Cohort
    weights: Arrays
    plan_folder: Path
    folder: Path
    secret: bytes
    reserved: str = ""

    @property
    def synthesis(self) -> Synthesis:
        """The plan's synthesis; raises ConfigurationError without one."""
        if self.study.synthesis is None:
            raise ConfigurationError("the plan synthesizes nothing")
        return self.study.synthesis

    def generator(self) -> Generator:
        """The study's generator with the final global weights."""
        assert self.study.models.gan is not None
        intake = self.study.intake
        return load_generator(self.weights, self.study.models.gan, intake.size_px, intake.channels)

    def critic(self) -> Critic:
        """The study's critic with the final global weights."""
        assert self.study.models.gan is not None
        intake = self.study.intake
        return load_critic(self.weights, self.study.models.gan, intake.size_px, intake.channels)

    def glow(self) -> Glow:
        """The study's flow with the final global weights."""
        model = train_glow.build(self.study)
        load_glow(
            model, {name: array for name, array in self.weights.items() if name.startswith("glow.")}
        )
        return model

    def basis(self) -> Basis | None:
        """The public basis of the plan's latents, its first `components`; None without one."""
        plan = self.synthesis.privatize
        if plan is None or plan.basis is None or plan.components is None:
            return None
        return load_basis(self.plan_folder / "checkpoints" / plan.basis.name).first(plan.components)

    def reservation(self) -> Reservation:
        """What the ledger holds as spent for this batch; raises RefusedError where it holds nothing."""
        return Reservation.from_json(self.reserved)

    def progress(self, done: int, total: int) -> None:
        """Show how far this is."""
        write_progress(self.folder, done, total)


@dataclass(frozen=True)
class Made:
    """One image that may leave: pixels, its group, and whether it is privatized."""

    image: Images
    group: Group
    privatized: bool


def synthesize(batch: Batch) -> None:
    """Make, audit and write the image batch; raises PolicyError when nothing can leave."""
    random = torch.Generator().manual_seed(
        secrets.randbits(63)
    )  # noise maps and order; privacy noise is NoiseSource's
    looked = inverted(batch, random) if batch.synthesis.needs_generator else None  # 1, 2
    made = (
        anchored(batch, looked, random)
        if batch.synthesis.anchors
        else averaged(batch, looked, random)
    )
    made = audited(batch, made)  # 6
    order = torch.randperm(len(made), generator=random).tolist()
    write_batch(batch, [made[i] for i in order])  # 7


def averaged(
    batch: Batch, looked: tuple[Reference, Inversion] | None, random: torch.Generator
) -> list[Made]:
    """Steps 3 to 5 of every grouping but `anchors`; of too many images a secret share."""
    grouping, who = grouped(batch, looked)  # 3
    private = privatized_share(batch, grouping)
    plain = [group for group in grouping.groups if group not in private]
    made = aligned(batch, plain, who, looked, random) if looked else []  # 4
    made += privatized(batch, private, who)  # 5
    limit = batch.synthesis.max_images_per_site
    return sorted(made, key=lambda one: keyed(batch.secret, "leaves", one.group.token))[:limit]


def anchored(
    batch: Batch, looked: tuple[Reference, Inversion] | None, random: torch.Generator
) -> list[Made]:
    """Steps 3 to 5 of grouping `anchors`: published cells, decoded; their epsilon was reserved before this process started.

    Nothing here may tell more than the noisy means: a patient of a frozen group takes no part, no private Gram steers an image,
    of too many images chance picks, and every refusal that depends on patients has one code (E-NO-IMAGES).
    """
    mechanism, plan = anchors_event(batch.study), batch.synthesis
    assert looked is not None and mechanism is not None
    (known, seen), frozen = looked, frozen_groups(batch)
    if any(len(aliases) > MOST_LINKED for aliases in batch.cohort.aliases):
        hint = "look at the images under those ids; leave them out of the data folder, or correct the ids, and ingest again"
        raise PolicyError(
            f"anchors: more than {MOST_LINKED} patient ids are one person",
            hint=hint,
            code="E-NO-IMAGES",
        )
    who = roster_of(batch, person_names(batch.cohort, frozen), seen.accepted)
    who = who.without({member for group in frozen for member in group.members})
    codes = patient_codes(known.whitening(seen.encoded.numpy())[:, : mechanism.components], who)
    anchors = cells_of(known.samples, known.whitening).centres[
        : batch.study.cells_per_stratum, : mechanism.components
    ]
    strata = [
        Stratum(label, side)
        for label in range(len(batch.study.strata()))
        for side in batch.study.sides()
    ]
    means = noisy_means(
        who, codes, Cells(anchors), strata, mechanism, batch.reservation(), NoiseSource()
    )
    if not means:
        raise PolicyError("no cell holds enough patients to be published", code="E-NO-IMAGES")
    stacks = decoded(means, known.whitening, batch.generator(), plan.outputs_per_group, random)
    made = [
        Made(image, mean.group, False)
        for stack in stacks
        for image, mean in zip(stack, means, strict=True)
    ]
    order = torch.randperm(len(made), generator=random).tolist()
    return [made[i] for i in order[: plan.max_images_per_site]]


def inverted(batch: Batch, random: torch.Generator) -> tuple[Reference, Inversion]:
    """Steps 1 and 2: the encoder, trained on generator samples alone, and the code of every image of the cohort.

    A picture of the inversions, worst first, is left in the job folder for the site, also where nothing can leave.
    """
    plan, intake, gan = batch.study.models.encoder, batch.study.intake, batch.study.models.gan
    assert plan is not None and gan is not None
    generator = batch.generator()
    start: Arrays = {}
    if plan.start is not None:
        start = read(
            batch.plan_folder / "checkpoints" / plan.start.name, max_bytes=WEIGHTS_CAP_BYTES
        )
    trained = train_encoder.train(batch.weights, start, batch.study, batch.progress)
    encoder = load_encoder(trained, plan.width, gan.latent, intake.size_px, intake.channels)
    constants = InversionPlan(steps=batch.synthesis.inversion_steps, iterations=plan.iterations)
    known = reference(generator, encoder, constants, random)
    if batch.synthesis.anchors:
        constants = replace(
            constants, batch=1
        )  # not even rounding may depend on who else is in the cohort
    images = np.asarray(batch.cohort.images)
    found = invert(images, generator, encoder, constants, known, batch.progress)
    atomic_write(batch.folder / INVERSIONS, inversion_sheet(images, found), mode=0o600)
    return known, found


def grouped(batch: Batch, looked: tuple[Reference, Inversion] | None) -> tuple[Grouping, Roster]:
    """Step 3: frozen groups again and new groups of at least k; `random` groups are formed without looking at a pixel."""
    frozen = frozen_groups(batch)
    store = GroupStore(batch.folder / "groups.sqlite")
    store.freeze(Grouping(frozen, ()))
    mode, k = batch.synthesis.grouping, batch.synthesis.k
    names = person_names(batch.cohort, frozen)
    if mode == "random" or looked is None:
        who, codes, cells = roster_of(batch, names, None), None, None
    else:
        known, seen = looked
        who = roster_of(batch, names, seen.accepted)
        codes = patient_codes(points_of(known, seen, batch.synthesis.group_by), who)
        cells = cells_in(known, batch.synthesis.group_by) if mode == "cells" else None
    grouping = regroup(store, who, k, mode, key=batch.secret, codes=codes, cells=cells)
    store.close()
    if not grouping.groups:
        raise PolicyError("no stratum has k patients", code="E-GROUP-SIZE")
    return grouping, who


def frozen_groups(batch: Batch) -> tuple[Group, ...]:
    """The site's frozen groups, as the daemon put them into the job folder."""
    return Evidence.from_json(read_capped(batch.folder / "groups.json", EVIDENCE_CAP_BYTES)).groups


def person_names(cohort: Cohort, frozen: Sequence[Group]) -> tuple[str, ...]:
    """One name a person: the one under which a group is frozen, if any, else the cohort's own."""
    taken = {member for group in frozen for member in group.members}
    return tuple(
        next((alias for alias in aliases if alias in taken), name)
        for name, aliases in zip(cohort.pseudonyms, cohort.aliases, strict=True)
    )


def roster_of(batch: Batch, names: Sequence[str], usable: NDArray[np.bool_] | None) -> Roster:
    """The patients with merged labels as strata (and the eye, where the plan says so)."""
    intake, strata = batch.study.intake, batch.study.strata()
    merged = [
        strata.index(intake.merge_labels.get(label, label)) for label in batch.cohort.label_names
    ]
    labels = np.array([*merged, -1], np.int64)[
        batch.cohort.labels
    ]  # -1, unknown, takes the last entry
    sides = batch.cohort.laterality if intake.stratify_laterality else None
    return roster(
        names, batch.cohort.patient_of, labels, key=batch.secret, laterality_of=sides, usable=usable
    )


def privatized_share(batch: Batch, grouping: Grouping) -> tuple[Group, ...]:
    """The groups whose image is privatized: a public share, picked by keyed hash and by nothing in the images."""
    plan = batch.synthesis.privatize if batch.synthesis.privatizes_averages else None
    count = round(plan.share * len(grouping.groups)) if plan else 0
    ranked = sorted(
        grouping.groups, key=lambda group: keyed(batch.secret, "privatize", group.token)
    )
    return tuple(ranked[: max(count, 1) if plan else 0])


def keyed(secret: bytes, purpose: str, token: str) -> bytes:
    """Digest that nobody without the site's secret can predict."""
    return hmac.digest(secret, f"kohort-batch-{purpose}\0{token}".encode(), hashlib.sha256)


def aligned(
    batch: Batch,
    groups: Sequence[Group],
    who: Roster,
    looked: tuple[Reference, Inversion],
    random: torch.Generator,
) -> list[Made]:
    """Step 4: `outputs_per_group` images of each group, all of whose members have an accepted image."""
    plan, (known, seen) = batch.synthesis, looked
    constants = AlignmentPlan(
        steps=plan.alignment_steps,
        windows=plan.windows,
        content_weight=plan.content_weight,
        style_weight=plan.style_weight,
        trust_weight=plan.trust_weight,
    )
    who = accepted_only(who, seen.accepted)
    groups = [group for group in groups if set(group.members) <= set(who.pseudonyms)]
    if not groups:
        return []
    generator, critic = batch.generator(), batch.critic()
    members = {name for group in groups for name in group.members}
    who = who.without(set(who.pseudonyms) - members)
    patients = measure_patients(np.asarray(batch.cohort.images), seen, who, critic, constants)
    statistics = gather(groups, patients, generator, constants)
    codes = align(statistics, generator, critic, constants, known.spread, batch.progress).codes
    if plan.spread_directions:
        codes = directions_of(
            known, plan.spread_directions, plan.k, plan.grouping, plan.spread_share
        ).moved(codes)
    stacks = outputs(codes, plan.outputs_per_group, generator, random)
    return [Made(images[i], group, False) for images in stacks for i, group in enumerate(groups)]


def accepted_only(who: Roster, accepted: NDArray[np.bool_]) -> Roster:
    """The roster with accepted images alone; a patient without one is not on it."""
    rows = [
        (name, stratum, tuple(i for i in images if accepted[i]))
        for name, stratum, images in zip(who.pseudonyms, who.strata, who.images, strict=True)
    ]
    kept = [row for row in rows if row[2]]
    return Roster(tuple(r[0] for r in kept), tuple(r[1] for r in kept), tuple(r[2] for r in kept))


def privatized(batch: Batch, groups: Sequence[Group], who: Roster) -> list[Made]:
    """Step 5: one privatized average a group, by the plan's mechanism and basis."""
    plan = batch.synthesis.privatize
    if plan is None or not groups:
        return []
    rows = dict(zip(who.pseudonyms, who.images, strict=True))
    images = [
        [np.asarray(batch.cohort.images[list(rows[m])]) for m in group.members] for group in groups
    ]
    mechanism, basis = latent_event(batch.study), batch.basis()
    result = privatize(
        images,
        batch.glow(),
        mechanism,
        plan.temperature,
        NoiseSource(),
        prior_temperature=plan.prior_temperature,
        basis=basis,
    )
    return [Made(image, group, True) for image, group in zip(result.images, groups, strict=True)]


def audited(batch: Batch, made: list[Made]) -> list[Made]:
    """Step 6: the images that pass the audit against every image of the cohort, in the order given.

    Raises PolicyError (E-AUDIT) when none passes, and when a privatized average of a `random` group is too near to a patient's
    image: its epsilon per patient would not survive a choice by patients' images, so nothing leaves.
    """
    if not made:
        raise PolicyError("no group could be made into an image", code="E-NO-IMAGES")
    codes = audit(
        np.stack([one.image for one in made]),
        np.asarray(batch.cohort.images),
        batch.cohort.patient_of,
    ).codes
    codes = deciding(batch, codes)
    chosen_by_patients = [
        one for one, code in zip(made, codes, strict=True) if one.privatized and code in BY_PATIENTS
    ]
    if chosen_by_patients and batch.synthesis.grouping == "random":
        raise PolicyError(
            "a privatized image is too near to a patient's; with `random` groups the batch stops",
            code="E-AUDIT",
        )
    passed = [one for one, code in zip(made, codes, strict=True) if code == "A-PASS"]
    if not passed:
        raise PolicyError("every image failed the audit", code="E-AUDIT")
    if batch.synthesis.grouping in CHOSEN_BY_IMAGES and members_found(batch, passed):
        raise PolicyError(
            "the batch gives away who is in a group",
            hint="agree on a study with a larger k, or grouping random",
            code="E-AUDIT",
        )
    return passed


def members_found(batch: Batch, made: Sequence[Made]) -> bool:
    """Whether the images tell the patients in their groups from the cohort's others (client/egress/audit.py)."""
    grouped = {member for one in made for member in one.group.members}
    names = zip(batch.cohort.pseudonyms, batch.cohort.aliases, strict=True)
    inside = np.array(
        [not grouped.isdisjoint((name, *aliases)) for name, aliases in names], np.bool_
    )
    owner = np.asarray(batch.cohort.patient_of)
    images = np.stack([one.image for one in made])
    return bool(gives_away_members(images, np.asarray(batch.cohort.images), owner, inside[owner]))


def deciding(batch: Batch, codes: Sequence[Code]) -> tuple[Code, ...]:
    """The audit codes that decide what leaves. In mode `anchors` nearness to a patient's image is none of them: to drop an
    image for it would tell what the noise hides. It stands on the sheet and in child.log, as a fault to report."""
    if not batch.synthesis.anchors:
        return tuple(codes)
    if any(code in BY_PATIENTS for code in codes):
        sys.stderr.write(
            "anchors: an image is nearer to a patient's than noise should let it be: report this\n"
        )
    return tuple("A-PASS" if code in BY_PATIENTS else code for code in codes)


def write_batch(batch: Batch, made: Sequence[Made]) -> None:
    """Step 7: sheet and evidence for the site's eyes, then the tensors that are proposed to leave."""
    images = np.stack([one.image for one in made])
    real = np.asarray(batch.cohort.images)
    report = audit(images, real, batch.cohort.patient_of)
    groups = tuple(dict.fromkeys(one.group for one in made))
    number = {group.token: i for i, group in enumerate(groups)}
    failed = tuple(code for code in deciding(batch, report.codes) if code != "A-PASS")
    evidence = Evidence(groups, tuple(number[one.group.token] for one in made), failed)
    atomic_write(batch.folder / SHEET, contact_sheet(images, real, report), mode=0o600)
    atomic_write(batch.folder / "evidence.json", evidence.to_json(), mode=0o600)
    write(
        batch.folder / "out.safetensors",
        {
            "images": images,
            "labels": np.array([one.group.stratum.label for one in made], np.int64),
            "privatized": np.array([one.privatized for one in made], np.uint8),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
