"""One round of the WGAN's training.

What moves and by how much, every loss and optimiser, weight clipping, average, ladder.
"""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from client.learn import train_wgan
from client.learn.fast.backends import Backend, Execution, PatientGradients
from client.learn.round_parts import Streams
from client.learn.train_wgan import LADDER_PATIENCE, Ladder
from client.state.ledger import PracticeReservation
from common.errors import ConfigurationError, PolicyError, RefusedError
from common.models import wgan, wgan_pairs
from common.models.adam import Adam
from common.models.pair_look import look_of, tone_of
from common.models.rmsprop import RMSprop
from common.models.wgan import build
from common.privacy.events import round_event
from common.privacy.noise import SeededNoiseSource
from common.study.training import WganPlan
from tests.wgan_rounds import cohort, moved, norm, one_round, plan_of, start, study

torch.set_num_threads(1)
LOSSES: dict[str, dict[str, object]] = {
    "wgan": {"loss": "wgan", "weight_clip": 0.01},
    "wgan-gp": {"loss": "wgan-gp"},
    "hinge": {"loss": "hinge"},
    "logistic": {"loss": "logistic"},
}


# --- what is sent ---------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["adam", "rmsprop"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_a_round_and_returns_a_delta_for_every_weight(
    loss: str, optimiser: str
) -> None:
    plan = study(**LOSSES[loss], optimizer=optimiser)
    deltas, weights = one_round(plan), start(plan)
    assert {n: (d.dtype, d.shape) for n, d in deltas.items()} == {
        n: (np.dtype("f4"), w.shape) for n, w in weights.items()
    }
    assert all(np.isfinite(d).all() for d in deltas.values())
    assert moved(deltas) == set(deltas)


def test_the_same_seed_gives_the_same_deltas_and_another_seed_others() -> None:
    plan = study()
    one, two, three = one_round(plan), one_round(plan), one_round(plan, seed=1)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert all(not np.array_equal(one[name], three[name]) for name in one if one[name].ndim > 1)


def test_the_update_stays_within_its_public_norm() -> None:
    assert 0 < norm(one_round(study(max_update_norm=0.001))) <= 0.001
    assert norm(one_round(study())) > 0.001


def test_only_trainable_critic_weights_take_private_gradients() -> None:
    deltas = one_round(study(trainable=["critic.layers.3.", "critic.layers.8."]))
    chosen = {name for name in deltas if name.startswith(("critic.layers.3.", "critic.layers.8."))}
    assert (
        len(chosen) == 4
        and {name for name in moved(deltas) if name.startswith("critic.")} == chosen
    )


@pytest.mark.parametrize("prefix", ["generator.", "average.", "critic.nothing", "layers.0."])
def test_a_prefix_that_fits_no_critic_weight_is_refused_with_a_hint(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="fits no weight that trains privately") as caught:
        one_round(study(trainable=["critic.layers.", prefix]))
    assert repr(prefix) in str(caught.value) and "critic.layers." in str(caught.value.hint)


def test_the_average_follows_the_generator_by_the_plans_decay() -> None:
    plan = study(average_decay=0.75)
    deltas, weights = one_round(plan), start(plan)
    for name in (n for n in weights if n.startswith("generator.")):
        slow = name.replace("generator.", "average.")
        assert (
            not np.array_equal(weights[slow], weights[name])
            or "bias" in name
            or weights[name].ndim == 1
        )
        expected = 0.25 * (weights[name] + deltas[name] - weights[slow])
        assert np.allclose(deltas[slow], expected, atol=1e-6), slow


def test_the_average_moves_only_where_the_generator_stepped() -> None:
    # No plan asks for this; an adaptive ladder can climb above a round's steps.
    plan = study()
    late = train_wgan.plan_of(plan).model_copy(update={"critic_steps": 3})
    deltas = one_round(
        plan.model_copy(update={"models": plan.models.model_copy(update={"wgan": late})})
    )
    assert {name.split(".")[0] for name in moved(deltas)} == {"critic"}


MASK_FIRST: dict[str, object] = {
    "architecture": "mask-first",
    "start": {"file": "start.safetensors", "sha256": "0" * 64},
}
LOOK_ALONE = {**MASK_FIRST, "trainable": ["critic.look"], "critic_steps": 1}


def parts(names: set[str], model: str) -> set[str]:
    """The first parts of the names under a model: `mask` of `generator.mask.bias`."""
    return {name.split(".")[1] for name in names if name.startswith(model)}


