"""Alignment: loss and gradient against naive loops, weights untouched, patients weigh alike.

And fresh noise for each image, and the settings that only change its speed.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch

from client.state import group_store
from client.synthesize import align as al
from client.synthesize import features as fs
from client.synthesize import group as g
from client.synthesize import invert as inv
from client.synthesize import reference
from client.synthesize.looks import look_at
from common.errors import Bug, ConfigurationError, PolicyError
from common.models.encoder import Encoder
from common.models.images import to_uint8, to_unit
from common.models.look import Look
from common.models.stylegan import Critic, Generator
from common.study.synthesis import Synthesis

torch.set_num_threads(1)
KEY = b"k" * 32
COMMON = Look(torch.zeros(1, 3), torch.full((1, 3), 0.3))
PLAN = al.AlignmentPlan(steps=6, batch=4)


@dataclasses.dataclass
class Site:
    generator: Generator
    critic: Critic
    images: np.ndarray
    codes: torch.Tensor
    inversion: inv.Inversion
    who: g.Roster
    groups: tuple[group_store.Group, ...]
    spread: float


def make_site(patients: int = 10, k: int = 5, dtype: torch.dtype = torch.float32) -> Site:
    """A tiny site: patient 0 has three images, the others one."""
    torch.manual_seed(5)
    generator, critic = Generator(16, 3, 4, 8).to(dtype), Critic(16, 3, 8).to(dtype)
    for name, p in generator.named_parameters():
        if name.endswith("noise_strength"):
            p.data.fill_(0.3)
    patient_of = np.array([0, 0] + list(range(patients)))
    with torch.no_grad():
        w = torch.randn(len(patient_of), 6, 8, dtype=dtype)
        images = to_uint8(generator.synthesis(w, noise=torch.Generator().manual_seed(1)).div(3))
    inversion = inversion_of(w)
    who = g.roster(
        [f"{i:064x}" for i in range(patients)], patient_of, np.zeros(len(w), int), key=KEY
    )
    groups = g.form_groups(who, k, "random", key=KEY).groups
    return Site(generator, critic, images, w, inversion, who, groups, 1.0)


def inversion_of(codes: torch.Tensor) -> inv.Inversion:
    """An inversion that accepts all of these codes."""
    points = codes.flatten(1).double().numpy()
    count = len(codes)
    looks = np.ones((count, 2, 3), np.float32)
    accepted = np.ones(count, bool)
    coarse = np.zeros((count, 4, 1, 1), np.float32)
    return inv.Inversion(points, points, codes.numpy(), np.zeros(count), accepted, looks, coarse)


def measure(site: Site, plan: al.AlignmentPlan) -> dict[str, al.PatientStatistics]:
    return al.measure_patients(
        site.images, site.inversion, site.who, site.generator, site.critic, plan, COMMON
    )


def gathered(site: Site, plan: al.AlignmentPlan = PLAN) -> list[al.GroupStatistics]:
    patients = measure(site, plan)
    return al.gather_statistics(site.groups, patients, site.generator, plan)


def codes_of(site: Site, row: int) -> np.ndarray:
    return site.inversion.codes[row : row + 1]


def naive_gram(x: torch.Tensor, row: int, column: int, p: int) -> torch.Tensor:
    """Gram of one window of one image, one product at a time."""
    c, size = x.shape[0], x.shape[1] // p
    window = x[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
    flat = [window[i].flatten() for i in range(c)]
    return torch.stack([torch.stack([(a * b).sum() for b in flat]) for a in flat]) / (
        c * size * size
    )


def naive_loss(
    site: Site, code: torch.Tensor, group: group_store.Group, plan: al.AlignmentPlan
) -> torch.Tensor:
    """The loss of one group from its members' images, in plain loops, without cached targets."""
    p, rows_of = plan.windows, dict(zip(site.who.pseudonyms, site.who.images, strict=True))
    windows = [(a, b) for a in range(p) for b in range(p)]
    grams_of, contents, codes = [], [], []
    for name in group.members:
        rows = list(rows_of[name])
        seen = [look_at(to_unit(site.images[[i]]), COMMON).images for i in rows]
        features = [fs.style_features(one)[0] for one in seen]
        grams_of.append(
            [sum(naive_gram(f, a, b, p) for f in features) / len(rows) for a, b in windows]
        )
        seen = [
            fs.content_features(site.critic, inv.reconstruct(codes_of(site, i), site.generator))[0]
            for i in rows
        ]
        contents.append(sum(seen) / len(rows))
        codes.append(sum(site.codes[i] for i in rows) / len(rows))
    centroid = sum(codes) / len(codes)
    base = fs.style_features(site.generator.synthesis(centroid[None]).detach())[0]
    targets = []
    for a, b in windows:
        own = naive_gram(base, a, b, p).flatten()
        picked = [
            max(grams, key=lambda t: float(torch.cosine_similarity(own, t.flatten(), dim=0)))
            for grams in grams_of
        ]
        targets.append(sum(picked) / len(picked))
    image = site.generator.synthesis(code[None])
    features = fs.style_features(image)[0]
    style = sum(
        (naive_gram(features, a, b, p) - t).square().sum()
        for (a, b), t in zip(windows, targets, strict=True)
    )
    style = style / sum(t.square().sum() for t in targets)
    f = fs.content_features(site.critic, image)[0]
    content = sum(1 - f @ c for c in contents) / len(contents)
    trust = ((code - centroid) / site.spread).square().mean()
    return plan.content_weight * content + plan.style_weight * style + plan.trust_weight * trust


