"""Our batched loss, gradient and trajectory equal a plain loop over groups, sources and windows."""

import dataclasses
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.paper import alignment as parity
from benchmarks.paper import external, stylegan2
from benchmarks.paper import loop as paper_loop
from common.errors import ConfigurationError

torch.set_num_threads(1)
PLAN = parity.PaperPlan(steps=12, style_weight=0.1, image_px=32, content_px=24, windows=2)
GROUPS, K, SIZE_PX = 2, 3, 16


def vgg() -> nn.Sequential:
    """The shape of VGG-19's start, with a layer after the cut."""
    layers = [
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(True),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(True),
    ]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Conv2d(6, 4, 3, padding=1))


def resnet() -> nn.Module:
    """Convolution, batch norm with used statistics, average, in a ResNet's order."""
    norm = nn.BatchNorm2d(8)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    nn.init.normal_(norm.running_mean)
    nn.init.normal_(norm.weight, 1.0, 0.2)
    nn.init.normal_(norm.bias)
    pool = nn.AdaptiveAvgPool2d(3)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 8, 3, 2), bn1=norm, tanh=nn.Tanh(), pool=pool, flat=nn.Flatten()
        )
    )


@dataclasses.dataclass
class Scene:
    """The same networks and sources for both sides."""

    loop: paper_loop.PaperLoop
    loss: parity.PaperLoss
    real: Tensor
    inverted: Tensor
    codes: Tensor


def scene(dtype: torch.dtype, seed: int = 3) -> Scene:
    torch.manual_seed(seed)
    generator = (
        stylegan2.PaperGenerator(SIZE_PX, latent=8, base=64, most_channels=6)
        .to(dtype)
        .requires_grad_(False)
    )
    whole, network = (
        vgg().to(dtype).requires_grad_(False),
        resnet().to(dtype).eval().requires_grad_(False),
    )
    texture = external.Texture(6).to(dtype)
    for name in ("0", "2"):
        texture.features[name].load_state_dict(whole[int(name)].state_dict())
    saved = {name: value.clone() for name, value in network.state_dict().items()}
    content = external.Content(network).requires_grad_(False)

    def load() -> tuple[nn.Sequential, nn.Module]:
        unfolded = resnet().to(dtype).eval().requires_grad_(False)
        unfolded.load_state_dict(saved)
        return whole, unfolded

    real, inverted = (torch.randn(GROUPS, K, 3, SIZE_PX, SIZE_PX, dtype=dtype) for _ in range(2))
    codes = torch.randn(GROUPS, generator.layer_count, 8, dtype=dtype)
    loss = parity.PaperLoss(generator, texture, content, PLAN)
    return Scene(paper_loop.PaperLoop(generator, load, PLAN), loss, real, inverted, codes)


