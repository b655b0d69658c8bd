"""Measures and attacks on a strict device: what is trained, and what is compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.measure import classifier, pair_segmenter
from common.measure.pair_utility import utility
from common.models.encoder import Encoder
from common.models.glow import Glow
from common.models.stylegan import Critic, Generator
from server.evaluate import attacks, siamese
from server.evaluate.attack_spaces import SPACES, Networks, spaces
from server.evaluate.extractors import Network, Pretrained, Texture
from tests.strict_device import GPU, strict_device

SIZES_PX = (64, 128, 256)


def _images(count: int, size_px: int, planes: int = 1) -> np.ndarray:
    """Random images."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (count, size_px, size_px, planes), np.uint8)


@pytest.mark.parametrize("size_px", SIZES_PX)
def test_the_classifier_trains_and_predicts(size_px: int) -> None:
    recipe = classifier.Recipe(width=4, steps=4, batch=4, snapshots=2)
    labels = np.arange(16) % 2
    with strict_device():
        images = _images(16, size_px)
        model = classifier.fit(images, labels, 2, seed=0, recipe=recipe, device=GPU)
        assert model.mean.device == GPU
        assert len(model.predict(images)) == 16


@pytest.mark.parametrize("size_px", SIZES_PX)
def test_the_segmenter_trains_and_predicts(size_px: int) -> None:
    choice = pair_segmenter.Choice(0.1, 1e-3)
    recipe = pair_segmenter.Recipe(4, epochs=1, batch_size=2, grid=(choice,), augment=True)
    pairs = _images(4, size_px, 2)
    pairs[..., 1] = (pairs[..., 1] > 127) * np.uint8(255)
    with strict_device():
        found = utility(pairs, pairs, range(4), recipe=recipe, device=GPU)
    assert found.images == 4


@pytest.mark.parametrize("size_px", SIZES_PX)
def test_images_are_compared_in_every_space(size_px: int) -> None:
    with strict_device():
        networks = Networks(
            Generator(size_px, 1, 8, 16).to(GPU),
            Critic(size_px, 1, 8).to(GPU),
            Encoder(size_px, 1, 8, 16).to(GPU),
            iterations=1,
            device=GPU,
        )
        found = spaces(_images(3, size_px), networks)
        assert tuple(found) == SPACES
        assert all(len(rows) == 3 and np.isfinite(rows).all() for rows in found.values())


@pytest.mark.parametrize("size_px", SIZES_PX)
def test_an_attack_draws_its_own_samples(size_px: int) -> None:
    people = _images(4, size_px)
    zeros = np.zeros(2, np.int64)
    who = attacks.people((people[:2], zeros, zeros), (people[2:], zeros, zeros))
    with strict_device():
        for networks in (
            Networks(Generator(size_px, 1, 8, 16).to(GPU), device=GPU),
            Networks(flow=Glow(size_px, 1, 3, 1, 8).to(GPU), device=GPU),
        ):
            assert attacks.Battery(who, networks).control(zeros) is None  # too few people
        assert attacks.linkage(people[:2], zeros, who, 1, GPU) is not None


@pytest.mark.parametrize("size_px", SIZES_PX)
def test_re_identification_trains_and_embeds(size_px: int) -> None:
    recipe = siamese.Recipe(width=4, embedding=8, steps=1, persons=4)
    images = _images(8, size_px)
    who = np.arange(8) // 2
    with strict_device():
        network = siamese.train(images, who, seed=0, recipe=recipe, device=GPU)
        assert siamese.recognition(network, images, who) is not None


@pytest.mark.parametrize("size_px", SIZES_PX)
def test_features_come_back_from_the_device(size_px: int) -> None:
    with strict_device():
        layers = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1))
        network = Network("small", torch.nn.Sequential(*layers, torch.nn.Flatten()).to(GPU), 32)
        for extractor in (Texture(4, device=GPU), Pretrained(device=GPU), network):
            assert len(extractor.features(_images(3, size_px))) == 3
