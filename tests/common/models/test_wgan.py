"""The image + mask WGAN: shapes, sizes, losses against closed forms, pairs in and out, weights that do not fit."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from client.learn.model_check import check_model
from common.errors import Bug, ConfigurationError, RefusedError
from common.models.wgan import Critic, Generator, build, load, load_average, parameters_by_name
from common.models.wgan_losses import PENALTY, critic_loss, generator_loss, gradient_penalty
from common.models.wgan_pairs import SAMPLE_BATCH, sample, to_pairs, to_unit
from common.study.training import WganPlan
from tests.studies import VESSELS

torch.set_num_threads(1)
SIZES = [
    (size, kind)
    for size in (32, 64, 96, 128)
    for kind in ("small", "kossen2022")
    if (size, kind) != (32, "kossen2022")
]
LOSSES = ("wgan", "wgan-gp", "hinge", "logistic")
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


# --- networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size_px", "kind"), SIZES)
def test_latents_become_pairs_and_pairs_scores(size_px: int, kind: str) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        pairs = Generator(size_px, 8, 16, kind)(torch.randn(2, 16))
        scores = Critic(size_px, 8, kind)(pairs)
    assert pairs.shape == (2, 2, size_px, size_px) and scores.shape == (2,)
    assert pairs.dtype == scores.dtype == torch.float32
    assert bool(pairs.isfinite().all()) and bool(scores.isfinite().all())


def test_the_critics_have_the_sizes_that_the_documents_state() -> None:
    assert [parameters_of(Critic(64, n)) for n in (16, 20, 24)] == [175_281, 272_861, 391_945]
    assert parameters_of(Critic(96, 96, "kossen2022")) == 25_087_393


@pytest.mark.parametrize(
    ("size_px", "kind"), [(48, "small"), (256, "small"), (64, "large"), (32, "kossen2022")]
)
def test_sizes_and_architectures_without_a_network_are_refused(size_px: int, kind: str) -> None:
    for network in (lambda: Critic(size_px, 8, kind), lambda: Generator(size_px, 8, 16, kind)):
        with pytest.raises(ConfigurationError, match="wgan: "):
            network()


@pytest.mark.parametrize("kind", ["small", "kossen2022"])
def test_the_linter_takes_both_critics_and_no_network_keeps_a_buffer(kind: str) -> None:
    critic, generator = Critic(64, 8, kind), Generator(64, 8, 16, kind)
    check_model(critic, (2, 64, 64))
    assert not list(critic.buffers()) and not list(generator.buffers())


@pytest.mark.parametrize("kind", ["small", "kossen2022"])
def test_an_item_alone_gives_what_it_gives_in_a_batch(kind: str) -> None:
    torch.manual_seed(0)
    critic, generator, z = Critic(64, 8, kind), Generator(64, 8, 16, kind), torch.randn(3, 16)
    with torch.no_grad():
        pairs = generator(z)
        scores = critic(pairs)
        for i in range(3):
            assert torch.allclose(generator(z[i : i + 1])[0], pairs[i], atol=1e-5)
            assert torch.allclose(critic(pairs[i : i + 1])[0], scores[i], atol=1e-5)


def test_the_seeds_architecture_starts_with_its_deviation_of_a_twentieth() -> None:
    torch.manual_seed(0)
    for network in (Critic(64, 8, "kossen2022"), Generator(64, 8, 16, "kossen2022")):
        for name, value in network.named_parameters():
            if value.dim() > 1 and value.numel() > 1000:
                assert abs(float(value.detach().std()) - 0.05) < 0.005, name


# --- losses ---------------------------------------------------------------------------------------------------------------


CLOSED: dict[str, Callable[[float, float], float]] = {
    "wgan": lambda real, fake: fake - real,
    "wgan-gp": lambda real, fake: fake - real,
    "hinge": lambda real, fake: max(0.0, 1 - real) + max(0.0, 1 + fake),
    "logistic": lambda real, fake: float(np.log1p(np.exp(-real)) + np.log1p(np.exp(fake))),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_the_critics_loss_is_its_closed_form_averaged_over_the_pairs(kind: str) -> None:
    real, fake = [0.3, -2.0, 1.5], [-0.4, 0.2, 1.1, -3.0, 0.0, 0.7]
    expected = (
        np.mean([CLOSED[kind](r, 0) for r in real])
        + np.mean([CLOSED[kind](0, f) for f in fake])
        - CLOSED[kind](0, 0)
    )
    assert float(critic_loss(torch.tensor(real), torch.tensor(fake), kind)) == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize("kind", LOSSES)
def test_the_critics_loss_falls_when_real_scores_rise_and_fake_scores_fall(kind: str) -> None:
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(8, requires_grad=True)
    up, down = torch.autograd.grad(critic_loss(real, fake, kind), (real, fake))
    assert bool((up < 0).all()) and bool((down > 0).all())


@pytest.mark.parametrize("kind", LOSSES)
def test_the_generators_loss_falls_when_its_samples_score_higher(kind: str) -> None:
    fake = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    (slope,) = torch.autograd.grad(generator_loss(fake, kind), fake)
    assert bool((slope < 0).all())


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(("real", "fake"), [(3, 4), (2, 1), (0, 2), (2, 0)])
def test_pair_loss_refuses_unequal_counts(kind: str, real: int, fake: int) -> None:
    with pytest.raises(Bug, match="cannot be paired"):
        critic_loss(torch.zeros(real), torch.zeros(fake), kind)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected wgan"):
        critic_loss(torch.zeros(1), torch.zeros(1), "lsgan")


def test_the_gradient_penalty_equals_an_explicit_double_backward() -> None:
    torch.manual_seed(0)
    critic = Critic(32, 8)
    items, fakes, mix = torch.randn(3, 2, 32, 32), torch.randn(3, 2, 32, 32), torch.rand(3)
    found = gradient_penalty(critic, items, fakes, mix)
    between = torch.stack(
        [e * x + (1 - e) * f for x, f, e in zip(items, fakes, mix, strict=True)]
    ).requires_grad_()
    (slopes,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    expected = PENALTY * torch.stack([(slope.norm() - 1) ** 2 for slope in slopes]).mean()
    assert torch.allclose(found, expected, rtol=1e-5)
    own = list(critic.parameters())
    ours, theirs = (torch.autograd.grad(x, own, allow_unused=True) for x in (found, expected))
    for (name, _), a, b in zip(critic.named_parameters(), ours, theirs, strict=True):
        assert (a is None) == (b is None), name
        assert a is None or b is None or torch.allclose(a, b, rtol=1e-3, atol=1e-5), name


def test_a_critic_without_slope_has_a_finite_penalty() -> None:
    scale = torch.zeros((), requires_grad=True)
    flat: Callable[[Tensor], Tensor] = lambda x: scale * x.flatten(1).sum(1)  # noqa: E731
    penalty = gradient_penalty(flat, torch.ones(2, 2, 4, 4), torch.zeros(2, 2, 4, 4), torch.ones(2))
    (slope,) = torch.autograd.grad(penalty, scale)
    assert float(penalty.detach()) == pytest.approx(PENALTY, rel=1e-4) and bool(slope.isfinite())


# --- pairs ----------------------------------------------------------------------------------------------------------------


def test_every_grey_value_and_both_mask_values_survive_the_way_there_and_back() -> None:
    pairs = np.zeros((2, 16, 16, 2), np.uint8)
    pairs[..., 0] = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pairs[1, ..., 1] = 255
    unit = to_unit(pairs)
    assert unit.shape == (2, 2, 16, 16) and unit.dtype == torch.float32
    assert float(unit.min()) == -1.0 and float(unit.max()) == 1.0
    assert bool((unit[0, 1] == -1).all()) and bool((unit[1, 1] == 1).all())
    assert np.array_equal(to_pairs(unit), pairs)


def test_the_mask_is_cut_at_zero_and_the_image_held_in_range() -> None:
    x = torch.zeros(1, 2, 1, 4)
    x[0, 0, 0] = torch.tensor([-7.0, 7.0, 0.0, 1.0])
    x[0, 1, 0] = torch.tensor([-1e-6, 0.0, 1e-6, 0.79])
    assert to_pairs(x)[0, 0].tolist() == [[0, 0], [255, 0], [128, 255], [255, 255]]


def test_a_sampled_mask_never_leaves_its_two_values() -> None:
    torch.manual_seed(0)
    pairs = sample(Generator(32, 8, 16), 3, torch.Generator().manual_seed(0))
    assert pairs.shape == (3, 32, 32, 2) and pairs.dtype == np.uint8
    assert set(np.unique(pairs[..., 1])) <= {0, 255} and len(np.unique(pairs[..., 0])) > 2


def test_sampling_is_a_function_of_the_generators_state_alone() -> None:
    torch.manual_seed(0)
    generator, many = Generator(32, 8, 16), SAMPLE_BATCH + 2
    first = sample(generator, many, torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    assert np.array_equal(first, sample(generator, many, torch.Generator().manual_seed(1)))
    assert len({pair.tobytes() for pair in first}) == many
    random = torch.Generator().manual_seed(1)
    assert not np.array_equal(sample(generator, 2, random), sample(generator, 2, random))


# --- weights --------------------------------------------------------------------------------------------------------------


def test_weights_come_back_under_their_global_names() -> None:
    given = weights()
    generator, average, critic = load(given, PLAN, 32)
    back = {
        name: value.detach().numpy() for name, value in parameters_by_name(generator, average, critic).items()
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


def test_a_pair_that_the_critic_prefers_pulls_the_generator_towards_it() -> None:
    """Some Adam-free steps of the generator alone raise its scores: nothing between latents and loss is detached."""
    torch.manual_seed(0)
    generator, critic, z = Generator(32, 8, 16), Critic(32, 8), torch.randn(4, 16)
    own = list(generator.parameters())
    scores = [F.softplus(-critic(generator(z))).mean()]
    for _ in range(5):
        slopes = torch.autograd.grad(scores[-1], own)
        with torch.no_grad():
            for value, slope in zip(own, slopes, strict=True):
                value -= 0.2 * slope
        scores.append(F.softplus(-critic(generator(z))).mean())
    assert float(scores[-1].detach()) < float(scores[0].detach())
