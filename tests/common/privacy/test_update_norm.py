"""The norm of an honest update: the formula beside the optimisers, and the cap that follows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from common.models.adam import Adam
from common.models.rmsprop import RMSprop
from common.privacy.events import round_event
from common.privacy.update_norm import MULTIPLE, UpdateNorm, update_norm
from common.study.families import FAMILIES, Shapes
from common.study.plan import Study
from common.study.training import RMSPROP_DECAY, GanPlan, GlowPlan, WganPlan
from tests.studies import small_study, vessels_plan

NUMBERS = 20_000
GAN_SHAPES: Shapes = {"generator.a": (300,), "critic.a": (100,)}
PAIR_SHAPES: Shapes = {"generator.a": (300,), "average.a": (300,), "critic.a": (100,)}


def pairs(**changes: object) -> WganPlan:
    plan = {f"models__wgan__{name}": value for name, value in changes.items()}
    found = Study.model_validate(vessels_plan(**plan)).models.wgan
    assert found is not None
    return found


def glow_norm(study: Study, dimension: int) -> UpdateNorm:
    plan = study.models.glow
    assert plan is not None
    return update_norm(plan, round_event(study, "glow", dimension), FAMILIES["glow"], {})


def gan_norm(study: Study, shapes: Shapes = GAN_SHAPES) -> UpdateNorm:
    plan = study.models.gan
    assert plan is not None
    return update_norm(plan, round_event(study, "gan", 100), FAMILIES["gan"], shapes)


def pair_norm(plan: WganPlan, gap: float = 0.0) -> UpdateNorm:
    study = Study.model_validate(vessels_plan())
    event = round_event(study, "wgan", 100)
    return update_norm(plan, event, FAMILIES["wgan"], PAIR_SHAPES, gap)


def moved_by(optimizer: Adam | RMSprop, value: torch.Tensor, gradients: torch.Tensor) -> float:
    """The norm by which an optimiser moves `value` over gradients [steps, d]."""
    for gradient in gradients:
        optimizer.step({"a": gradient})
    return float(value.double().norm())


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 40])
@pytest.mark.parametrize("signal", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("plan", [GanPlan, GlowPlan, WganPlan, "rmsprop"])
def test_the_norm_is_what_the_optimiser_makes_of_noise_and_the_largest_signal(
    steps: int, signal: float, plan: type[GlowPlan] | str
) -> None:
    """Gradients of deviation s and one direction; `signal` is their norm over the noise's."""
    value = torch.zeros(NUMBERS)
    draw = torch.Generator().manual_seed(steps)
    gradients = 0.01 * (signal + torch.randn(steps, NUMBERS, generator=draw))
    rate = 1e-3
    changes: dict[str, object] = {"local_steps": steps, "learning_rate": rate, "critic_steps": 1}
    if isinstance(plan, str):
        optimizer: Adam | RMSprop = RMSprop({"a": value}, rate, RMSPROP_DECAY)
        found = pairs(optimizer="rmsprop", generator_learning_rate=1e-12, **changes)
        family = "wgan"
    else:
        optimizer = Adam({"a": value}, rate, plan.betas)
        family = {GanPlan: "gan", GlowPlan: "glow", WganPlan: "wgan"}[plan]
        if family == "glow":
            del changes["critic_steps"]
        else:
            changes["generator_learning_rate"] = 1e-12
        plain = {f"models__{family}__{name}": value for name, value in changes.items()}
        if family == "wgan":
            study = Study.model_validate(vessels_plan(**plain))
        else:
            study = small_study(**plain)
        found = study.models.trained()[family]  # type: ignore[assignment]
    # the noise ratio of this signal: sigma·sqrt(d)/B = 1/signal
    sigma = found.patients_per_step / math.sqrt(NUMBERS) / max(signal, 1e-9)
    event = round_event(small_study(), "glow", NUMBERS)
    event = type(event)(event.q, max(sigma, 1e-9), event.steps, event.dimension)
    norm = update_norm(found, event, FAMILIES[family], {})
    moved = moved_by(optimizer, value, gradients)
    expected = norm.honest if signal else norm.noise
    assert moved == pytest.approx(expected, rel=0.12)


def test_more_steps_a_larger_rate_and_more_numbers_give_a_larger_norm() -> None:
    base = glow_norm(small_study(), 100)
    assert glow_norm(small_study(models__glow__local_steps=8), 100).noise > 1.9 * base.noise
    assert glow_norm(small_study(models__glow__learning_rate=0.0002), 100).noise == pytest.approx(
        2 * base.noise
    )
    assert glow_norm(small_study(), 400).noise == pytest.approx(2 * base.noise)


def test_the_generators_steps_count_and_its_average_follows_it() -> None:
    without = gan_norm(small_study(), {"critic.a": (100,)})
    assert gan_norm(small_study()).noise > 1.5 * without.noise
    open_gap = pair_norm(pairs(average_decay=0.5, critic_steps=1), gap=4.0)
    closed = pair_norm(pairs(average_decay=0.5, critic_steps=1))
    assert open_gap.start == pytest.approx(3.0) and closed.start == 0  # 1 - 0.5^2 of it
    assert open_gap.noise == closed.noise and open_gap.cap > 3.0 > closed.cap


@example(noise=3.457e-4, ratio=1.0, start=1e9)
@given(noise=st.floats(1e-9, 1e9), ratio=st.floats(0.1, 100), start=st.floats(0, 1e9))
def test_the_cap_is_a_multiple_of_the_noise_and_never_below_an_honest_update(
    noise: float, ratio: float, start: float
) -> None:
    norm = UpdateNorm(noise, noise * ratio + start, start)
    exact = max(MULTIPLE * noise + start, norm.honest)
    assert exact * (1 - 1e-12) <= norm.cap <= exact * 1.011


def test_of_a_mask_first_generator_only_what_moves_counts() -> None:
    """Where the look alone is learned, a cap for all its numbers would let a site move them all."""
    start = {"file": "start.safetensors", "sha256": "0" * 64}
    shapes: Shapes = {
        "critic.look": (6,),
        "generator.start.weight": (10_000,),
        "generator.paint.0.weight": (1_000,),
        "generator.mask.bias": (1,),
        "generator.tone.weight": (1, 4, 1, 1),
    }
    found = {}
    for chosen in ((), ("critic.look",), ("critic.layers.",)):
        plan = pairs(architecture="mask-first", start=start, trainable=list(chosen))
        study = Study.model_validate(vessels_plan())
        event = round_event(study, "wgan", 6)
        found[chosen] = update_norm(plan, event, FAMILIES["wgan"], shapes).noise
    moved = {(): 10_005, ("critic.look",): 5, ("critic.layers.",): 10_001}
    private = found["critic.look",] ** 2
    each = (found[()] ** 2 - private) / 10_000  # of one number, in generator and average
    for chosen, count in moved.items():
        assert found[chosen] ** 2 == pytest.approx(private + (count - 5) * each)
    assert each > 0 and private > 5 * each
