"""The image phase on a strict device: every stage from generator samples to 8-bit images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from client.state.group_store import Group, Stratum
from client.synthesize import align as al
from client.synthesize import anchors
from client.synthesize.appearance import Shown, gather_appearances
from client.synthesize.group import Roster, roster
from client.synthesize.inversion_sheet import draw_sheet
from client.synthesize.invert import Inversion, invert
from client.synthesize.privatize import privatize
from client.synthesize.reference import InversionPlan, Reference, make_reference
from client.synthesize.spread import find_directions
from common.models.encoder import Encoder
from common.models.glow import Glow
from common.models.stylegan import Critic, Generator
from common.privacy.latent_mechanisms import LatentGaussian
from common.privacy.noise import SeededNoiseSource
from tests.strict_device import GPU, strict_device

SIZES_PX = (64, 128, 256)
K = 2
PATIENTS = 4
PLAN = InversionPlan(steps=1, iterations=1, batch=4, samples=8, components=4, turned=2)
ALIGNMENT = al.AlignmentPlan(steps=2, batch=1)
KEY = bytes(32)


@dataclass
class Site:
    generator: Generator
    critic: Critic
    encoder: Encoder
    images: np.ndarray
    known: Reference
    found: Inversion
    who: Roster


@pytest.fixture(scope="module", params=SIZES_PX)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Four inverted patients, on a strict device as long as the tests run."""
    size_px = request.param
    torch.manual_seed(0)
    with strict_device():
        generator = Generator(size_px, 1, 8, 16).to(GPU)
        critic = Critic(size_px, 1, 8).to(GPU)
        encoder = Encoder(size_px, 1, 8, 16).to(GPU)
        images = np.random.default_rng(0).integers(
            0, 256, (PATIENTS, size_px, size_px, 1), np.uint8
        )
        known = make_reference(generator, encoder, PLAN, torch.Generator(GPU))
        lenient = replace(known, threshold=np.inf, upright=True)
        found = invert(images, generator, encoder, PLAN, lenient)
        found = replace(found, accepted=np.ones(PATIENTS, bool))
        patients = np.arange(PATIENTS)
        names = [f"{i:064x}" for i in patients]
        who = roster(names, patients, np.zeros(PATIENTS, np.int64), key=KEY)
        yield Site(generator, critic, encoder, images, known, found, who)


def test_inversion_brings_its_results_back(site: Site) -> None:
    assert isinstance(site.found.codes, np.ndarray)
    assert len(draw_sheet(site.images, site.found, site.generator, site.known.look_on(GPU))) > 100
    assert np.isfinite(site.found.points).all()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_groups_are_aligned_and_rendered(site: Site, bfloat16: bool) -> None:
    plan = replace(ALIGNMENT, bfloat16=bfloat16)
    common = site.known.look_on(GPU)
    names = site.who.pseudonyms
    groups = [Group(names[:K], Stratum(0, 0), K), Group(names[K:], Stratum(0, 0), K)]
    patients = al.measure_patients(
        site.images, site.found, site.who, site.generator, site.critic, plan, common
    )
    statistics = al.gather_statistics(groups, patients, site.generator, plan)
    aligned = al.align(statistics, site.generator, site.critic, plan, site.known.spread)
    assert aligned.codes.device == aligned.after.device == GPU
    codes = find_directions(site.known, 2, K, "similar").move_out(aligned.codes)
    shown = Shown(common, gather_appearances(groups, site.who, site.images, site.found))
    stacks = al.render_outputs(codes, 2, site.generator, torch.Generator(GPU), shown=shown)
    assert [stack.shape for stack in stacks] == [(2, *site.images.shape[1:])] * 2


def test_noisy_means_are_decoded(site: Site) -> None:
    group = Group(site.who.pseudonyms[:K], Stratum(0, 0), K)
    means = [anchors.NoisyMean(group, np.ones(2))]
    made = anchors.images(means, site.known.whitening, site.generator, 2, torch.Generator(GPU))
    assert [stack.shape for stack in made] == [(1, *site.images.shape[1:])] * 2


@pytest.mark.parametrize("size_px", SIZES_PX)
def test_averages_are_privatized(size_px: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (K, 1, size_px, size_px, 1), np.uint8)
    with strict_device():
        flow = Glow(size_px, 1, 4, 1, 8).to(GPU)
        mechanism = LatentGaussian(flow.top_dimension, K, "random", 1.0, 1e-5)
        noise = SeededNoiseSource(0)
        made = privatize([list(images)], flow, mechanism, 0.7, noise, practice=True)
    assert made.images.shape == (1, size_px, size_px, 1)
