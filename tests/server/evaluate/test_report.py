"""The findings on a release: what is counted, and honest gaps."""

import numpy as np

from server.evaluate.findings import DOWNSTREAM, NOT_EVALUATED, Finding
from server.evaluate.report import evaluate
from tests.discs import draw_discs


def values(findings: list[Finding]) -> dict[str, float | None]:
    return {f.name: f.value for f in findings}


def test_the_default_features_are_those_of_the_pretrained_network() -> None:
    findings = evaluate(draw_discs(8, 1), np.zeros(8, np.int64), ("none",), draw_discs(16, 0))
    found = {f.name: f for f in findings}
    for name in ("Fréchet distance", "kernel distance", "precision", "nearest reference ratio"):
        assert found[name].value is not None
        assert "EfficientNet-Lite0" in found[name].evidence
    assert not any("texture" in f.evidence for f in findings)


def test_too_few_images_are_not_compared_and_their_number_is_said() -> None:
    findings = evaluate(draw_discs(3, 1), np.zeros(3, np.int64), ("none",), draw_discs(16, 0))
    found = {f.name: f for f in findings}
    assert found["kernel distance"].status == NOT_EVALUATED
    assert "3 images and 16 of the reference" in found["kernel distance"].evidence


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
    assert (found["images of label a"], found["images of label b"]) == (3, 1)
