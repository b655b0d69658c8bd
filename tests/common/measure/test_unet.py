"""The U-Net: the published size, any multiple of 16, no coupling of images, its loss."""

import pytest
import torch

from common.measure.unet import UNet, dice_loss

torch.set_num_threads(1)


def test_the_full_width_has_the_published_number_of_parameters() -> None:
    assert sum(p.numel() for p in UNet(32).parameters()) == 7_846_081
    assert not list(UNet(2).buffers())


@pytest.mark.parametrize("shape", [(16, 16), (48, 80), (96, 96)])
def test_the_mask_has_the_images_size(shape: tuple[int, int]) -> None:
    with torch.no_grad():
        assert UNet(2)(torch.rand(2, 1, *shape)).shape == (2, 1, *shape)
        with pytest.raises(ValueError, match="divisible by 16"):
            UNet(2)(torch.rand(1, 1, shape[0] + 8, shape[1]))


def test_an_image_is_segmented_alike_alone_and_in_company() -> None:
    network, x = UNet(4, dropout=0.1).eval(), torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        assert torch.allclose(network(x)[1:2], network(x[1:2]), atol=1e-5)


def test_dropout_acts_in_training_alone() -> None:
    network, x = UNet(4, dropout=0.5), torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        assert not torch.equal(network.train()(x), network(x))
        assert torch.equal(network.eval()(x), network(x))


def test_the_loss_is_one_minus_smoothed_dice() -> None:
    masks = torch.zeros(2, 1, 4, 4)
    masks[0, 0, :2] = 1  # 8 of 32 pixels
    sure = torch.where(masks > 0, 50.0, -50.0)
    assert float(dice_loss(sure, masks)) == pytest.approx(0, abs=1e-6)
    assert float(dice_loss(-sure, masks)) == pytest.approx(1 - 1 / (24 + 8 + 1))
    assert float(dice_loss(torch.zeros_like(masks), masks)) == pytest.approx(
        1 - (8 + 1) / (16 + 8 + 1)
    )
