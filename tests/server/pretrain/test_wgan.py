"""Public pretraining of the WGAN is repeatable, resumes and learns to redraw; its R1 penalty."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.errors import RefusedError
from common.models.adam import Adam
from common.models.pair_look import Tone, look_of, tone_of
from common.models.weights import load_weights
from common.models.wgan import MaskFirst, load, load_average
from common.models.wgan_losses import critic_loss
from common.models.wgan_pairs import sample, to_unit
from common.storage import files
from common.wire import tensors
from server.pretrain import wgan as pretrain_wgan
from server.pretrain import wgan_checkpoint as pretrain_pairs
from server.pretrain.provenance import Provenance
from server.pretrain.session import Session
from server.pretrain.wgan import (
    LEAST_VARIANCE,
    PENALTY_EVERY,
    Encoder,
    Recipe,
    arrays_of,
    finish,
    like_pairs,
    missed_by,
    pretrain,
)
from server.pretrain.wgan_checkpoint import public_plan, run
from server.public_data.pairs import PublicPairs, phantom_pairs

torch.set_num_threads(1)
PLAN = public_plan(width=8, generator_width=8, latent=16)
QUICK = Recipe(batch=8, warm_up=2)
ORIGIN = Provenance("phantoms", "CC0-1.0", "nobody")
Weights = Mapping[str, NDArray[np.float32]]


@pytest.fixture
def few_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples follow a look for a few steps."""
    monkeypatch.setattr(pretrain_wgan, "FOLLOWING_STEPS", 20)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples follow a look with few at a time."""
    monkeypatch.setattr(pretrain_wgan, "FOLLOWING_MOST", 16)


@pytest.fixture(scope="module")
def source() -> PublicPairs:
    return phantom_pairs(2, 12, 32, 0)


def after(steps: int, pairs: NDArray[np.uint8], seed: int = 0, **more: object) -> Weights:
    """A copy of the weights after some steps."""
    found = next(itertools.islice(pretrain(pairs, PLAN, seed, QUICK, **more), steps - 1, None))  # type: ignore[arg-type]
    return {name: array.copy() for name, array in arrays_of(found).items()}


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) for name in one
    )


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(source: PublicPairs) -> None:
    one = after(4, source.pairs)
    assert same(one, after(4, source.pairs))
    other = after(4, source.pairs, seed=1)
    assert all(
        not np.array_equal(one[name], other[name]) for name in one if name.endswith(".weight")
    )


def redrawing_error(weights: Weights, pairs: NDArray[np.uint8]) -> float:
    """Mean squared error of pairs redrawn through the encoder's mean and the generator."""
    generator, _, _ = load(weights, PLAN, pairs.shape[1])
    encoder = Encoder(PLAN, pairs.shape[1])
    load_weights(encoder, weights, "encoder.")
    with torch.no_grad():
        real = to_unit(pairs)
        return float((generator(encoder(real)[0]) - real).square().mean())


def test_some_tens_of_steps_lower_the_redrawing_error(source: PublicPairs) -> None:
    run = pretrain(source.pairs, PLAN, 0, Recipe(batch=8))
    errors = [redrawing_error(arrays_of(w), source.pairs) for w in itertools.islice(run, 30)]
    assert errors[-1] < 0.8 * errors[0] and errors[-1] < errors[9] < errors[0]


def test_what_a_mask_first_generator_misses_is_a_likelihood(source: PublicPairs) -> None:
    torch.manual_seed(0)
    generator = MaskFirst(32, 8, 16)
    code = torch.randn(6, 16)
    real = to_unit(source.pairs[:6])
    with torch.no_grad():
        features = generator.features(code)
        painted = generator.painted(real[:, 1:], features)
        variance = generator.grain.weight.square().sum() + LEAST_VARIANCE
        image = torch.distributions.Normal(painted, variance.sqrt()).log_prob(real[:, :1])
        coins = torch.distributions.Bernoulli(logits=2 * generator.mask(features))
        mask = coins.log_prob((real[:, 1:] > 0).float())
        constant = 32 * 32 * math.log(2 * math.pi) / 2
        expected = -(image + mask).sum((1, 2, 3)).mean() - constant
        assert float(missed_by(generator, code, real, 0.45)) == pytest.approx(float(expected))


def test_a_mask_first_generator_learns_masks_images_and_grain(source: PublicPairs) -> None:
    plan = public_plan(width=8, generator_width=8, latent=16, architecture="mask-first")
    recipe = Recipe(batch=8, learning_rate=3e-3, warm_up=38)

    def missed(weights: Mapping[str, Tensor]) -> float:
        arrays = arrays_of(weights)
        generator, _, _ = load(arrays, plan, 32)
        encoder = Encoder(plan, 32)
        load_weights(encoder, arrays, "encoder.")
        with torch.no_grad():
            real = to_unit(source.pairs)
            return float(missed_by(generator, encoder(real)[0], real, 0.45))

    seen = [missed(w) for w in itertools.islice(pretrain(source.pairs, plan, 0, recipe), 40)]
    assert seen[-1] < 0.8 * seen[0] and seen[-1] < seen[20] < seen[0]


