"""The encoder's training on the site.

Samples of the generator alone, better codes, weights that stay.
"""

import inspect

import numpy as np
import pytest
import torch

from client.learn import train_encoder
from common.errors import ConfigurationError, RefusedError
from common.models.encoder import Encoder, load_encoder
from common.models.stylegan import Generator
from common.models.weights import numpy_weights
from common.study.plan import Study
from tests.studies import small_study

torch.set_num_threads(1)


def study(steps: int = 2) -> Study:
    """The small plan with the smallest networks."""
    sizes = {"models__gan__width": 8, "models__encoder__width": 8, "models__encoder__steps": steps}
    return small_study(**sizes)


def networks() -> tuple[Generator, Encoder]:
    """A generator and an encoder, the same at every call."""
    torch.manual_seed(0)
    return Generator(32, 3, 8, 16), Encoder(32, 3, 8, 16)


def trained(steps: int, start: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """The weights after `steps` steps."""
    generator, encoder = networks()
    weights = numpy_weights(encoder, "encoder.") if start else {}
    draw = torch.Generator().manual_seed(seed)
    return train_encoder.train(
        numpy_weights(generator, "generator."),
        weights,
        study(steps),
        lambda done, total: None,
        draw=draw,
    )


def test_the_encoders_training_cannot_be_given_a_cohort() -> None:
    for function in (train_encoder.train, train_encoder.draw_pairs, train_encoder.iterate):
        text = str(inspect.signature(function))
        assert "cohort" not in text.lower()
    assert not hasattr(train_encoder, "Cohort")


def test_the_weights_come_back_under_the_same_names_and_move() -> None:
    before, after, again = trained(0), trained(2), trained(2)
    assert {n: (w.dtype, w.shape) for n, w in after.items()} == {
        n: (np.dtype("f4"), w.shape) for n, w in before.items()
    }
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    assert all(np.array_equal(w, again[name]) for name, w in after.items())


def test_inversions_of_fresh_samples_get_better() -> None:
    generator, _ = networks()

    def error(weights: dict[str, np.ndarray]) -> float:
        encoder = load_encoder(weights, 8, 16, 32, 3)
        _, images = train_encoder.draw_pairs(generator, torch.Generator().manual_seed(99))
        with torch.no_grad():
            return float(
                (encoder.invert(images, generator, 2).reconstructions - images).abs().mean()
            )

    assert error(trained(25)) < 0.8 * error(trained(0))


def test_half_of_the_codes_are_averages_and_lie_closer_together() -> None:
    generator, _ = networks()
    codes, images = train_encoder.draw_pairs(generator, torch.Generator().manual_seed(0))
    assert codes.shape == (8, 8, 16)
    assert images.shape == (8, 3, 32, 32)
    assert float(codes[4:].std(0).mean()) < float(codes[:4].std(0).mean())


def test_progress_is_told_and_no_starting_weights_are_needed() -> None:
    generator, _ = networks()
    seen: list[tuple[int, int]] = []
    train_encoder.train(
        numpy_weights(generator, "generator."), {}, study(3), lambda *at: seen.append(at)
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_plan_without_an_encoder_or_with_other_weights_is_refused() -> None:
    generator, _ = networks()
    weights = numpy_weights(generator, "generator.")
    models = study().models.model_copy(update={"encoder": None})
    without = study().model_copy(update={"models": models})
    with pytest.raises(ConfigurationError, match=r"models\.encoder"):
        train_encoder.train(weights, {}, without, lambda done, total: None)
    other = numpy_weights(Encoder(32, 3, 16, 16), "encoder.")
    with pytest.raises(RefusedError, match="does not fit"):
        train_encoder.train(weights, other, study(), lambda done, total: None)
