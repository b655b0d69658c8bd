"""The findings on a release: what is counted, and honest gaps."""

import numpy as np

from server.evaluate.findings import DOWNSTREAM, NOT_EVALUATED, Finding
from server.evaluate.report import _texture, evaluate
from tests.discs import draw_discs


def values(findings: list[Finding]) -> dict[str, float | None]:
    return {f.name: f.value for f in findings}


def test_a_small_reference_gets_fewer_features_rather_than_no_distance() -> None:
    found = values(
        evaluate(draw_discs(60, 1), np.zeros(60, np.int64), ("none",), draw_discs(110, 0))
    )
    assert found["Fréchet distance"] is not None
    assert [_texture(n).channels for n in (20, 49, 200, 289)] == [48, 8, 24, 48]


def test_what_was_measured_elsewhere_takes_the_place_of_not_evaluated() -> None:
    extra = Finding("worth", 0.5, "Dice", "test", interval=(0.4, 0.6))
    found = evaluate(draw_discs(6, 0), np.zeros(6, np.int64), ("none",), None, downstream=[extra])
    assert extra in found and DOWNSTREAM not in {f.name for f in found}


def test_what_did_not_run_says_so() -> None:
    findings = evaluate(draw_discs(6, 0), np.zeros(6, np.int64), ("none",), None)
    silent = {f.name for f in findings if f.status == NOT_EVALUATED}
    assert {
        "kernel distance",
        "membership inference",
        "downstream accuracy on real images",
    } <= silent
    assert all(f.value is None for f in findings if f.status == NOT_EVALUATED)


def test_duplicates_and_label_shares_are_counted() -> None:
    images = draw_discs(4, 0)
    images[1] = images[0]
    found = {f.name: f.value for f in evaluate(images, np.array([0, 0, 0, 1]), ("a", "b"), None)}
    assert found["exact duplicates"] == 1
    assert found["share of label a"] == 0.75