def test_loss_and_gradient_equal_naive_loops() -> None:
    site, plan = (
        make_site(),
        al.AlignmentPlan(content_weight=2.0, style_weight=3.0, trust_weight=0.5),
    )
    targets = gathered(site, plan)
    moved = torch.stack([t.centroid for t in targets]) + 0.1 * torch.randn(2, 6, 8)
    codes = moved.clone().requires_grad_()
    loss = al.alignment_loss(codes, targets, site.generator, site.critic, plan, site.spread)
    (gradient,) = torch.autograd.grad(loss.sum(), [codes])
    for i, group in enumerate(site.groups):
        code = moved[i].clone().requires_grad_()
        expected = naive_loss(site, code, group, plan)
        (slope,) = torch.autograd.grad(expected, [code])
        np.testing.assert_allclose(loss[i].detach(), expected.detach(), rtol=1e-5, atol=1e-6)
        assert (
            float(torch.cosine_similarity(gradient[i].flatten(), slope.flatten(), dim=0)) > 0.99999
        )
        np.testing.assert_allclose(gradient[i], slope, rtol=1e-3, atol=1e-5)


def test_aligning_lowers_the_loss_and_leaves_the_weights_bit_identical() -> None:
    site = make_site()
    before = [p.detach().clone() for net in (site.generator, site.critic) for p in net.parameters()]
    result = al.align(gathered(site), site.generator, site.critic, PLAN, site.spread)
    after = [p for net in (site.generator, site.critic) for p in net.parameters()]
    assert all(
        torch.equal(a, p) and p.grad is None and p.requires_grad
        for a, p in zip(before, after, strict=True)
    )
    assert result.codes.shape == (2, 6, 8)
    assert (result.after < result.before).all()


