"""The distances against closed forms, brute force and plain cases."""

import numpy as np
import pytest

from server.evaluate import distances


def sample(
    count: int, seed: int, shift: float = 0.0, scale: float = 1.0, features: int = 4
) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, (count, features))


def exact(count: int, mean: np.ndarray, covariance: np.ndarray, seed: int) -> np.ndarray:
    """A sample whose own mean and covariance are exactly these."""
    x = sample(count, seed, features=len(mean))
    x -= x.mean(axis=0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def test_frechet_of_gaussians_is_the_closed_form() -> None:
    a = np.diag([1.0, 4.0, 9.0])
    b = np.diag([4.0, 4.0, 1.0])  # they commute: tr(√(ΣaΣb)) = 2 + 4 + 3
    x, y = exact(50, np.zeros(3), a, 0), exact(60, np.array([3.0, 0, 0]), b, 1)
    assert distances.frechet(x, y) == pytest.approx(9 + 14 + 9 - 2 * 9)
    turn = np.linalg.qr(sample(3, 2, features=3))[0]
    assert distances.frechet(x @ turn, y @ turn) == pytest.approx(14)


def test_frechet_agrees_with_the_general_matrix_root() -> None:
    from scipy.linalg import sqrtm

    mix = np.random.default_rng(3).normal(size=(4, 4))
    x, y = sample(40, 0) @ mix, sample(50, 1, 0.5, 2.0)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    gap = x.mean(axis=0) - y.mean(axis=0)
    wanted = gap @ gap + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert distances.frechet(x, y) == pytest.approx(wanted, rel=1e-6)


def test_frechet_of_a_set_with_itself_is_zero_even_when_a_feature_is_constant() -> None:
    x = sample(40, 0)
    x[:, 1] = 3
    assert distances.frechet(x, x) == pytest.approx(0, abs=1e-6)


def test_a_sample_that_cannot_carry_a_covariance_is_refused() -> None:
    with pytest.raises(ValueError, match="4 items cannot carry"):
        distances.frechet(sample(4, 0), sample(50, 1))


def test_variances_alone_are_the_frechet_distance_of_independent_features() -> None:
    x = sample(400, 0)
    y = sample(400, 1, 0.5) * 2
    far = distances.frechet(x, y, variances_alone=True)
    gap = x.mean(0) - y.mean(0)
    spread = x.std(0, ddof=1) - y.std(0, ddof=1)
    assert far == pytest.approx((gap**2).sum() + (spread**2).sum())
    assert distances.frechet(x, y) == pytest.approx(far, rel=0.02)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_items_have_no_distance(count: int) -> None:
    for measure in (
        lambda a, b: distances.estimate_frechet(a, b, variances_alone=True),
        distances.estimate_kernel,
    ):
        with pytest.raises(ValueError, match="expected two items in each set"):
            measure(sample(count, 0), sample(5, 1))


def test_the_intervals_hold_the_distance_of_the_populations() -> None:
    whole = [sample(1500, seed, shift) for seed, shift in ((100, 0), (101, 0.4))]
    kernel = distances.kernel(*whole)
    frechet = distances.frechet(*whole, variances_alone=True)
    held = []
    for seed in range(25):
        a = sample(50, 2 * seed)
        b = sample(50, 2 * seed + 1, 0.4)
        low, high = distances.estimate_kernel(a, b).interval
        under, over = distances.estimate_frechet(a, b, variances_alone=True).interval
        held.append((low <= kernel <= high, under <= frechet <= over))
    assert np.mean(held, axis=0).min() > 0.85


def test_an_interval_of_the_kernel_distance_is_not_biased_by_what_was_drawn_twice() -> None:
    middles = []
    for seed in range(40):
        estimate = distances.estimate_kernel(sample(20, 2 * seed), sample(20, 2 * seed + 1))
        middles.append(sum(estimate.interval) / 2 - estimate.value)
    spread = np.std([distances.kernel(sample(20, 2 * i), sample(20, 2 * i + 1)) for i in range(40)])
    assert abs(np.mean(middles)) < spread / 2


def test_the_kernel_distance_is_the_u_statistic() -> None:
    a, b = sample(7, 0), sample(5, 1, 0.5)
    k = lambda x, y: (x @ y / 4 + 1) ** 3  # noqa: E731
    within = sum(
        np.mean([k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j])
        for s in (a, b)
    )
    assert distances.kernel(a, b) == pytest.approx(
        within - 2 * np.mean([k(x, y) for x in a for y in b])
    )


def test_the_kernel_distance_is_unbiased_where_frechet_is_not() -> None:
    pairs = [(sample(20, 2 * i), sample(20, 2 * i + 1)) for i in range(60)]
    kernel = [distances.kernel(a, b) for a, b in pairs]
    assert abs(np.mean(kernel)) < 3 * np.std(kernel) / np.sqrt(len(kernel))
    assert min(distances.frechet(a, b) for a, b in pairs) > 0.05


def test_precision_sees_strangers_and_recall_sees_what_is_missing() -> None:
    real = np.concatenate([sample(40, 0), sample(40, 1, shift=30)])
    precision, recall = distances.precision_recall(sample(40, 2), real)  # one kind of two
    assert precision > 0.8 and 0.3 < recall <= 0.5
    precision, recall = distances.precision_recall(
        np.concatenate([real, sample(80, 3, shift=-30)]), real
    )
    assert precision == pytest.approx(0.5, abs=0.01) and recall == 1.0


def test_a_copy_has_ratio_zero() -> None:
    real = sample(30, 0)
    assert distances.nearest_ratio(real[:5], real) == pytest.approx(0, abs=1e-6)
    assert distances.nearest_ratio(sample(5, 1, shift=20), real) > 5