def test_scores_move_the_masks_of_a_mask_first_generator_and_leave_its_paint() -> None:
    """How the image of a mask looks is public: it comes from the start."""
    names = moved(one_round(study(**MASK_FIRST, trainable=["critic.layers."], local_steps=4)))
    assert parts(names, "generator") == {"start", "layers", "mask"}
    assert parts(names, "critic") == {"layers"}
    with pytest.raises(ValidationError, match="mask-first needs a start"):
        study(architecture="mask-first")


def test_a_look_moves_what_follows_it_and_nothing_else() -> None:
    names = moved(one_round(study(**LOOK_ALONE, local_steps=4)))
    follows = {"mask.bias", "tone.weight", "tone.bias"}
    of_generator = {name.removeprefix("generator.") for name in names if "generator." in name}
    assert of_generator == follows and parts(names, "critic") == {"look"}


@pytest.mark.parametrize("architecture", ["small", "kossen2022", "mask-first"])
@pytest.mark.parametrize("chosen", [[], ["critic."], ["critic.layers.0."], ["critic.look"]])
def test_a_plan_says_which_tensors_of_a_generator_move(
    architecture: str, chosen: list[str]
) -> None:
    plan = plan_of(start=MASK_FIRST["start"], trainable=chosen)
    plan = plan.model_copy(update={"architecture": architecture})
    generator, _ = build(plan, 64)
    expected = {name for name, _ in generator.named_parameters() if plan.moves(name)}
    assert set(train_wgan.moved_of(generator, plan)) == expected
    assert bool(expected) == (chosen != ["critic.look"] or architecture == "mask-first")


def test_a_site_learns_the_look_of_its_pairs_and_samples_follow_it() -> None:
    """Some rounds of one site with little noise, from a start that knows nothing."""
    plan = study(
        **LOOK_ALONE,
        local_steps=40,
        learning_rate=0.1,
        generator_learning_rate=0.02,
        average_decay=0.9,
    )
    hospital = cohort(counts=(4,) * 50)
    hospital.images[..., 0] = 150 + hospital.images[..., 0] // 8
    weights = start(plan)
    for seed in range(4):
        deltas = one_round(plan, seed, hospital, weights)
        weights = {name: weights[name] + deltas[name] for name in weights}
    mean = look_of(wgan_pairs.to_unit(hospital.images)).mean(0)
    assert np.allclose(weights["critic.look"], mean.numpy(), atol=0.3)
    average = wgan.load_average(weights, train_wgan.plan_of(plan), 32)
    made = wgan_pairs.sample(average, 256, torch.Generator().manual_seed(3))
    found, wanted = (tone_of(look) for look in (look_of(wgan_pairs.to_unit(made)).mean(0), mean))
    assert float(found.share) == pytest.approx(float(wanted.share), abs=0.05)
    assert float(found.contrast) == pytest.approx(float(wanted.contrast), abs=0.1)
    assert float(found.ground) == pytest.approx(float(wanted.ground), abs=0.1)
    assert float(found.grain) == pytest.approx(float(wanted.grain), abs=0.02)


# --- weight clipping and optimisers ---------------------------------------------------------------


def test_weight_clipping_bounds_every_trained_weight_and_no_other() -> None:
    plan = study(**LOSSES["wgan"], trainable=["critic.layers.3.", "critic.layers.8."])
    weights, deltas = start(plan), one_round(plan)
    for name in (n for n in deltas if n.startswith("critic.")):
        assert weights[name].ndim == 1 or np.abs(weights[name]).max() > 0.01, name
        after = np.abs(weights[name] + deltas[name]).max()
        if name.startswith(("critic.layers.3.", "critic.layers.8.")):
            assert after <= 0.01 * (1 + 1e-5), name
        else:
            assert not deltas[name].any(), name


def test_weight_clipping_leaves_the_look() -> None:
    plan = study(**LOSSES["wgan"], **MASK_FIRST, local_steps=4, learning_rate=0.1)
    weights, deltas = start(plan), one_round(plan)
    assert np.abs(weights["critic.look"] + deltas["critic.look"]).max() > 0.1
    assert (
        np.abs(weights["critic.layers.0.weight"] + deltas["critic.layers.0.weight"]).max() < 0.011
    )


def test_a_plan_without_a_bound_clips_no_weight() -> None:
    value = torch.tensor([-500.0, 500.0])
    train_wgan.clip_weights({"w": value}, plan_of())
    assert value.tolist() == [-500.0, 500.0]