def test_nothing_but_the_code_requires_a_gradient_while_aligning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site, seen = make_site(), []
    whole = al.alignment_loss

    def watched(codes: torch.Tensor, *rest: object) -> torch.Tensor:
        nets = (site.generator, site.critic)
        seen.append(
            (codes.requires_grad, any(p.requires_grad for net in nets for p in net.parameters()))
        )
        return whole(codes, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(al, "alignment_loss", watched)
    al.align(
        gathered(site), site.generator, site.critic, dataclasses.replace(PLAN, steps=1), site.spread
    )
    assert seen == [(True, False)] * 2


def test_the_first_step_moves_the_code() -> None:
    site = make_site()
    targets = gathered(site)
    result = al.align(
        targets, site.generator, site.critic, dataclasses.replace(PLAN, steps=1), site.spread
    )
    assert (result.steps == 1).all()
    assert not torch.equal(result.codes, torch.stack([t.centroid for t in targets]))
    assert [al._learning_rate(s, 40) > 0 for s in range(40)] == [True] * 40
    assert al._learning_rate(10, 40) == 1.0
    assert al._learning_rate(0, 40) == 0.5


def test_no_steps_give_the_plain_average() -> None:
    site = make_site()
    targets = gathered(site)
    result = al.align(
        targets, site.generator, site.critic, dataclasses.replace(PLAN, steps=0), site.spread
    )
    assert torch.equal(result.codes, torch.stack([t.centroid for t in targets]))


def test_a_group_that_stalls_stops_and_never_ends_worse() -> None:
    site, plan = make_site(), al.AlignmentPlan(steps=60, patience=2, learning_rate=50.0)
    result = al.align(gathered(site, plan), site.generator, site.critic, plan, site.spread)
    assert (result.after <= result.before).all()
    assert (result.steps < 60).all()


def test_a_group_is_aligned_alike_whatever_its_batch() -> None:
    site = make_site(patients=15)
    targets = gathered(site)
    together = al.align(targets, site.generator, site.critic, PLAN, site.spread)
    alone = al.align(targets[2:], site.generator, site.critic, PLAN, site.spread)
    np.testing.assert_allclose(together.codes[2:], alone.codes, rtol=1e-3, atol=1e-3)


def test_each_patient_weighs_one_whatever_the_number_of_images() -> None:
    site = make_site()
    patients = measure(site, PLAN)
    assert site.who.images[site.who.pseudonyms.index(f"{0:064x}")] == (0, 1, 2)
    for group, statistics in zip(site.groups, gathered(site), strict=True):
        mean = torch.stack([patients[m].code for m in group.members]).mean(0)
        np.testing.assert_allclose(statistics.centroid, mean, rtol=1e-5)
        assert statistics.support == (len(group.members),) * 4


def operations_of_a_step(site: Site) -> tuple[int, int]:
    targets = gathered(site)[:1]
    codes = targets[0].centroid[None].clone().requires_grad_()
    with torch.autograd.profiler.profile() as seen:
        loss = al.alignment_loss(codes, targets, site.generator, site.critic, PLAN, site.spread)
        torch.autograd.grad(loss.sum(), [codes])
    names = [event.name for event in seen.function_events]
    return len(names), names.count("aten::_local_scalar_dense")


def test_a_step_is_few_operations_without_waiting_whatever_k_is() -> None:
    small, large = operations_of_a_step(make_site(10, 5)), operations_of_a_step(make_site(10, 10))
    assert small == large
    assert small[0] < 2500
    assert small[1] == 0


def test_each_source_is_looked_at_once_however_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    site, looked = make_site(), []
    whole = fs.style_features
    monkeypatch.setattr(al, "style_features", lambda x: (looked.append(len(x)), whole(x))[1])
    targets = gathered(site)
    assert sum(looked) == len(site.images) + len(targets)  # each source, and each group's average
    looked.clear()
    al.align(
        targets,
        site.generator,
        site.critic,
        dataclasses.replace(PLAN, steps=3, patience=9),
        site.spread,
    )
    assert looked == [len(targets)] * 4


def test_what_stands_on_fewer_than_k_patients_cannot_reach_the_optimiser() -> None:
    one = gathered(make_site())[0]
    with pytest.raises(PolicyError, match="at least k=5 distinct patients") as caught:
        dataclasses.replace(one, support=(5, 5, 4, 5))
    assert caught.value.code == "E-GROUP-SIZE"
    with pytest.raises(PolicyError):
        dataclasses.replace(one, support=(5, 5, 5))  # a window without a count
    with pytest.raises(Bug, match="expected a Group"):
        dataclasses.replace(one, group=("a", "b", "c", "d", "e"))


def test_five_windows_of_one_patient_count_as_one() -> None:
    """Patient 0 has three images; the support counts patients."""
    site = make_site()
    statistics = gathered(site)
    assert len(site.images) > len(site.who.pseudonyms)
    assert {s for one in statistics for s in one.support} == {5}


@pytest.mark.parametrize("field", ["centroid", "content", "grams"])
def test_statistics_that_are_not_finite_are_a_bug(field: str) -> None:
    one = gathered(make_site())[0]
    bad = getattr(one, field).clone()
    bad.view(-1)[0] = torch.nan
    with pytest.raises(Bug, match="not finite"):
        dataclasses.replace(one, **{field: bad})


def test_nan_latents_do_not_reach_an_average() -> None:
    site = make_site()
    codes = site.inversion.codes.copy()
    codes[3] = np.nan
    site.inversion = dataclasses.replace(site.inversion, codes=codes)
    with pytest.raises(Bug, match="not finite"):
        gathered(site)


def test_black_and_constant_images_give_a_finite_loss() -> None:
    """Inversion rejects them by rule; were they let through, nothing may turn into NaN."""
    site = make_site()
    site.images = np.stack([np.full((16, 16, 3), value, np.uint8) for value in range(0, 240, 20)])
    targets = gathered(site)
    result = al.align(targets, site.generator, site.critic, PLAN, site.spread)
    assert bool(torch.isfinite(result.codes).all())
    assert bool((result.before < 1e12).all())


def test_the_loss_at_the_targets_themselves_is_zero() -> None:
    site = make_site()
    with torch.no_grad():
        code = site.codes[:1]
        image = site.generator.synthesis(code)
        own = fs.window_grams(fs.style_features(image), PLAN.windows)[0]
        content = fs.content_features(site.critic, image)[0]
        target = al.GroupStatistics(site.groups[0], code[0], content, own, (5,) * 4)
        loss = al.alignment_loss(code, [target], site.generator, site.critic, PLAN, site.spread)
    assert abs(float(loss)) < 1e-6


def test_bfloat16_changes_the_loss_by_less_than_one_percent() -> None:
    site = make_site()
    targets = gathered(site)
    codes = torch.stack([t.centroid for t in targets]) + 0.3
    exact, rough = (
        al.alignment_loss(codes, targets, site.generator, site.critic, plan, site.spread).detach()
        for plan in (PLAN, dataclasses.replace(PLAN, bfloat16=True))
    )
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    np.testing.assert_allclose(rough, exact, rtol=0.01)
    features = torch.rand(1, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fs.window_grams(features, 2), fs.window_grams(features.clone(), 2))
        assert fs.window_grams(features.bfloat16(), 2).dtype == torch.float32


def test_the_outputs_of_a_group_differ_and_need_no_source() -> None:
    site = make_site()
    for name, p in site.generator.named_parameters():
        p.data.mul_(
            0.0 if name.endswith("noise_strength") else 1.0
        )  # so that only the moves tell them apart
    codes = site.codes[:3]
    made = al.render_outputs(codes, 4, site.generator, torch.Generator().manual_seed(2))
    again = al.render_outputs(codes, 4, site.generator, torch.Generator().manual_seed(2))
    assert [m.shape for m in made] == [(3, 16, 16, 3)] * 4
    assert all((a == b).all() for a, b in zip(made, again, strict=True))
    assert (made[0] == al.render(codes, site.generator, torch.Generator())).all()
    for i in range(3):
        for a in range(4):
            for b in range(a):
                apart = (made[a][i] / 255.0 - made[b][i] / 255.0).ravel()
                assert (
                    np.sqrt(np.mean(apart**2)) > 5 * 0.004
                )  # five times the audit's duplicate rule
    with pytest.raises(ConfigurationError, match="1 or more"):
        al.render_outputs(codes, 0, site.generator, torch.Generator())


def test_other_outputs_do_not_see_how_far_members_lie_apart() -> None:
    """The moves are the same whatever the codes are: drawn from the generator alone."""
    site, moves = make_site(), []
    for codes in (site.codes[:2], 9 * site.codes[2:4]):
        taken: list[torch.Tensor] = []
        whole = al.render
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                al,
                "render",
                lambda c, g, r, _, taken=taken, whole=whole: (taken.append(c), whole(c, g, r))[1],
            )
            al.render_outputs(codes, 2, site.generator, torch.Generator().manual_seed(4))
        moves.append(taken[1] - taken[0])
    np.testing.assert_allclose(moves[0], moves[1], atol=1e-5)


