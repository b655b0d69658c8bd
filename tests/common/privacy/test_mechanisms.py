"""Events: a mechanism comes back from its event, and the unknown is refused."""

import json

import pytest

from common.errors import RefusedError
from common.privacy.latent_mechanisms import Latent, LatentGaussian, LatentLaplace, PrivUnit
from common.privacy.mechanisms import SubsampledGaussian, mechanism_from

GAUSSIAN = SubsampledGaussian(0.064, 1.87, 2000, 250_000, "gan")
BOX = LatentLaplace("box", 3.0, 1024, 1, "random", 0.5)
BALL = LatentLaplace("l1_ball", 0.8, 1024, 10, "random", 0.5)


NORMAL = LatentGaussian(32, 10, "random", 8.0, 1e-5)
UNIT = PrivUnit(32, 8.0)


@pytest.mark.parametrize("mechanism", [GAUSSIAN, BOX, BALL, NORMAL, UNIT])
def test_an_event_comes_back_as_the_same_mechanism(mechanism: SubsampledGaussian | Latent) -> None:
    assert mechanism_from(mechanism.event()) == mechanism
    assert json.loads(mechanism.event()).items() <= mechanism.describe().items()


def test_a_number_that_is_none_never_enters_an_event() -> None:
    """No mechanism can be made with one; a ledger's line would not be JSON, were one forced in."""
    m = LatentGaussian(32, 10, "random", 8.0, 1e-5)
    object.__setattr__(m, "epsilon", float("nan"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        m.event()


BAD_EVENTS = {
    "not JSON": "{",
    "not an object": "[1]",
    "unknown mechanism": '{"mechanism":"gaussian"}',
    "a Gaussian without its delta": NORMAL.event().replace('"delta":1e-05,', ""),
    "a PrivUnit of two images": UNIT.event().replace('"dimension"', '"k":2,"dimension"'),
    "a PrivUnit of too many coordinates": UNIT.event().replace("32", "65"),
    "no mechanism": "{}",
    "a field too many": GAUSSIAN.event().replace('"q"', '"extra":1,"q"'),
    "a field too few": GAUSSIAN.event().replace('"q":0.064,', ""),
    "a field left to its default": GAUSSIAN.event().replace('"dimension":250000,', ""),
    "a value out of range": GAUSSIAN.event().replace("0.064", "1.5"),
    "a value of another type": GAUSSIAN.event().replace("0.064", '"x"'),
    "not a number": GAUSSIAN.event().replace("0.064", "NaN"),
}


@pytest.mark.parametrize("case", BAD_EVENTS)
def test_an_unknown_event_is_refused(case: str) -> None:
    with pytest.raises(RefusedError) as refusal:
        mechanism_from(BAD_EVENTS[case])
    assert refusal.value.code == "E-MECHANISM"


EVENT = SubsampledGaussian(0.1, 2.0, 4, 100, "gan").event()
ODD = {
    "an infinite dimension": EVENT.replace('"dimension":100', '"dimension":1e999'),
    "a dimension that is no whole number": EVENT.replace('"dimension":100', '"dimension":1.5'),
    "a name that is a list": EVENT.replace('"gan"', "[]"),
    "a name of great depth": EVENT.replace('"gan"', "[" * 900 + "]" * 900),
    "depth alone": "[" * 100_000,
    "a number of thousands of digits": EVENT.replace('"steps":4', '"steps":' + "9" * 5000),
}


@pytest.mark.parametrize("case", ODD)
def test_an_event_that_could_not_be_written_is_not_read(case: str) -> None:
    assert ODD[case] != EVENT
    with pytest.raises(RefusedError) as caught:
        mechanism_from(ODD[case])
    assert caught.value.code == "E-MECHANISM"