def test_the_plan_picks_the_optimiser_and_it_gives_torchs_numbers() -> None:
    rates = {"adam": Adam, "rmsprop": RMSprop}
    for kind, expected in rates.items():
        ours = {"w": torch.tensor([1.0, -2.0, 3.0])}
        theirs = ours["w"].clone().requires_grad_()
        chosen = train_wgan.optimizer(ours, 0.01, plan_of(optimizer=kind))
        assert type(chosen) is expected
        oracle: torch.optim.Optimizer = (
            torch.optim.Adam([theirs], lr=0.01, betas=WganPlan.betas)
            if kind == "adam"
            else torch.optim.RMSprop([theirs], lr=0.01)
        )
        for step in range(5):
            gradient = torch.tensor([0.5, -1.0 * step, 2.0])
            chosen.step({"w": gradient})
            theirs.grad = gradient.clone()
            oracle.step()
        assert torch.allclose(ours["w"], theirs.detach(), rtol=1e-6)


# --- ladder ---------------------------------------------------------------------------------------


def told(ladder: Ladder, accuracy: float, steps: int) -> int:
    """The ladder's critic steps after hearing one accuracy for some generator steps."""
    for _ in range(steps):
        ladder.observe(accuracy)
    return ladder.critic_steps


@pytest.mark.parametrize("loss", ["hinge", "logistic"])
def test_the_ladder_climbs_a_rung_at_most_once_in_two_hundred_generator_steps(loss: str) -> None:
    ladder = Ladder(plan_of(adaptive=True, loss=loss, critic_steps=10))
    assert ladder.critic_steps == 10
    assert told(ladder, 0.0, LADDER_PATIENCE - 1) == 10
    assert told(ladder, 0.0, 1) == 20
    assert told(ladder, 0.0, LADDER_PATIENCE - 1) == 20
    assert told(ladder, 0.0, 1) == 50
    assert told(ladder, 0.0, 10 * LADDER_PATIENCE) == 1000


def test_the_ladder_starts_at_the_plans_steps_even_between_rungs() -> None:
    ladder = Ladder(plan_of(adaptive=True, critic_steps=7))
    assert ladder.critic_steps == 7 and told(ladder, 0.0, LADDER_PATIENCE) == 10


def test_the_ladder_stays_where_the_critic_still_tells_fakes() -> None:
    assert told(Ladder(plan_of(adaptive=True, critic_steps=10)), 0.66, 2000) == 10
    assert told(Ladder(plan_of(adaptive=True, critic_steps=10)), 0.64, 2000) > 10


def test_one_bad_sample_after_good_ones_moves_nothing() -> None:
    ladder = Ladder(plan_of(adaptive=True, critic_steps=10))
    told(ladder, 1.0, 500)
    assert told(ladder, 0.0, 20) == 10


@pytest.mark.parametrize(
    "changes",
    [
        {**LOSSES["wgan"], "adaptive": True},
        {**LOSSES["wgan-gp"], "adaptive": True},
        {"adaptive": False},
    ],
)
def test_the_ladder_never_climbs_without_a_threshold_or_against_the_plan(
    changes: dict[str, object],
) -> None:
    assert told(Ladder(plan_of(critic_steps=10, **changes)), 0.0, 1000) == 10