def test_a_rejected_image_on_the_roster_is_a_bug() -> None:
    site = make_site()
    accepted = np.ones(12, bool)
    accepted[4] = False
    site.inversion = dataclasses.replace(site.inversion, accepted=accepted)
    with pytest.raises(Bug, match="rejected image"):
        gathered(site)


def test_noise_maps_are_fresh_for_each_image_and_come_from_the_source() -> None:
    site = make_site()
    codes = site.codes[:1].expand(3, -1, -1)
    once, again = (
        al.render(codes, site.generator, torch.Generator().manual_seed(9)) for _ in range(2)
    )
    assert once.shape == (3, 16, 16, 3)
    assert once.dtype == np.uint8
    assert (once == again).all()
    assert (once[0] != once[1]).any()
    assert (once[1] != once[2]).any()


def test_a_gram_of_constant_texture_does_not_depend_on_size_and_windows_must_divide() -> None:
    texture = torch.rand(1, 3, 8, 8)
    small, large = texture.tile(1, 1, 2, 2), texture.tile(1, 1, 8, 8)
    np.testing.assert_allclose(
        fs.window_grams(small, 2)[0, 0], fs.window_grams(large, 2)[0, 3], rtol=1e-5
    )
    with pytest.raises(ConfigurationError, match="divisor of 16"):
        fs.window_grams(small, 3)


