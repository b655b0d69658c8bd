"""The pretrained network is the pinned file, gives fixed features, and stays as it is."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common.arrays import Images
from common.errors import RefusedError
from common.models import pretrained_features
from common.models.efficientnet import STAGES, Depthwise, EfficientNetLite0
from common.models.images import to_unit
from common.wire import tensors


def draw_slopes() -> Images:
    """One picture [1, 64, 64, 3] with a slope in each channel."""
    y, x = np.mgrid[0:64, 0:64]
    levels = np.stack([4 * x % 256, 4 * y % 256, 2 * (x + y) % 256], axis=-1)
    return levels.astype(np.uint8)[None]


def test_features_of_a_fixed_picture_are_the_same_on_every_machine() -> None:
    network = pretrained_features.load_features(dtype=torch.float64)
    colour = network.of_images(draw_slopes())
    grey = network.of_images(draw_slopes()[..., :1])
    assert colour.shape == (1, pretrained_features.DIMENSION)
    first = [1.9130258, 6.5958276, -0.95469212, 3.79548218, 8.35973355, 0.48749686]
    assert colour[0, :6] == pytest.approx(first, abs=1e-7)
    assert colour.mean() == pytest.approx(-0.13213358349595428, abs=1e-10)
    assert colour.std() == pytest.approx(5.742142082828514, abs=1e-10)
    assert grey[0, :3] == pytest.approx([-0.08463642, 7.56548906, 3.63182434], abs=1e-7)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_the_quick_convolution_of_each_channel_is_torchs(kernel: int, stride: int) -> None:
    convolve = Depthwise(6, kernel, stride).double().requires_grad_(False)
    x = torch.randn(2, 6, 13, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = convolve(x)
    wanted = F.conv2d(x, convolve.weight, convolve.bias, stride, groups=6)
    assert float((found - wanted).abs().max()) < 1e-12


def test_features_of_an_image_do_not_depend_on_its_company() -> None:
    network = pretrained_features.load_features()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    together = network.of_images(images)
    alone = network.of_images(images[1:2])
    assert together[1] == pytest.approx(alone[0], abs=1e-3)
    assert network.of_images(images[:0]).shape == (0, pretrained_features.DIMENSION)


def test_gradients_reach_the_image_and_no_weight() -> None:
    network = pretrained_features.load_features()
    image = to_unit(draw_slopes()).requires_grad_()
    network.pooled(image).sum().backward()
    assert image.grad is not None and bool(image.grad.abs().sum() > 0)
    assert not any(weight.requires_grad for weight in network.parameters())


def test_maps_have_the_sides_and_channels_of_their_depths() -> None:
    network = pretrained_features.load_features()
    found = [tuple(m.shape[1:]) for m in network.maps(to_unit(draw_slopes()), (2, 3, 5, 7))]
    assert found == [(24, 24, 24), (40, 12, 12), (112, 6, 6), (320, 3, 3)]


def test_another_file_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(*_: object, **__: object) -> tensors.Arrays:
        raise AssertionError("parsed")

    monkeypatch.setattr(tensors, "loads", parse)
    with pytest.raises(RefusedError, match=r"SHA-256 is .* expected"):
        pretrained_features.check_weights(tensors.dumps({"stem.bias": np.zeros(32, np.float16)}))


@pytest.mark.parametrize(("side", "depth"), [(95, 1), (96, 0), (96, 8)])
def test_sides_and_depths_that_do_not_fit_are_named(side: int, depth: int) -> None:
    with pytest.raises(ValueError, match="features: expected"):
        EfficientNetLite0()(torch.zeros(1, 3, side, side), depth)


def test_images_of_two_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or 3"):
        pretrained_features.load_features().pooled(torch.zeros(1, 2, 32, 32))


def test_the_network_has_sixteen_blocks() -> None:
    assert sum(stage.blocks for stage in STAGES) == 16