def test_the_generator_steps_once_after_as_many_critic_steps_as_the_ladder_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With patience 2: steps after critic steps 1, 2, then the rung 2: 4, 6, then 5: 11, 16."""
    monkeypatch.setattr(train_wgan, "LADDER_PATIENCE", 2)
    monkeypatch.setattr(train_wgan, "LADDER_BELOW", 2.0)
    done, seen = [0], list[int]()
    original = train_wgan.generator_step

    def step(*given: object) -> object:
        seen.append(done[0] + 1)
        return original(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(train_wgan, "generator_step", step)
    plan = study(adaptive=True, critic_steps=1, local_steps=17, patients_per_step=5)
    one_round(plan, progress=lambda steps, total: done.__setitem__(0, steps))
    assert seen == [1, 2, 4, 6, 11, 16] and done == [17]


# --- batches and back ends ------------------------------------------------------------------------


def test_each_drawn_patient_brings_its_items_and_as_many_fakes_as_the_plan_says() -> None:
    plan = plan_of(items_per_patient=2, fakes_per_item=3, input_noise=0.0)
    generator, _ = build(plan, 32)
    items, fakes, mix, look = train_wgan.Batches(cohort(), generator, plan, Streams(0))([3, 5])
    assert torch.allclose(look, look_of(items).mean(1)) and look.shape == (2, 6)
    assert (
        items.shape == (2, 2, 2, 32, 32)
        and fakes.shape == (2, 6, 2, 32, 32)
        and mix.shape == (2, 6)
    )
    assert float(mix.min()) >= 0 and float(mix.max()) < 1 and not fakes.requires_grad
    for place, patient in enumerate((3, 5)):
        own = {x.tobytes() for x in cohort().images[3 * patient : 3 * patient + 3]}
        shown = {pair.tobytes() for pair in wgan_pairs.to_pairs(items[place])}
        assert len(shown) == 2 and shown < own


def test_the_plans_input_noise_lies_on_real_and_fake_pairs_alike() -> None:
    plan = plan_of(items_per_patient=2, input_noise=0.5)
    generator, _ = build(plan, 32)
    for value in generator.parameters():
        value.data.zero_()
    black = cohort()
    black.images[:] = 0
    items, fakes, _, look = train_wgan.Batches(black, generator, plan, Streams(0))([0, 1])
    assert abs(float(items.std()) - 0.5) < 0.03 and abs(float(fakes.std()) - 0.5) < 0.03
    assert abs(float(items.mean()) + 1) < 0.03 and abs(float(fakes.mean())) < 0.03
    # a look is of the pairs as they are
    assert torch.equal(look, look_of(torch.full((2, 2, 32, 32), -1.0)))


@pytest.mark.parametrize("backend", ["layers", "vmap", "auto"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_back_end_gives_the_gradients_of_one_patient_at_a_time(
    loss: str, backend: Backend
) -> None:
    if (loss, backend) == ("wgan-gp", "layers"):
        pytest.skip(
            "gradients of gradients have no layer rule "
            "(tests/client/learn/fast/test_private_step_layers.py)"
        )
    check_gradients(plan_of(**LOSSES[loss], items_per_patient=2, fakes_per_item=2), backend)


@pytest.mark.parametrize("backend", ["layers", "vmap", "auto"])
@pytest.mark.parametrize("chosen", [[], ["critic.look"]])
def test_every_back_end_gives_the_gradients_of_a_look(chosen: list[str], backend: Backend) -> None:
    check_gradients(plan_of(**MASK_FIRST, items_per_patient=2, trainable=chosen), backend)


def check_gradients(plan: WganPlan, backend: Backend) -> None:
    """One back end gives the rows of plain backward passes."""
    torch.manual_seed(0)
    generator, critic = build(plan, 32)
    trained = train_wgan.trainable(critic, "critic.", plan.trainable, "wgan", "")
    score = train_wgan.loss_of(critic, trained, plan)
    batch = train_wgan.Batches(cohort(), generator, plan, Streams(0))([0, 1])
    rows: list[Tensor] = []
    for execution in (Execution("backward"), Execution(backend, chunk=2)):
        engine = PatientGradients(trained, score, execution, plan.clip, 4, plan.items_per_patient)
        engine.prepare(batch)
        at = [tuple(t[i : i + engine.chunk] for t in batch) for i in range(0, 2, engine.chunk)]
        found = torch.cat([engine.rows(part).clone() for part in at])
        rows.append(torch.stack([engine.natural(row) for row in found]))
    assert torch.allclose(rows[0], rows[1], atol=1e-4 * float(rows[0].abs().max()))


# --- refusals -------------------------------------------------------------------------------------


def test_a_plan_without_a_wgan_or_with_other_weights_is_refused() -> None:
    without = study().model_copy(
        update={"models": study().models.model_copy(update={"wgan": None})}
    )
    with pytest.raises(ConfigurationError, match=r"no models\.wgan"):
        train_wgan.plan_of(without)
    with pytest.raises(RefusedError, match="does not fit"):
        one_round(study(), weights=start(study(width=16)))
    lacking = {
        name: value for name, value in start(study()).items() if not name.startswith("average.")
    }
    with pytest.raises(RefusedError, match="missing"):
        one_round(study(), weights=lacking)


def test_a_reservation_that_is_too_short_stops_the_round() -> None:
    plan = study()
    reservation = PracticeReservation(round_event(plan, "wgan", 10**6))
    reservation.take()
    with pytest.raises(PolicyError):
        train_wgan.train(
            cohort(), plan, start(plan), reservation, SeededNoiseSource(0), lambda done, total: None
        )


def test_a_critic_that_couples_its_batch_is_refused_before_anything_is_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def coupled(*given: object) -> object:
        generator, average, critic = wgan.load(*given)  # type: ignore[arg-type]
        critic.layers.append(nn.BatchNorm2d(1, affine=False))
        return generator, average, critic

    monkeypatch.setattr(train_wgan, "load", coupled)
    reservation, plan = PracticeReservation(round_event(study(), "wgan", 10**6)), study()
    with pytest.raises(ConfigurationError, match="BatchNorm2d"):
        train_wgan.train(
            cohort(), plan, start(plan), reservation, SeededNoiseSource(0), lambda done, total: None
        )
    for _ in range(2):
        reservation.take()  # both steps are still there