def test_features_have_unit_length_and_the_filters_are_constants() -> None:
    site = make_site()
    x = to_unit(site.images)
    np.testing.assert_allclose(
        fs.content_features(site.critic, x).norm(dim=1).detach(),
        torch.ones(len(x)),
        rtol=1e-5,
    )
    torch.manual_seed(123)
    first = fs.style_features(x)
    torch.manual_seed(321)
    assert torch.equal(first, fs.style_features(x))
    assert (first >= 0).all()  # ReLU before the Gram
    assert math.isclose(float(fs.style_features(x[:, :1]).shape[1]), fs.STYLE_CHANNELS)


def test_no_group_is_an_error() -> None:
    site = make_site()
    with pytest.raises(ConfigurationError, match="at least one group"):
        al.align([], site.generator, site.critic, PLAN, 1.0)


def test_a_site_goes_from_photographs_to_averages() -> None:
    """The calls in the order in which client/child/job.py makes them."""
    site = make_site()
    torch.manual_seed(8)
    encoder, plan = (
        Encoder(16, 3, 4, 8),
        reference.InversionPlan(steps=2, iterations=1, samples=16, components=4),
    )
    random = torch.Generator().manual_seed(4)
    known = dataclasses.replace(
        reference.make_reference(site.generator, encoder, plan, random), threshold=10.0
    )
    found = inv.invert(site.images, site.generator, encoder, plan, known)
    patient_of = np.array([0, 0, *range(10)])
    who = g.roster(
        site.who.pseudonyms, patient_of, np.zeros(12, int), key=KEY, usable=found.accepted
    )
    codes = g.patient_codes(found.points, who)
    grouping = g.form_groups(who, 5, "similar", key=KEY, codes=codes)
    patients = al.measure_patients(
        site.images, found, who, site.generator, site.critic, PLAN, COMMON
    )
    statistics = al.gather_statistics(grouping.groups, patients, site.generator, PLAN)
    result = al.align(statistics, site.generator, site.critic, PLAN, known.spread)
    images = al.render(result.codes, site.generator, random)
    assert images.shape == (2, 16, 16, 3)
    assert images.dtype == np.uint8


def test_the_constants_are_those_of_a_plan_that_says_nothing() -> None:
    """Benchmarks take `AlignmentPlan()`, sites the study plan.

    One default must not drift from the other.
    """
    for name in ("content_weight", "style_weight", "trust_weight"):
        assert getattr(al.AlignmentPlan(), name) == Synthesis.model_fields[name].default
