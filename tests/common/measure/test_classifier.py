"""The classifier learns what can be learned, and knows no test image."""

import numpy as np
import pytest

from common.errors import ConfigurationError
from common.measure import classifier as cl
from common.measure.scores import score_predictions

SHORT = cl.Recipe(width=8, steps=40, batch=16)


def spots(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with none, two or six bright spots, uint8 [N, 16, 16, 1], and the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.normal(60, 12, (count, 16, 16, 1))
    for i, label in enumerate(labels):
        for y, x in rng.integers(1, 15, ((0, 2, 6)[label], 2)):
            images[i, y - 1 : y + 1, x - 1 : x + 1] += 120
    return images.clip(0, 255).astype(np.uint8), labels


def kappa_of(train: tuple[np.ndarray, np.ndarray], seed: int = 0) -> float:
    test, truth = spots(120, 99)
    return score_predictions(
        cl.fit(*train, 3, seed=seed, recipe=SHORT).predict(test), truth, 3
    ).kappa


def test_images_teach_and_shuffled_labels_do_not() -> None:
    images, labels = spots(150, 0)
    wrong = np.random.default_rng(1).permutation(labels)
    assert kappa_of((images, labels)) > 0.6
    assert abs(kappa_of((images, wrong))) < 0.35


def test_the_same_seed_gives_the_same_network_and_another_seed_another() -> None:
    images, labels = spots(30, 0)
    few = cl.Recipe(width=4, steps=4, batch=8)
    one, same, other = (
        cl.fit(images, labels, 3, seed=s, recipe=few).weights["head"].numpy() for s in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_images_of_one_group_are_on_one_side_of_the_cut() -> None:
    labels = np.repeat(np.arange(3), 30)
    groups = np.arange(90) // 3
    kept, held = cl._split(labels, groups, 0.2, np.random.default_rng(0))
    assert not set(groups[kept]) & set(groups[held])
    assert sorted([*kept, *held]) == list(range(90))
    assert np.bincount(labels[held]).tolist() == [6, 6, 6]


def test_no_class_is_left_without_a_training_image() -> None:
    labels = np.array([0] * 8 + [1] * 3)
    kept, _ = cl._split(labels, np.arange(11), 0.2, np.random.default_rng(0))
    assert set(labels[kept]) == {0, 1} and (labels[kept] == 1).sum() == 3
    both = np.zeros(11, np.int64)  # one group of two labels cannot be held out
    assert len(cl._split(labels, both, 0.2, np.random.default_rng(0))[1]) == 0


def test_a_test_image_cannot_reach_the_training() -> None:
    import inspect

    assert not {"test", "truth", "real"} & set(inspect.signature(cl.fit).parameters)


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [0]])
def test_labels_that_do_not_fit_are_refused(labels: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="labels 0 to 2"):
        cl.fit(spots(2, 0)[0], np.array(labels), 3, seed=0, recipe=SHORT)
