"""The image + mask WGAN: shapes, sizes, starting weights, weights that do not fit."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from client.learn.model_check import check_model
from common.errors import ConfigurationError, RefusedError
from common.models import wgan
from common.models.sizes import CONTEXT_PX, PAIR_SIZES_PX
from common.models.wgan import (
    GRAIN,
    LIFT,
    Critic,
    Generator,
    MaskFirst,
    build,
    build_generator,
    load,
    load_average,
    parameters_by_name,
)
from common.study.training import WganPlan
from tests.studies import VESSELS

torch.set_num_threads(1)
SIZES = [
    (size, kind)
    for size in (32, 64, 96, 128)
    for kind in PAIR_SIZES_PX
    if (size, kind) != (32, "kossen2022")
]
PLAN = WganPlan.model_validate(VESSELS["models"]["wgan"])


def parameters_of(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def weights() -> dict[str, NDArray[np.float32]]:
    """Global weights whose average is another network than the generator."""
    torch.manual_seed(0)
    generator, critic = build(PLAN, 32)
    average, _ = build(PLAN, 32)
    return {
        name: value.detach().numpy().copy()
        for name, value in parameters_by_name(generator, average, critic).items()
    }


@pytest.mark.parametrize(("size_px", "kind"), SIZES)
def test_latents_become_pairs_and_pairs_scores(size_px: int, kind: str) -> None:
    torch.manual_seed(0)
    generator = build_generator(size_px, 8, 16, kind)
    with torch.no_grad():
        pairs = generator(torch.randn(2, generator.latent))
        scores = Critic(size_px, 8, kind)(pairs)
    assert pairs.shape == (2, 2, size_px, size_px) and scores.shape == (2,)
    assert pairs.dtype == scores.dtype == torch.float32
    assert bool(pairs.isfinite().all()) and bool(scores.isfinite().all())


def test_the_critics_have_the_sizes_that_the_documents_state() -> None:
    assert [parameters_of(Critic(64, n)) for n in (16, 20, 24)] == [175_281, 272_861, 391_945]
    assert parameters_of(Critic(96, 96, "kossen2022")) == 25_087_393


@pytest.mark.parametrize(
    ("size_px", "kind"), [(48, "small"), (512, "small"), (64, "large"), (32, "kossen2022")]
)
def test_sizes_and_architectures_without_a_network_are_refused(size_px: int, kind: str) -> None:
    for network in (lambda: Critic(size_px, 8, kind), lambda: Generator(size_px, 8, 16, kind)):
        with pytest.raises(ConfigurationError, match="wgan: "):
            network()


@pytest.mark.parametrize("kind", PAIR_SIZES_PX)
def test_the_linter_takes_both_critics_and_no_network_keeps_a_buffer(kind: str) -> None:
    critic, generator = Critic(64, 8, kind), build_generator(64, 8, 16, kind)
    check_model(critic, (2, 64, 64))
    assert not list(critic.buffers()) and not list(generator.buffers())


@pytest.mark.parametrize("kind", PAIR_SIZES_PX)
def test_an_item_alone_gives_what_it_gives_in_a_batch(kind: str) -> None:
    torch.manual_seed(0)
    critic, generator = Critic(64, 8, kind), build_generator(64, 8, 16, kind)
    z = torch.randn(3, generator.latent)
    with torch.no_grad():
        pairs = generator(z)
        scores = critic(pairs)
        for i in range(3):
            assert torch.allclose(generator(z[i : i + 1])[0], pairs[i], atol=1e-5)
            assert torch.allclose(critic(pairs[i : i + 1])[0], scores[i], atol=1e-5)


def test_kossens_architecture_starts_with_its_deviation_of_a_twentieth() -> None:
    torch.manual_seed(0)
    for network in (Critic(64, 8, "kossen2022"), Generator(64, 8, 16, "kossen2022")):
        for name, value in network.named_parameters():
            if value.dim() > 1 and value.numel() > 1000:
                assert abs(float(value.detach().std()) - 0.05) < 0.005, name


def test_the_mask_comes_first_and_the_image_follows_it() -> None:
    torch.manual_seed(0)
    generator = MaskFirst(32, 8, 16)
    z = torch.randn(4, generator.latent)
    pairs = generator(z)
    assert set(pairs[:, 1].unique().tolist()) == {-1.0, 1.0}
    # the mask, which has two values, can be learned nonetheless
    pairs[:, 1].sum().backward()
    assert float(generator.start.weight.grad.abs().max()) > 0  # type: ignore[union-attr]

    # other grain changes the image alone, by as much as it starts with
    other = z.clone()
    other[:, 16:] = torch.randn(4, 32 * 32)
    with torch.no_grad():
        again = generator(other)
    assert torch.equal(again[:, 1], pairs[:, 1])
    apart = again[:, 0] - pairs[:, 0].detach()
    each = [one[mask < 0].std() for one, mask in zip(apart, pairs[:, 1], strict=True)]
    moved = torch.stack(each).mean()
    assert 1.3 * GRAIN < float(moved) < 1.5 * GRAIN  # two draws: sqrt(2)

    # and its sums lift an image, and what is marked in it
    lifted = z.clone()
    level = z.clone()
    level[:, 16:] = 0
    times = torch.tensor([-2.0, 0.0, 1.0, 3.0])
    halves = lifted[:, 16:].view(4, 2, 512)
    halves[:, 0] = times[:, None] / 512**0.5  # a sum of 22.6 times that, which is normal
    halves[:, 1] = times.flip(0)[:, None] / 512**0.5
    with torch.no_grad():
        generator.grain.weight.zero_()
        generator.tone.weight[0, 1] = 3 * LIFT
        apart = (generator(lifted) - generator(level))[:, 0]
    for image, mask, whole, there in zip(apart, pairs[:, 1], times, times.flip(0), strict=True):
        assert torch.allclose(image[mask < 0], 3 * whole * LIFT, atol=1e-5)
        assert torch.allclose(image[mask > 0], (3 * whole + there) * LIFT, atol=1e-5)

    # the image knows each pixel of the mask, and of the rest no more than its neighbourhood
    with torch.no_grad():
        features = generator.features(z[:, :16])
        mask = pairs[:, 1:].detach()
        turned = mask.clone()
        turned[:, :, 10, 10] *= -1
        changed = (generator.painted(turned, features) - generator.painted(mask, features)).abs()
        assert float(changed[:, 0, 10, 10].min()) > 0
        assert float(changed[:, 0, 20:, 20:].max()) == 0
        one = features.clone()
        one[:, :, 10, 10] += 1
        by_one = (generator.painted(mask, one) - generator.painted(mask, features)).abs()
        by_all = (generator.painted(mask, features + 1) - generator.painted(mask, features)).abs()
    assert 0 < float(by_one[:, 0, 10, 10].mean()) < 0.05 * float(by_all[:, 0, 10, 10].mean())


@pytest.mark.parametrize("side", [16, 33])
def test_what_is_around_a_pixel_is_the_mean_of_the_window_within_the_picture(side: int) -> None:
    x = torch.randn(2, 3, side, side)
    x[0, 0, 0, 0] = 100
    pooled = nn.functional.avg_pool2d(x, CONTEXT_PX, 1, CONTEXT_PX // 2, count_include_pad=False)
    assert torch.allclose(wgan._mean_around(x), pooled, atol=1e-5)


def test_weights_come_back_under_their_global_names() -> None:
    given = weights()
    generator, average, critic = load(given, PLAN, 32)
    back = {
        name: value.detach().numpy()
        for name, value in parameters_by_name(generator, average, critic).items()
    }
    assert back.keys() == given.keys() and all(
        np.array_equal(back[name], given[name]) for name in given
    )
    assert {name.split(".")[0] for name in given} == {"generator", "average", "critic"}


def test_what_is_sampled_is_the_average_and_not_the_generator() -> None:
    given = weights()
    average = load_average(given, PLAN, 32)
    assert np.array_equal(average.start.weight.detach().numpy(), given["average.start.weight"])
    assert not np.array_equal(given["average.start.weight"], given["generator.start.weight"])
    only = {name: value for name, value in given.items() if name.startswith("average.")}
    assert torch.equal(load_average(only, PLAN, 32).start.weight, average.start.weight)


def dropped(given: dict[str, NDArray[np.float32]], name: str) -> None:
    del given[name]


def reshaped(given: dict[str, NDArray[np.float32]], name: str) -> None:
    given[name] = given[name][..., :-1]


def broken(given: dict[str, NDArray[np.float32]], name: str) -> None:
    given[name].flat[0] = np.nan


def added(given: dict[str, NDArray[np.float32]], name: str) -> None:
    given[name.split(".")[0] + ".extra"] = np.zeros(1, np.float32)


SPOILED = {
    "missing": dropped,
    "expected": reshaped,
    "not finite": broken,
    "not part of this model": added,
}


@pytest.mark.parametrize(
    "name", ["generator.start.weight", "average.start.weight", "critic.layers.0.weight"]
)
@pytest.mark.parametrize("problem", SPOILED)
def test_weights_that_do_not_fit_the_plan_are_refused(name: str, problem: str) -> None:
    given = weights()
    SPOILED[problem](given, name)
    with pytest.raises(RefusedError, match=problem):
        load(given, PLAN, 32)
    if name.startswith("average."):
        with pytest.raises(RefusedError, match=problem):
            load_average(given, PLAN, 32)


def test_weights_of_another_plan_are_refused() -> None:
    wider = PLAN.model_copy(update={"width": 16})
    with pytest.raises(RefusedError, match="does not fit"):
        load(weights(), wider, 32)
