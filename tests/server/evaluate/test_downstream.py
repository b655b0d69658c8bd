"""A release that teaches is worth more; nothing is learned from the test people."""

import numpy as np

from common.measure.classifier import Recipe
from server.evaluate import downstream as ds
from server.evaluate.findings import DOWNSTREAM, NOT_EVALUATED

SHORT = Recipe(width=8, steps=40, batch=16)


def spots(count: int, seed: int) -> ds.Labelled:
    """Noise with none or six bright spots, uint8 [N, 16, 16, 1]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = rng.normal(60, 12, (count, 16, 16, 1))
    for i in np.flatnonzero(labels):
        for y, x in rng.integers(1, 15, (6, 2)):
            images[i, y - 1 : y + 1, x - 1 : x + 1] += 120
    return ds.Labelled(images.clip(0, 255).astype(np.uint8), labels)


REAL, TEST = spots(60, 0), spots(60, 1)


def findings(released: ds.Labelled) -> dict[str, ds.Finding]:
    found = ds.downstream(released, REAL, TEST, ("none", "some"), "invented", seeds=2, recipe=SHORT)
    return {f.name: f for f in found}


def test_a_release_that_teaches_is_worth_more_than_one_with_shuffled_labels() -> None:
    good = findings(spots(40, 2))
    bad = findings(
        ds.Labelled(spots(40, 2).images, np.random.default_rng(0).permutation(np.arange(40) % 2))
    )
    for name in (ds.KAPPA, DOWNSTREAM, ds.MACRO_F1):
        assert good[name].value > bad[name].value + 0.2  # type: ignore[operator]
    # the real ones are the same
    assert good[ds.KAPPA + ds.ENDS[2]].value == bad[ds.KAPPA + ds.ENDS[2]].value
    assert good[ds.RATIO].value is not None and good[ds.RATIO].value > 0.6
    assert good[ds.KAPPA].interval is not None
    assert {"downstream recall of none", "downstream recall of some"} <= set(good)


def test_the_comparison_has_as_many_real_images_of_each_label() -> None:
    released = ds.Labelled(REAL.images[:9], np.array([0, 0, 0, 0, 0, 0, 1, 1, 1]))
    chosen = ds.draw_as_many(released, REAL, 0)
    assert np.bincount(chosen.labels).tolist() == [6, 3]
    few = ds.Labelled(REAL.images[:4], REAL.labels[:4])
    assert np.bincount(ds.draw_as_many(released, few, 0).labels).tolist() == [2, 2]


def test_what_a_release_keeps_is_judged_by_people_who_took_no_part() -> None:
    """Shuffled labels are confirmed about half the time, true labels as often as on real images."""
    clear = findings(spots(40, 2))
    shuffled = findings(
        ds.Labelled(spots(40, 2).images, np.random.default_rng(0).permutation(np.arange(40) % 2))
    )
    real = clear[ds.KEPT_REAL].value
    assert real is not None and real > 0.8
    assert clear[ds.KEPT].value > real - 0.15  # type: ignore[operator]
    assert shuffled[ds.KEPT].value < 0.7 < real  # type: ignore[operator]
    assert shuffled[ds.KEPT_REAL].value == real
    assert "trained on 60 people who did not take part" in clear[ds.KEPT].evidence


def test_the_judges_learn_from_nobody_who_took_part() -> None:
    """Wrong labels of members change nothing; others of one label alone give no verdict."""
    wrong = ds.Labelled(REAL.images, 1 - REAL.labels)
    of_release, of_real = ds.measure_kept(spots(40, 2), wrong, TEST, 2, 1, SHORT, "")
    assert of_release.value is not None and of_release.value > 0.7
    assert of_real.value is not None and of_real.value < 0.3
    alone = ds.Labelled(TEST.images[::2], TEST.labels[::2])
    found = ds.measure_kept(REAL, REAL, alone, 2, 1, SHORT, "")
    assert [(f.name, f.value, f.status) for f in found] == [(ds.KEPT, None, NOT_EVALUATED)]


def test_each_label_weighs_the_same_in_what_is_kept() -> None:
    truth = np.array([0] * 9 + [1])
    assert ds._balanced_accuracy(np.zeros(10, np.int64), truth) == 0.5


def test_too_little_reads_not_evaluated() -> None:
    one = ds.Labelled(REAL.images[::2], REAL.labels[::2])  # one label alone
    for released, test in (
        (ds.Labelled(REAL.images[:5], REAL.labels[:5]), TEST),
        (one, TEST),
        (REAL, ds.Labelled(TEST.images[:9], TEST.labels[:9])),
    ):
        found = ds.downstream(released, REAL, test, ("none", "some"), "")
        assert {f.status for f in found} == {NOT_EVALUATED}
        assert {f.name for f in found} == {DOWNSTREAM, ds.KAPPA, ds.KEPT}
