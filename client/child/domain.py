"""Looks at a sample of the cohort with a plan's starting checkpoints, before anything is spent.

In: a `Batch` whose weights are the starting checkpoints. Out: `OUTPUT`, marked as practice.
  labels    int64 [n], the merged label of each image
  refused   uint8 [n], 1 where inversion would leave the image out
  errors    float64 [n], the inversion's error of each image
  bits      float64 [n], bits per dimension by the flow
  expected  float64 [m], the same of the flow's own samples
  worth     float64 [2], what averages of pixels and of latents teach (worth.py)
`refused` and `errors` are missing where the plan has no such network, and so are `bits` and
`expected`; `worth` where nothing is privatized, or too few pictures have a label.
Guarantees: one image of a patient at most; the flow's samples are what it is measured by, no image
of the cohort; no network of the plan is trained and no noise of it is drawn.
Not covered: what the numbers mean (client/state/domain.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from client.child.inputs import Batch
from client.child.practice import mark
from client.child.worth import compare_averages
from client.ingest.cohort import Cohort
from client.state.jobs import OUTPUT, WEIGHTS_CAP_BYTES
from client.synthesize.invert import invert
from client.synthesize.privatize import clip_images, decode_means
from client.synthesize.reference import InversionPlan, make_reference
from client.synthesize.strata import labels_and_sides
from common.arrays import Floats, Images, Integers, Labels
from common.devices import exact
from common.models.encoder import load_encoder
from common.models.glow import Glow
from common.models.glow_pixels import from_uint8, to_uint8
from common.privacy.events import latent_event
from common.wire.tensors import Arrays, read, write

MOST_IMAGES = 192
SAMPLES = 48  # of the flow
AT_ONCE = 16


def look_at_domain(batch: Batch) -> None:
    """Measure a sample of the cohort and write `OUTPUT`."""
    labels, _ = labels_and_sides(batch.cohort, batch.study)
    rows = choose(batch.cohort, labels)
    images = np.asarray(batch.cohort.images[rows])
    found: Arrays = {"labels": labels[rows].astype(np.int64)}
    models = batch.study.models
    if not len(rows):
        write(batch.folder / OUTPUT, mark(found), mode=0o600)
        return
    if models.gan and models.gan.start and models.encoder and batch.synthesis.needs_generator:
        found |= _by_inversion(batch, images)
    if models.glow and models.glow.start:
        found |= _by_flow(batch, images)
        if batch.synthesis.privatize:
            found |= _by_worth(batch, images, labels[rows])
    write(batch.folder / OUTPUT, mark(found), mode=0o600)


def choose(cohort: Cohort, labels: Integers) -> Integers:
    """Return rows of at most `MOST_IMAGES` images with a label: one a patient, all labels alike.

    They are drawn at random, and each label has as many as the next while it has patients.
    """
    random = np.random.default_rng(secrets.randbits(64))
    waiting: dict[int, list[int]] = {}
    for patient in random.permutation(cohort.patient_count).tolist():
        row = int(random.choice(cohort.images_of(patient)))
        if labels[row] >= 0:
            waiting.setdefault(int(labels[row]), []).append(row)
    chosen: list[int] = []
    while len(chosen) < MOST_IMAGES and any(waiting.values()):
        for rows in waiting.values():
            chosen += rows[:1]
            del rows[:1]
    return np.array(sorted(chosen[:MOST_IMAGES]), np.int64)


def _by_inversion(batch: Batch, images: Images) -> Arrays:
    """Which images the inversion would leave out, and their errors."""
    plan = batch.study.models.encoder
    gan = batch.study.models.gan
    assert plan is not None
    assert gan is not None
    if plan.start is None:
        return {}
    intake = batch.study.intake
    start = read(batch.plan_folder / "checkpoints" / plan.start.name, max_bytes=WEIGHTS_CAP_BYTES)
    encoder = load_encoder(start, plan.width, gan.latent, intake.size_px, intake.channels)
    encoder = encoder.to(batch.device)
    generator = batch.generator()
    constants = InversionPlan(steps=batch.synthesis.inversion_steps, iterations=plan.iterations)
    random = torch.Generator().manual_seed(secrets.randbits(63))
    known = make_reference(generator, encoder, constants, random)
    alone = replace(constants, batch=min(constants.batch, AT_ONCE))
    done = invert(images, generator, encoder, alone, known, batch.report("invert"))
    return {"refused": (~done.accepted).astype(np.uint8), "errors": done.errors}


@exact()
@torch.no_grad()
def _by_flow(batch: Batch, images: Images) -> Arrays:
    """Bits per dimension of the images, and of the flow's own samples as stored pictures."""
    flow = batch.glow()
    drawn = flow.prior(SAMPLES, 1.0, torch.Generator().manual_seed(secrets.randbits(63)))
    samples = to_uint8(flow.decode(drawn))
    return {"bits": _bits(flow, images), "expected": _bits(flow, samples)}


@exact()
def _by_worth(batch: Batch, images: Images, labels: Integers) -> Arrays:
    """What averages teach before noise; empty where too few pictures have a label."""
    plan = batch.synthesis.privatize
    assert plan is not None
    flow = batch.glow()
    basis = batch.basis()
    mechanism = latent_event(batch.study)
    codes = clip_images(images, flow, mechanism, basis)
    rest = plan.temperature if plan.prior_temperature is None else plan.prior_temperature
    drawn = torch.Generator().manual_seed(secrets.randbits(63))

    def render(groups: Sequence[Labels]) -> Images:
        means = [codes[members].mean(axis=0) for members in groups]
        return decode_means(means, flow, (plan.temperature, rest), drawn, basis)

    random = np.random.default_rng(secrets.randbits(64))
    found = compare_averages(images, labels, mechanism.k, render, random)
    return {} if found is None else {"worth": found}


def _bits(flow: Glow, images: Images) -> Floats:
    """Bits per dimension of uint8 images [N, H, W, C], float64 [N]; infinite where not a number."""
    device = next(flow.parameters()).device
    rows = []
    for start in range(0, len(images), AT_ONCE):
        _, log_p = flow.encode(from_uint8(images[start : start + AT_ONCE], device=device))
        rows.append(flow.bits_per_dimension(log_p).double().cpu().numpy())
    bits = np.concatenate(rows)
    return np.where(np.isfinite(bits), bits, np.inf)
