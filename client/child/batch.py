"""Makes one image batch.

In: a `Batch` of inputs. Out: contact_sheet.png and its further pages, findings.json, evidence.json,
then out.safetensors.
Steps:
  1 train the encoder on generator samples
  2 invert every image of the cohort
  3 group the patients; what was released of frozen groups comes again (rosters.py)
  4 align each group and render its images
  5 privatize a public share of the groups
  6 audit, drop what fails (checks.py)
  7 write the images in random order
Where all of `random` groups are privatized, steps 1, 2 and 4 have nothing to do.
Grouping `anchors` replaces 3 to 5: noisy means of cells are published and decoded.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from client.child.checks import Candidate, deciding_codes, drop_failed, report_of
from client.child.inputs import Batch
from client.child.practice import AUDIT_CODE, mark
from client.child.rosters import (
    Formed,
    choose_privatized,
    group_patients,
    keep_accepted,
    keyed_digest,
    roster_of,
)
from client.egress.contact_sheet import contact_sheet, count_pages
from client.egress.evidence import Evidence
from client.egress.facts import findings_text
from client.egress.review import SHEET, page_name
from client.learn import train_encoder
from client.state.group_store import Group, Stratum
from client.state.jobs import EVIDENCE, FINDINGS, OUTPUT, WEIGHTS, WEIGHTS_CAP_BYTES
from client.state.spool import Spool, bind, remove_spool, spool_of
from client.synthesize.align import (
    AlignmentPlan,
    align,
    gather_statistics,
    measure_patients,
    render_outputs,
)
from client.synthesize.anchors import choose_space, noisy_means
from client.synthesize.anchors import images as show_cells
from client.synthesize.appearance import Appearance, Shown, gather_appearances
from client.synthesize.group import Roster, patient_codes
from client.synthesize.inversion_sheet import FILE as INVERSIONS
from client.synthesize.inversion_sheet import draw_sheet
from client.synthesize.invert import Inversion, Progress, invert
from client.synthesize.nearer import gather_features, keep_nearer
from client.synthesize.privatize import privatize
from client.synthesize.reference import InversionPlan, Reference, make_reference
from client.synthesize.spread import find_directions
from common.arrays import Images
from common.errors import PolicyError
from common.models.encoder import Encoder, load_encoder
from common.models.pretrained_features import load_features
from common.models.stylegan import Generator
from common.privacy.anchors import MOST_LINKED
from common.privacy.events import anchors_event, latent_event
from common.storage.files import atomic_write, file_digest
from common.wire.tensors import Arrays, read, write

INVERSION_ROWS = "codes in the generator's look, own looks, residuals"  # a spool's rows


def synthesize(batch: Batch) -> None:
    """Make, audit and write the image batch; raises PolicyError when nothing can leave.

    The spool goes when the batch is written or refused. It stays after anything else, for the next
    try: a kill, a full disk, too little memory.
    """
    try:
        make_batch(batch)
    except PolicyError:
        remove_spool(spool_of(batch.folder))
        raise
    remove_spool(spool_of(batch.folder))


def make_batch(batch: Batch) -> None:
    """Steps 1 to 7."""
    # of noise maps and of the order; privacy noise is NoiseSource's
    random = torch.Generator().manual_seed(secrets.randbits(63))
    # (1, 2) train the encoder, invert the cohort
    inverted = None
    if batch.synthesis.needs_generator:
        inverted = invert_cohort(batch, random)
    # (3, 4, 5) group, align and render, privatize
    if batch.synthesis.anchors:
        candidates = publish_cells(batch, inverted, random)
    else:
        candidates = average_groups(batch, inverted, random)
    # (6) audit, drop what fails
    batch.begin("audit")
    candidates = drop_failed(batch, candidates)
    # (7) write the images in random order
    order = torch.randperm(len(candidates), generator=random).tolist()
    write_batch(batch, [candidates[row] for row in order])


def invert_cohort(batch: Batch, random: torch.Generator) -> tuple[Reference, Inversion]:
    """Return the public statistics of the generator and the code of every image (steps 1 and 2).

    The encoder is trained on generator samples alone. What is finished is kept in the round's
    spool, so a child that starts after a kill goes on behind it. A picture of the inversions, worst
    first, is left in the job folder for the site, also where nothing can leave.
    """
    plan = batch.study.models.encoder
    assert plan is not None
    constants = InversionPlan(
        steps=batch.synthesis.inversion_steps,
        iterations=plan.iterations,
        coarse_cells=batch.synthesis.coarse_cells,
    )
    # not even rounding may depend on who else is in the cohort
    alone = replace(constants, batch=1) if batch.synthesis.anchors else constants
    spool = Spool.open(spool_of(batch.folder), bind_inversion(batch, alone))
    generator = batch.generator()
    # (1) train the encoder on generator samples
    encoder, known = learn_generator(batch, spool, generator, constants, random)
    # (2) invert every image of the cohort
    images = batch.cohort.images
    found = invert(images, generator, encoder, alone, known, batch.report("invert"), spool)
    sheet = draw_sheet(images, found, generator, known.look_on(batch.device))
    atomic_write(batch.folder / INVERSIONS, sheet, mode=0o600)
    return known, found


def bind_inversion(batch: Batch, constants: InversionPlan) -> str:
    """Return the SHA-256 of all that the codes of a cohort depend on, and of who is in it.

    After a withdrawal, for another plan or for other weights a spool is begun anew.
    """
    cohort = batch.cohort
    weights = file_digest(batch.folder / WEIGHTS)
    people = bind(cohort.digest, cohort.aliases, cohort.patient_of.tolist())
    made_by = [asdict(constants), str(batch.device), INVERSION_ROWS]
    return bind("inversion", batch.study.hash(), weights, people, made_by)


def learn_generator(
    batch: Batch,
    spool: Spool,
    generator: Generator,
    constants: InversionPlan,
    random: torch.Generator,
) -> tuple[Encoder, Reference]:
    """Return the encoder and the generator's public statistics, from the spool if they are there.

    Both are drawn by chance, so rows that are finished fit these alone.
    """
    plan = batch.study.models.encoder
    gan = batch.study.models.gan
    assert plan is not None
    assert gan is not None
    trained = spool.kept("encoder")
    if trained is None:
        start: Arrays = {}
        if plan.start is not None:
            checkpoint = batch.plan_folder / "checkpoints" / plan.start.name
            start = read(checkpoint, max_bytes=WEIGHTS_CAP_BYTES)
        learned = train_encoder.train(
            batch.weights, start, batch.study, batch.report("encoder"), device=batch.device
        )
        trained = dict(learned)
        spool.keep("encoder", trained)
    intake = batch.study.intake
    encoder = load_encoder(trained, plan.width, gan.latent, intake.size_px, intake.channels)
    encoder = encoder.to(batch.device)
    known = spool.kept("reference")
    if known is None:
        known = make_reference(generator, encoder, constants, random).to_arrays()
        spool.keep("reference", known)
    return encoder, Reference.from_arrays(known)


def average_groups(
    batch: Batch, inverted: tuple[Reference, Inversion] | None, random: torch.Generator
) -> list[Candidate]:
    """Return the images of every grouping but `anchors` (steps 3 to 5).

    Of too many images a share leaves that a secret chooses; for no other group one is made.
    """
    # (3) group the patients; what was released of a frozen group comes again
    batch.begin("group")
    formed = group_patients(batch, inverted)
    private = choose_privatized(batch, formed)
    plain: list[Group] = []
    if inverted is not None:
        others = set(formed.new).difference(private)
        who = keep_accepted(formed.who, inverted[1].accepted)
        plain = keep_whole([group for group in formed.new if group in others], who)
    leaving = choose_leaving(batch, formed, plain, private)
    candidates = list(formed.again)
    # (4) align each new group and render its images
    if inverted is not None:
        plain = [group for group in plain if group.token in leaving]
        candidates += align_groups(batch, plain, formed.who, inverted, random)
    # (5) privatize a public share of the groups
    private = tuple(group for group in private if group.token in leaving)
    candidates += privatize_groups(batch, private, formed.who)
    candidates.sort(key=lambda candidate: leaving_order(batch, candidate.group.token))
    return candidates[: batch.synthesis.max_images_per_site]


def choose_leaving(
    batch: Batch, formed: Formed, plain: Sequence[Group], private: Sequence[Group]
) -> set[str]:
    """Return the tokens of the groups whose images are among the first ones, in a secret order."""
    # how many images each group gives
    images = Counter(candidate.group.token for candidate in formed.again)
    for group in plain:
        images[group.token] += batch.synthesis.outputs_per_group
    for group in private:
        images[group.token] += 1
    # the first groups, until the images are as many as may leave
    leaving: set[str] = set()
    left = batch.synthesis.max_images_per_site
    for token in sorted(images, key=lambda token: leaving_order(batch, token)):
        if left <= 0:
            break
        leaving.add(token)
        left -= images[token]
    return leaving


def leaving_order(batch: Batch, token: str) -> bytes:
    """Return the digest by which groups stand where not all images can leave."""
    return keyed_digest(batch.secret, "leaves", token)


def keep_whole(groups: Sequence[Group], who: Roster) -> list[Group]:
    """Return the groups of which every member is on the roster."""
    present = set(who.pseudonyms)
    return [group for group in groups if present.issuperset(group.members)]


def align_groups(
    batch: Batch,
    groups: Sequence[Group],
    who: Roster,
    inverted: tuple[Reference, Inversion],
    random: torch.Generator,
) -> list[Candidate]:
    """Return `outputs_per_group` images of each group whose members all have an accepted image."""
    plan = batch.synthesis
    known, found = inverted
    constants = AlignmentPlan(
        steps=plan.alignment_steps,
        windows=plan.windows,
        content_weight=plan.content_weight,
        style_weight=plan.style_weight,
        trust_weight=plan.trust_weight,
    )
    # groups of patients with an accepted image each
    who = keep_accepted(who, found.accepted)
    groups = keep_whole(groups, who)
    if not groups:
        return []
    generator = batch.generator()
    critic = batch.critic()
    common = known.look_on(batch.device)
    network = load_features(batch.device)
    # a few groups at a time: statistics of k patients or more, then codes that match them;
    # an average stays where its image is nearer to the members
    aligned: list[Tensor] = []
    appearances: list[Appearance] = []
    for start in range(0, len(groups), constants.batch):
        some = groups[start : start + constants.batch]
        members = who.only({name for group in some for name in group.members})
        patients = measure_patients(
            batch.cohort.images, found, members, generator, critic, constants, common
        )
        statistics = gather_statistics(some, patients, generator, constants)
        progress = partial(_report_from, batch.report("align"), start, len(groups))
        found_codes = align(statistics, generator, critic, constants, known.spread, progress)
        features = gather_features(batch.cohort.images, some, members, network, common)
        shown_as = gather_appearances(some, members, batch.cohort.images, found)
        appearances += shown_as
        aligned.append(
            keep_nearer(found_codes.codes, statistics, features, shown_as, generator, network)
        )
    codes = torch.cat(aligned)
    # restore variance that averaging removes
    if plan.spread_directions:
        directions = find_directions(
            known, plan.spread_directions, plan.k, plan.grouping, plan.spread_share
        )
        codes = directions.move_out(codes)
    # render them, each group with its members' mean residual, field and look
    shown = Shown(common, tuple(appearances))
    stacks = render_outputs(codes, plan.outputs_per_group, generator, random, shown=shown)
    candidates: list[Candidate] = []
    for images in stacks:
        candidates += [Candidate(images[row], group, False) for row, group in enumerate(groups)]
    return candidates


def _report_from(report: Progress, start: int, total: int, done: int, _: int) -> None:
    """Report `done` groups after the first `start` ones."""
    report(start + done, total)


def privatize_groups(batch: Batch, groups: Sequence[Group], who: Roster) -> list[Candidate]:
    """Return one privatized average of each group, by the plan's mechanism and basis."""
    plan = batch.synthesis.privatize
    if plan is None or not groups:
        return []
    batch.begin("privatize")
    rows = dict(zip(who.pseudonyms, who.images, strict=True))
    images: list[list[Images]] = []
    for group in groups:
        of_members = [batch.cohort.images[list(rows[member])] for member in group.members]
        images.append([np.asarray(member_images) for member_images in of_members])
    result = privatize(
        images,
        batch.glow(),
        latent_event(batch.study),
        plan.temperature,
        batch.noise(),
        prior_temperature=plan.prior_temperature,
        basis=batch.basis(),
        practice=batch.practice,
    )
    pairs = zip(result.images, groups, strict=True)
    return [Candidate(image, group, True) for image, group in pairs]