def compared(s: Scene) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(our loss, the loop's, our gradient, the loop's) for each group."""
    codes = s.codes.clone().requires_grad_()
    ours = s.loss(codes, s.loss.targets(s.real, s.inverted))
    (slopes,) = torch.autograd.grad(ours.sum(), [codes])
    found = []
    for group in range(GROUPS):
        s.loop.start(s.real[group], s.inverted[group])
        code = s.codes[group].clone().requires_grad_()
        theirs = s.loop.loss(code)
        (slope,) = torch.autograd.grad(theirs, [code])
        found.append((ours[group].detach(), theirs.detach(), slopes[group], slope))
    return found


def test_loss_and_gradient_equal_the_papers_loop_to_1e_9_in_double_precision() -> None:
    for ours, theirs, slopes, slope in compared(scene(torch.float64)):
        assert float(theirs) > 1  # both terms weigh
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
        np.testing.assert_allclose(slopes, slope, rtol=1e-7, atol=1e-9 * float(slope.abs().max()))


def test_loss_and_gradient_agree_with_the_papers_loop_in_single_precision() -> None:
    for ours, theirs, slopes, slope in compared(scene(torch.float32)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        assert float(torch.cosine_similarity(slopes.flatten(), slope.flatten(), dim=0)) > 0.99999


def test_the_whole_trajectory_is_the_papers_with_a_first_step_that_moves_nothing() -> None:
    s = scene(torch.float64)
    codes, history = parity.paper_align(s.codes, s.loss.targets(s.real, s.inverted), s.loss)
    assert torch.equal(history[0], history[1])
    assert not torch.equal(history[1], history[2])
    for group in range(GROUPS):
        s.loop.start(s.real[group], s.inverted[group])
        code, theirs = s.loop.run(s.codes[group])
        np.testing.assert_allclose(history[:, group], theirs, rtol=1e-6)
        np.testing.assert_allclose(codes[group], code, rtol=1e-4, atol=1e-5)


def test_the_mean_feature_is_not_normalised_again() -> None:
    s = scene(torch.float64)
    norms = s.loss.targets(s.real, s.inverted).content.norm(dim=1)
    assert bool((norms < 0.9985).all())


def test_the_two_terms_are_weighed_as_the_paper_weighs_them() -> None:
    assert (parity.PaperPlan.content_weight, parity.PaperPlan.style_weight) == (100.0, 1e-6)
    assert (parity.PaperPlan.windows, parity.PaperPlan.image_px, parity.PaperPlan.content_px) == (
        4,
        256,
        224,
    )
    assert [round(parity.paper_learning_rate(t), 3) for t in (0, 0.05, 0.5, 0.875, 1)] == [
        0,
        1,
        1,
        0.5,
        0,
    ]


def test_windows_that_do_not_divide_and_unequal_sources_are_refused() -> None:
    s = scene(torch.float32)
    with pytest.raises(ConfigurationError, match="divisor of 32"):
        dataclasses.replace(s.loss, plan=dataclasses.replace(PLAN, windows=3)).targets(
            s.real, s.inverted
        )
    with pytest.raises(ConfigurationError, match="as many inverted as real"):
        s.loss.targets(s.real, s.inverted[:, :2])


@pytest.mark.parametrize("size_px", [16, 64])
def test_activation_modulation_equals_weight_modulation(size_px: int) -> None:
    generator = stylegan2.PaperGenerator(size_px, latent=8, base=256, most_channels=8).double()
    codes = torch.randn(2, generator.layer_count, 8, dtype=torch.float64)
    np.testing.assert_allclose(
        generator.synthesis(codes).detach(),
        paper_loop.synthesis(generator, codes).detach(),
        rtol=1e-9,
        atol=1e-10,
    )


def test_the_papers_generator_refuses_a_code_of_another_shape() -> None:
    with pytest.raises(ConfigurationError, match=r"\[N, 6, 8\]"):
        stylegan2.PaperGenerator(16, latent=8, base=64, most_channels=6).synthesis(
            torch.zeros(1, 8, 8)
        )


def test_a_group_keeps_its_centroid_where_alignment_leads_away_from_its_sources() -> None:
    s = scene(torch.float32)
    made = s.loss.generator.synthesis(s.codes).clamp(-1, 1)
    elsewhere = torch.randn_like(s.codes)

    def pooled(images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def keep(aligned: Tensor, centroids: Tensor) -> Tensor:
        """With sources that look as `s.codes` are drawn."""
        real = made[:, None].expand(-1, K, -1, -1, -1)
        return parity.keep_nearer(aligned, centroids, real, s.loss.generator, pooled)

    assert torch.equal(keep(s.codes, elsewhere), s.codes)
    assert torch.equal(keep(elsewhere, s.codes), s.codes)
    mixed = torch.stack([s.codes[0], elsewhere[1]])  # each group for itself
    assert torch.equal(keep(mixed, torch.stack([elsewhere[0], s.codes[1]])), s.codes)
    broken = torch.full_like(s.codes, torch.nan)
    assert torch.equal(keep(broken, elsewhere), elsewhere)