@pytest.mark.usefixtures("small_batches")
def test_a_mask_first_generator_marks_as_much_as_the_pairs_with_their_grain(
    source: PublicPairs,
) -> None:
    """Vessels were fragments, and backgrounds ten times as noisy as they are."""
    plan = public_plan(width=8, generator_width=8, latent=16, architecture="mask-first")
    run = pretrain(source.pairs, plan, 0, Recipe(batch=8, learning_rate=3e-3, warm_up=100))
    given = {
        name: array.copy()
        for name, array in arrays_of(next(itertools.islice(run, 30, None))).items()
    }
    kept = {name: array.copy() for name, array in given.items()}
    smooth = source.pairs.copy()
    smooth[..., 0] = np.where(smooth[..., 1] > 127, smooth[..., 0], 96 + smooth[..., 0] // 2)
    found = like_pairs(smooth, given, plan)

    def tone(pairs: NDArray[np.uint8]) -> Tone:
        return tone_of(look_of(to_unit(pairs)).mean(0))

    def seen(weights: Weights) -> Tone:
        average = load_average(weights, plan, 32)
        return tone(sample(average, 600, torch.Generator().manual_seed(9)))

    true = tone(smooth)
    assert float(seen(given).grain) > 1.5 * float(true.grain)
    assert abs(float(seen(given).share - true.share)) > 0.03
    assert float(seen(found).share) == pytest.approx(float(true.share), abs=0.015)
    assert float(seen(found).grain) == pytest.approx(float(true.grain), abs=0.01)
    assert torch.allclose(
        torch.tensor(found["critic.look"]), look_of(to_unit(smooth)).mean(0), atol=1e-5
    )
    # of the average nothing else moves, and the generator is the average
    assert same(given, kept)
    rests = MaskFirst(
        32, 8, 16
    ).state_dict()  # what a tone has beside grain is for a study to learn
    follows = {"mask.bias", "tone.weight"}
    for of in (given, found):
        for part in ("average.tone.", "generator.tone."):
            assert np.array_equal(of[f"{part}bias"], rests["tone.bias"])
            lifts = of[f"{part}weight"][:, :-1]
            assert np.array_equal(lifts, rests["tone.weight"][:, :-1])
    for name in (n.removeprefix("average.") for n in given if n.startswith("average.")):
        average = found[f"average.{name}"]
        assert np.array_equal(average, given[f"average.{name}"]) == (name not in follows), name
        assert np.array_equal(average, found[f"generator.{name}"]), name
    others = {n for n in given if n.startswith(("critic.layers.", "encoder."))}
    assert others and all(np.array_equal(given[n], found[n]) for n in others)


def test_other_architectures_stay_as_they_were_trained(source: PublicPairs) -> None:
    given = after(2, source.pairs)
    assert same(like_pairs(source.pairs, given, PLAN), given)
    assert same(finish(source.pairs, given, PLAN, 40, QUICK), given)


@pytest.mark.usefixtures("few_followed")
def test_the_critic_of_a_mask_first_start_knows_its_samples(source: PublicPairs) -> None:
    plan = public_plan(width=8, generator_width=8, latent=16, architecture="mask-first")
    recipe = Recipe(batch=8, learning_rate=3e-3, warm_up=100)
    run = pretrain(source.pairs, plan, 0, recipe)
    given = arrays_of(next(itertools.islice(run, 30, None)))
    moved_alone = like_pairs(source.pairs, given, plan)
    found = finish(source.pairs, given, plan, 300, recipe)
    again = finish(source.pairs, given, plan, 300, recipe)
    assert same(found, again)
    # the critic alone is trained, and it tells pairs from samples better than before
    assert {name for name in found if not np.array_equal(found[name], moved_alone[name])} == {
        name for name in found if name.startswith("critic.layers.")
    }

    def margin(weights: Weights) -> float:
        generator, _, critic = load(weights, plan, 32)
        with torch.no_grad():
            latents = torch.randn(64, generator.latent, generator=torch.Generator().manual_seed(4))
            return float(critic(to_unit(source.pairs)).mean() - critic(generator(latents)).mean())

    assert margin(found) > margin(moved_alone) + 0.1
    # a run of a few steps has no tenth to spare
    assert same(finish(source.pairs, given, plan, 9, recipe), moved_alone)


@pytest.mark.usefixtures("small_batches")
def test_a_written_checkpoint_marks_as_much_as_its_pairs(
    source: PublicPairs, tmp_path: Path
) -> None:
    plan = public_plan(width=8, generator_width=8, latent=16, architecture="mask-first")
    run(source, tmp_path, plan, ORIGIN, Session(steps=5), QUICK)
    weights = tensors.read(tmp_path / "wgan.safetensors", max_bytes=1 << 30)
    average = load_average({n: a.astype(np.float32) for n, a in weights.items()}, plan, 32)
    drawn = sample(average, 400, torch.Generator().manual_seed(9))
    true = float((source.pairs[..., 1] > 127).mean())
    assert float((drawn[..., 1] > 127).mean()) == pytest.approx(true, abs=0.02)


@pytest.mark.usefixtures("few_followed")
def test_a_checkpoint_saved_midway_has_the_look_of_its_pairs(
    source: PublicPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stops a run by ctrl-C starts a study from it."""
    plan = public_plan(width=8, generator_width=8, latent=16, architecture="mask-first")
    flat = source.pairs.copy()
    flat[..., 0] = 96
    kept: list[Weights] = []

    def look(done: int, share: float) -> None:
        if done == 3:  # what the second step saved
            for path in (tmp_path / "wgan.safetensors", tmp_path / "training/weights.safetensors"):
                found = tensors.read(path, max_bytes=1 << 30)
                kept.append({name: array.astype(np.float32) for name, array in found.items()})

    monkeypatch.setattr(pretrain_pairs, "SAVE_EVERY_S", 0.0)  # after each step
    monkeypatch.setattr(pretrain_pairs, "SAVING_SHARE", math.inf)
    session = Session(steps=3, progress=look)
    run(replace(source, pairs=flat), tmp_path, plan, ORIGIN, session, QUICK)
    saved, trained = kept
    expected = like_pairs(flat, trained, plan)
    assert same(saved, {name: expected[name] for name in saved})
    for name in ("average.mask.bias", "average.tone.weight"):
        assert not np.array_equal(saved[name], trained[name])


def test_a_run_finishes_its_networks_once_at_its_end(
    source: PublicPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def counted(*given: object) -> dict[str, NDArray[np.float32]]:
        steps.append(given[3])  # type: ignore[arg-type]
        return finish(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(pretrain_pairs, "SAVE_EVERY_S", 0.0)  # after each step
    monkeypatch.setattr(pretrain_pairs, "SAVING_SHARE", math.inf)
    monkeypatch.setattr(pretrain_pairs, "finish", counted)
    run(source, tmp_path, PLAN, ORIGIN, Session(steps=3), QUICK)
    assert steps == [3]


def test_before_the_warm_up_ends_the_critic_rests_and_afterwards_it_moves(
    source: PublicPairs,
) -> None:
    one, two, three = (after(steps, source.pairs) for steps in (1, 2, 3))
    critics = [name for name in one if name.startswith("critic.")]
    assert all(np.array_equal(one[name], two[name]) for name in critics)
    assert all(
        not np.array_equal(two[name], three[name]) for name in critics if name.endswith(".weight")
    )
    for done, rests in ((1, True), (2, False)):  # a killed run goes on with its warm-up
        later = arrays_of(next(pretrain(source.pairs, PLAN, 0, QUICK, one, done=done)))
        found = [np.array_equal(one[n], later[n]) for n in critics if n.endswith(".weight")]
        assert all(found) if rests else not any(found)


def test_the_average_starts_as_the_generator_and_lags_behind_it(source: PublicPairs) -> None:
    rows = after(6, source.pairs)
    start = after(1, source.pairs)
    gap = np.abs(rows["average.start.weight"] - rows["generator.start.weight"]).max()
    assert (
        0 < gap < np.abs(rows["generator.start.weight"] - start["generator.start.weight"]).max() * 2
    )


def test_it_goes_on_from_given_weights_the_encoder_included(source: PublicPairs) -> None:
    given = after(5, source.pairs)
    still = Recipe(
        learning_rate=1e-12, critic_learning_rate=1e-12, batch=8, average_decay=1 - 1e-12
    )
    found = arrays_of(next(pretrain(source.pairs, PLAN, 7, still, given)))
    assert found.keys() == given.keys()
    for name in given:
        assert np.allclose(found[name], given[name], atol=1e-6), name
    lacking = {name: array for name, array in given.items() if not name.startswith("encoder.")}
    with pytest.raises(RefusedError, match=r"encoder\..*missing"):
        next(pretrain(source.pairs, PLAN, 7, still, lacking))


@pytest.mark.usefixtures("few_followed")
@pytest.mark.parametrize("architecture", ["small", "mask-first"])
def test_a_resumed_run_starts_from_what_was_trained_and_counts_on(
    architecture: str, source: PublicPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from what a study starts from: there masks are moved, and the critic is settled."""
    settings = public_plan(width=8, generator_width=8, latent=16, architecture=architecture)
    starts: list[Weights | None] = []
    seeds: list[int] = []
    counts: list[int] = []
    seen: list[Weights] = []

    def noted(
        pairs: object,
        plan: object,
        seed: int,
        recipe: object,
        start: Weights | None,
        device: torch.device,
        done: int,
    ) -> Iterator[dict[str, Tensor]]:
        starts.append(start)
        seeds.append(seed)
        counts.append(done)
        run = pretrain(pairs, plan, seed, recipe, start, device, done)  # type: ignore[arg-type]
        for weights in run:
            seen.append({name: array.copy() for name, array in arrays_of(weights).items()})
            yield weights

    monkeypatch.setattr(pretrain_pairs, "pretrain", noted)
    assert run(source, tmp_path, settings, ORIGIN, Session(steps=2), recipe=QUICK, seed=3) == 2
    more = Session(steps=3, resume=True)
    assert run(source, tmp_path, settings, ORIGIN, more, recipe=QUICK, seed=3) == 3
    assert starts[0] is None and starts[1] is not None and same(starts[1], seen[1])
    assert any(name.startswith("encoder.") for name in starts[1]) and seeds == [3, 5]
    assert counts == [0, 2]


def test_the_checkpoint_holds_the_studys_three_networks_and_no_encoder(
    source: PublicPairs, tmp_path: Path
) -> None:
    run(source, tmp_path, PLAN, ORIGIN, Session(steps=1), recipe=QUICK)
    found = tensors.read(tmp_path / "wgan.safetensors", max_bytes=1 << 24)
    expected = after(1, source.pairs)
    assert {n: a.shape for n, a in found.items()} == {
        n: a.shape
        for n, a in expected.items()
        if n.split(".")[0] in ("generator", "average", "critic")
    }
    load({name: np.asarray(array) for name, array in found.items()}, PLAN, 32)


@pytest.mark.parametrize("killed_at", range(1, 5))
def test_a_run_killed_while_it_saves_can_go_on(
    source: PublicPairs, tmp_path: Path, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of its writes is the last, a run with `resume` finds a whole save or none."""
    writes = itertools.count(1)
    original = files.atomic_write

    def mortal(path: Path, data: bytes, **more: int) -> None:
        original(path, data, **more)
        if next(writes) == killed_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "atomic_write", mortal)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path, PLAN, ORIGIN, Session(steps=1), recipe=QUICK)
    monkeypatch.setattr(files, "atomic_write", original)
    assert run(source, tmp_path, PLAN, ORIGIN, Session(steps=2, resume=True), recipe=QUICK) == 2


# --- the R1 penalty ------------------------------------------------------------------------------


class Caught(Adam):
    """Keeps the gradients instead of stepping."""

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        self.gradients = dict(gradients)


class Quadratic(nn.Module):
    """D(x) = w·|x|²/2, so that the gradient at x is w·x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x.square().sum((1, 2, 3)) / 2


@pytest.mark.parametrize("penalise", [True, False])
def test_the_r1_penalty_is_on_real_pairs_alone_and_made_up_for_the_steps_without(
    penalise: bool,
) -> None:
    torch.manual_seed(0)
    critic, real, fake = Quadratic(), 0.1 * torch.randn(4, 2, 3, 3), 5 + torch.randn(4, 2, 3, 3)
    adam = Caught(dict(critic.named_parameters()), 0.1)
    recipe = Recipe(penalty=0.7)
    pretrain_wgan._critic_step(critic, adam, real.clone(), lambda: fake, PLAN, recipe, penalise)  # type: ignore[arg-type]
    w = torch.tensor(0.3, requires_grad=True)
    expected = critic_loss(
        w * real.square().sum((1, 2, 3)) / 2, w * fake.square().sum((1, 2, 3)) / 2, PLAN.loss
    )
    if penalise:  # |grad D(x)|² = w²·|x|²
        expected = expected + 0.7 * PENALTY_EVERY / 2 * (w**2 * real.square().sum((1, 2, 3))).mean()
    (slope,) = torch.autograd.grad(expected, w)
    assert torch.allclose(adam.gradients["w"], slope, rtol=1e-5)


def test_the_r1_penalty_comes_at_every_eighth_step(
    source: PublicPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(pretrain_wgan, "_critic_step", lambda *given: seen.append(given[-1]))
    start = after(1, source.pairs)
    next(itertools.islice(pretrain(source.pairs, PLAN, 0, QUICK, start, done=8), 16, None))
    assert seen == [step % 8 == 0 for step in range(17)]