def publish_cells(
    batch: Batch, inverted: tuple[Reference, Inversion] | None, random: torch.Generator
) -> list[Candidate]:
    """Return the images of grouping `anchors`: noisy means of cells, decoded (steps 3 to 5).

    Their epsilon was reserved before this process started. Nothing here may tell more than the
    noisy means do: every patient takes part, whatever was released before; no private Gram matrix
    steers an image; of too many images chance picks; every refusal that depends on patients has one
    code (E-NO-IMAGES).
    """
    mechanism = anchors_event(batch.study)
    plan = batch.synthesis
    assert inverted is not None
    assert mechanism is not None
    known, found = inverted
    # (3) who takes part, and in which of the public cells
    who = anchors_roster(batch, found)
    whitening, cells = choose_space(
        known, batch.code_basis(), batch.study.cells_per_stratum, mechanism.components
    )
    points = found.points if whitening is known.whitening else whitening(found.codes)
    codes = patient_codes(points[:, : mechanism.components], who)
    # (4, 5) publish noisy means, decode them
    strata = all_strata(batch)
    means = noisy_means(who, codes, cells, strata, mechanism, batch.reservation(), batch.noise())
    if not means:
        raise PolicyError("no cell holds enough patients to be published", code="E-NO-IMAGES")
    stacks = show_cells(means, whitening, batch.generator(), plan.outputs_per_group, random)
    candidates: list[Candidate] = []
    for stack in stacks:
        pairs = zip(stack, means, strict=True)
        candidates += [Candidate(image, mean.group, False) for image, mean in pairs]
    # of too many images chance picks
    order = torch.randperm(len(candidates), generator=random).tolist()
    return [candidates[row] for row in order[: plan.max_images_per_site]]


def anchors_roster(batch: Batch, found: Inversion) -> Roster:
    """Return every patient with an accepted image, under the cohort's own names.

    Whether an image is accepted depends on this image and on the generator alone. No frozen group
    decides who takes part. Raises PolicyError for too many ids of one person.
    """
    if any(len(aliases) > MOST_LINKED for aliases in batch.cohort.aliases):
        raise PolicyError(
            f"anchors: more than {MOST_LINKED} patient ids are one person",
            hint="look at the images under those ids; leave them out of the data folder, "
            "or correct the ids, and ingest again",
            code="E-NO-IMAGES",
        )
    return roster_of(batch, batch.cohort.pseudonyms, found.accepted)


def all_strata(batch: Batch) -> list[Stratum]:
    """Return every stratum of the study, by label and then by side."""
    strata: list[Stratum] = []
    for label in range(len(batch.study.strata())):
        strata += [Stratum(label, side) for side in batch.study.sides()]
    return strata


def write_batch(batch: Batch, candidates: Sequence[Candidate]) -> None:
    """Write sheet and evidence for the site's eyes, then the tensors that are proposed to leave."""
    images = np.stack([candidate.image for candidate in candidates])
    # the contact sheet, its first page last
    report = report_of(candidates)
    for page in reversed(range(count_pages(*images.shape[:3]))):
        sheet = contact_sheet(images, batch.cohort.images, report, page)
        atomic_write(batch.folder / page_name(SHEET, page), sheet, mode=0o600)
    atomic_write(batch.folder / FINDINGS, findings_text(report), mode=0o600)
    # the evidence: groups, each image's group, codes of the audit
    failed: tuple[str, ...] = tuple(
        code for code in deciding_codes(batch, report.codes) if code != "A-PASS"
    )
    if batch.practice:
        failed = (*failed, AUDIT_CODE)
    groups = tuple(dict.fromkeys(candidate.group for candidate in candidates))
    number = {group.token: position for position, group in enumerate(groups)}
    group_of = tuple(number[candidate.group.token] for candidate in candidates)
    evidence = Evidence(groups, group_of, failed)
    atomic_write(batch.folder / EVIDENCE, evidence.to_json(), mode=0o600)
    # the tensors, last
    labels = [candidate.group.stratum.label for candidate in candidates]
    privatized = [candidate.privatized for candidate in candidates]
    tensors: Arrays = {
        "images": images,
        "labels": np.array(labels, np.int64),
        "privatized": np.array(privatized, np.uint8),
    }
    if batch.practice:
        tensors = mark(tensors)
    write(batch.folder / OUTPUT, tensors, mode=0o600)
