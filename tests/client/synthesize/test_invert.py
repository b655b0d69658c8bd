"""Inversion: the reference from generator samples alone, rejection, refinement, whitening."""

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client.state.spool import Spool
from client.synthesize import invert as inv
from client.synthesize import reference
from client.synthesize.descent import CodeDescent
from client.synthesize.looks import look_at
from common.errors import Bug, ConfigurationError, RefusedError
from common.models.encoder import Encoder, load_encoder
from common.models.images import to_uint8, to_unit
from common.models.stylegan import Generator, load_generator
from common.study.training import GanPlan
from common.wire.tensors import dumps, loads, read

torch.set_num_threads(1)
PLAN = reference.InversionPlan(steps=4, iterations=2, batch=4, samples=24, components=6)


@pytest.fixture(scope="module")
def nets() -> tuple[Generator, Encoder]:
    torch.manual_seed(3)
    return Generator(16, 3, 4, 8), Encoder(16, 3, 4, 8)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(generator: Generator, count: int) -> np.ndarray:
    """Images that the generator itself makes, near its average so that a few steps reach them."""
    with torch.no_grad():
        return to_uint8(generator(0.05 * torch.randn(count, 8, generator=seeded(2))).div(4))


@pytest.fixture(scope="module")
def known(nets: tuple[Generator, Encoder]) -> reference.Reference:
    return reference.make_reference(*nets, PLAN, seeded())


def test_the_reference_has_no_parameter_that_could_hold_the_cohort(
    nets: tuple[Generator, Encoder],
) -> None:
    assert list(inspect.signature(reference.make_reference).parameters) == [
        "generator",
        "encoder",
        "plan",
        "random",
    ]
    one, two = (reference.make_reference(*nets, PLAN, seeded()) for _ in range(2))
    assert one.threshold == two.threshold > 0
    assert one.spread == two.spread > 0


def test_black_constant_and_noise_images_are_rejected(
    nets: tuple[Generator, Encoder], known: reference.Reference
) -> None:
    rng = np.random.default_rng(0)
    images = np.zeros((5, 16, 16, 3), np.uint8)
    images[4] = np.where(rng.random((16, 16, 1)) < 0.7, 255, 128)  # saturated
    images[1] = 90
    images[2] = 90 + rng.integers(0, 3, (16, 16, 1))
    images[3] = rng.integers(0, 2, (16, 16, 3)) * 255
    strict = dataclasses.replace(known, threshold=0.3)
    assert not inv.invert(images, *nets, PLAN, strict).accepted.any()
    lax = dataclasses.replace(known, threshold=10.0)
    assert inv.invert(images, *nets, PLAN, lax).accepted.tolist() == [
        False,
        False,
        False,
        True,
        False,
    ]


def test_a_code_that_is_not_finite_is_rejected(
    nets: tuple[Generator, Encoder], known: reference.Reference
) -> None:
    class Broken(Encoder):
        def forward(self, x: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
            residual = super().forward(x, reconstruction)
            residual[0] = float("nan")
            return residual

    torch.manual_seed(3)
    lax = dataclasses.replace(known, threshold=10.0)
    found = inv.invert(samples(nets[0], 3), nets[0], Broken(16, 3, 4, 8), PLAN, lax)
    assert found.accepted.tolist() == [False, True, True]


def test_refinement_lowers_the_error_and_changes_no_weight(
    nets: tuple[Generator, Encoder], known: reference.Reference
) -> None:
    before = [p.detach().clone() for net in nets for p in net.parameters()]
    images = samples(nets[0], 5)
    plain = inv.invert(images, *nets, dataclasses.replace(PLAN, steps=0), known)
    refined = inv.invert(images, *nets, dataclasses.replace(PLAN, steps=12), known)
    np.testing.assert_allclose(known.whitening(plain.codes), plain.points, rtol=1e-12)
    np.testing.assert_array_equal(plain.points, refined.points)
    assert (refined.errors < plain.errors).all()
    assert all(
        torch.equal(a, p)
        for a, p in zip(before, (p for n in nets for p in n.parameters()), strict=True)
    )
    assert all(p.requires_grad for net in nets for p in net.parameters())


def test_what_a_camera_cut_away_pulls_no_code(
    nets: tuple[Generator, Encoder], known: reference.Reference
) -> None:
    """A generator that paints the whole disc must not be refined towards black."""
    x = to_unit(samples(nets[0], 2))
    fields = torch.ones_like(x[:, :1])
    fields[:, :, :4] = 0
    start = nets[0].broadcast(torch.zeros(2, 8))
    cut = torch.where(fields > 0, x, torch.full_like(x, -1.0))
    with reference.freeze(*nets):
        whole, seen = (
            inv._refine(image, start, nets[0], PLAN, known.spread, fields) for image in (x, cut)
        )
        pulled = inv._refine(cut, start, nets[0], PLAN, known.spread)
    assert torch.equal(whole, seen)
    assert not torch.equal(whole, pulled)


def test_an_image_is_inverted_alike_whatever_its_batch(
    nets: tuple[Generator, Encoder], known: reference.Reference
) -> None:
    images = samples(nets[0], 6)
    together = inv.invert(images, *nets, PLAN, known)
    alone = inv.invert(images[4:5], *nets, PLAN, known)
    np.testing.assert_allclose(together.codes[4:5], alone.codes, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(together.errors[4:5], alone.errors, rtol=0, atol=1e-4)


def test_our_adam_is_adam() -> None:
    ours, theirs = torch.ones(3), torch.ones(3)
    mine, reference = CodeDescent(ours), [torch.zeros(3), torch.zeros(3)]
    for t in range(1, 5):
        gradient = torch.tensor([1.0, -2.0, 0.5]) * t
        mine.step(gradient, 0.1)
        reference = [
            0.9 * reference[0] + 0.1 * gradient,
            0.999 * reference[1] + 0.001 * gradient**2,
        ]
        m, v = reference[0] / (1 - 0.9**t), reference[1] / (1 - 0.999**t)
        theirs = theirs - 0.1 * m / (v.sqrt() + 1e-8)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_shapes_and_progress(nets: tuple[Generator, Encoder], known: reference.Reference) -> None:
    seen: list[tuple[int, int]] = []
    found = inv.invert(
        samples(nets[0], 6), *nets, PLAN, known, lambda done, total: seen.append((done, total))
    )
    assert found.codes.shape == (6, 6, 8)
    assert found.points.shape == (6, 6)
    assert inv.reconstruct(found.codes, nets[0]).shape == (6, 3, 16, 16)
    assert seen == [(4, 6), (6, 6)]


class Stopped(Exception):
    """Stands for the kill."""


@pytest.mark.parametrize("batch", [1, 4], ids=["one at a time", "batches of four"])
@pytest.mark.parametrize("stop_after", [0, 5, 8, 9], ids=lambda n: f"stopped after {n}")
def test_what_is_finished_is_not_inverted_again_and_the_result_is_the_same_bit_for_bit(
    batch: int,
    stop_after: int,
    nets: tuple[Generator, Encoder],
    known: reference.Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inv, "BLOCK_ROWS", 4)
    images = samples(nets[0], 10)
    plan = dataclasses.replace(PLAN, batch=batch)
    whole = inv.invert(images, *nets, plan, known)

    def stop(done: int, _: int) -> None:
        if done > stop_after:
            raise Stopped

    with pytest.raises(Stopped):
        inv.invert(images, *nets, plan, known, stop, Spool.open(tmp_path / "spool", "b"))
    spool = Spool.open(tmp_path / "spool", "b")
    assert spool.count == stop_after // 4 * 4
    seen: list[int] = []
    again = inv.invert(images, *nets, plan, known, lambda done, _: seen.append(done), spool)
    assert seen[0] == min(stop_after // 4 * 4 + batch, 10)
    for name, rows in vars(whole).items():
        np.testing.assert_array_equal(vars(again)[name], rows)
        assert vars(again)[name].dtype == rows.dtype


def test_after_each_block_the_cohorts_pages_are_let_go(
    nets: tuple[Generator, Encoder], known: reference.Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[int] = []
    monkeypatch.setattr(inv, "BLOCK_ROWS", 4)
    monkeypatch.setattr(inv, "release_pages", lambda images: released.append(len(images)))
    plan = dataclasses.replace(PLAN, batch=4)
    inv.invert(samples(nets[0], 10), *nets, plan, known)
    assert released == [10, 10, 10]


def test_one_at_a_time_not_even_rounding_depends_on_the_other_images(
    nets: tuple[Generator, Encoder], known: reference.Reference
) -> None:
    """Grouping `anchors` rests on it: a patient's cell is the patient's own matter."""
    images = samples(nets[0], 7)
    plan = dataclasses.replace(PLAN, batch=1)
    together = inv.invert(images, *nets, plan, known)
    for row in range(7):
        alone = inv.invert(images[row : row + 1], *nets, plan, known)
        for name, rows in vars(together).items():
            np.testing.assert_array_equal(rows[row : row + 1], vars(alone)[name])


def test_a_reference_that_was_written_down_is_the_same(known: reference.Reference) -> None:
    read_back = reference.Reference.from_arrays(loads(dumps(known.to_arrays()), max_bytes=1 << 20))
    codes = np.random.default_rng(0).normal(size=(5, 6, 8)).astype(np.float32)
    np.testing.assert_array_equal(
        read_back.whitening(codes),
        reference.Reference.from_arrays(known.to_arrays()).whitening(codes),
    )
    for name in ("threshold", "spread", "upright"):
        assert getattr(read_back, name) == getattr(known, name)
    np.testing.assert_array_equal(read_back.samples.codes, known.samples.codes)
    np.testing.assert_array_equal(read_back.colours, known.colours)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((0, 16, 16, 3), np.uint8),
        np.zeros((2, 32, 32, 3), np.uint8),
        np.zeros((2, 16, 16, 3), np.float32),
    ],
    ids=["none", "another size", "not uint8"],
)
def test_images_that_do_not_fit_are_refused(
    nets: tuple[Generator, Encoder], known: reference.Reference, images: np.ndarray
) -> None:
    with pytest.raises(ConfigurationError, match="expected uint8 images"):
        inv.invert(images, *nets, PLAN, known)


def test_held_out_samples_are_white_and_empty_directions_do_not_blow_up() -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 20)) * np.linspace(3, 0.3, 6)[:, None]  # rank 6 of 20
    whitening = reference.Whitening.fit(
        reference.GeneratorCodes(rng.normal(size=(400, 6)) @ mix), 64
    )
    held_out = whitening(rng.normal(size=(400, 6)) @ mix)
    variance = held_out.var(axis=0)[:6]
    assert (variance > 0.2).all()
    assert (variance < 5).all()
    assert held_out[:, 6:].var(axis=0).max(initial=0.0) < 1e-3


def test_the_whitening_takes_generator_codes_alone() -> None:
    with pytest.raises(Bug, match="GeneratorCodes"):
        reference.Whitening.fit(np.zeros((9, 4)), 2)  # type: ignore[arg-type]


def test_the_threshold_is_the_smaller_of_foreign_and_own_each_with_its_floor(
    nets: tuple[Generator, Encoder],
) -> None:
    def threshold(**changed: float) -> float:
        return reference.make_reference(
            *nets, dataclasses.replace(PLAN, **changed), seeded()
        ).threshold  # type: ignore[arg-type]

    low = {"mismatch_quantile": 0.0, "own_factor": 0.0, "least_mismatch": 0.0, "least_own": 0.0}
    assert threshold(**low) == 0.0
    assert threshold(**low | {"least_mismatch": 9.0, "least_own": 0.07}) == 0.07
    assert threshold(**low | {"least_mismatch": 0.08, "least_own": 9.0}) >= 0.08
    own, twice = (
        threshold(**low | {"least_mismatch": 9.0, "own_factor": factor}) for factor in (1.0, 2.0)
    )
    assert twice == pytest.approx(2 * own)
    assert (
        threshold(**low | {"least_own": 9.0, "mismatch_quantile": 0.9})
        > threshold(**low | {"least_own": 9.0})
        > 0
    )


@pytest.mark.parametrize(
    "encoder", [(32, 8), (16, 12)], ids=["another size", "another code length"]
)
def test_an_encoder_of_another_size_is_refused_before_anything_is_computed(
    nets: tuple[Generator, Encoder], known: reference.Reference, encoder: tuple[int, int]
) -> None:
    other = Encoder(encoder[0], 3, 4, encoder[1])
    with pytest.raises(ConfigurationError, match=r"generator's codes are \[6, 8\]"):
        reference.make_reference(nets[0], other, PLAN, seeded())
    with pytest.raises(ConfigurationError, match=r"generator's codes are \[6, 8\]"):
        inv.invert(np.zeros((1, 16, 16, 3), np.uint8), nets[0], other, PLAN, known)


def test_a_generator_that_diverged_is_refused_with_what_to_do(
    nets: tuple[Generator, Encoder],
) -> None:
    broken = Generator(16, 3, 4, 8)
    with torch.no_grad():
        broken.image_bias[0] = float("nan")
    with pytest.raises(RefusedError, match="not finite"):
        reference.make_reference(broken, nets[1], PLAN, seeded())


SHIPPED = Path(__file__).parents[3] / "deploy" / "checkpoints" / "fundus-64"
DEMO = Path(__file__).parents[3] / "deploy" / "demo" / "fundus"


@pytest.fixture(scope="module")
def shipped() -> tuple[Generator, Encoder, reference.InversionPlan, reference.Reference]:
    """The demo's generator and encoder, and what they say before any cohort is seen."""
    size = GanPlan.model_construct(width=24, latent=128)
    gan, encoder = (
        read(SHIPPED / f"{name}.safetensors", max_bytes=1 << 24) for name in ("gan", "encoder")
    )
    nets = load_generator(gan, size, 64, 3), load_encoder(encoder, 24, 128, 64, 3)
    plan = reference.InversionPlan(steps=2, iterations=2)
    return *nets, plan, reference.make_reference(*nets, plan, seeded())


def photographs(count: int) -> np.ndarray:
    """Photographs of the demo, which the shipped models have never seen."""
    files = sorted(DEMO.glob("*.jpg"))[:count]
    return np.stack(
        [np.asarray(Image.open(f).resize((64, 64), Image.Resampling.LANCZOS)) for f in files]
    )


def test_noise_a_negative_and_another_kind_of_picture_are_rejected_by_the_shipped_models(
    shipped: tuple[Generator, Encoder, reference.InversionPlan, reference.Reference],
) -> None:
    generator, encoder, plan, known = shipped
    rng, y = np.random.default_rng(0), np.linspace(0, 255, 64).astype(np.uint8)
    with torch.no_grad():
        own = to_uint8(generator(torch.randn(3, 128, generator=seeded(4)), seeded(5)))
    foreign = [
        rng.integers(0, 256, (64, 64, 3)),
        np.repeat(rng.normal(128, 40, (64, 64, 1)), 3, 2).clip(0, 255),
    ]
    foreign += [np.broadcast_to(y[:, None, None], (64, 64, 3)), 255 - own[0]]
    found = inv.invert(np.stack([*own, *foreign]).astype(np.uint8), generator, encoder, plan, known)
    assert found.accepted.tolist() == [True] * 3 + [False] * 4


def test_held_out_samples_of_the_shipped_models_are_white_in_every_direction(
    shipped: tuple[Generator, Encoder, reference.InversionPlan, reference.Reference],
) -> None:
    generator, encoder, plan, known = shipped
    with torch.no_grad():
        images = generator(torch.randn(64, 128, generator=seeded(6)), seeded(7)).clamp(-1, 1)
        seen = look_at(images, known.look_on()).images
        codes = encoder.invert(seen, generator, plan.iterations, keep_best=True).codes
    variance = known.whitening(codes.numpy()).var(axis=0)
    assert len(variance) == plan.components
    assert (variance > 0.2).all()
    assert (variance < 5).all()


def test_a_picture_on_its_side_is_rejected_either_way_and_its_upright_self_is_not(
    shipped: tuple[Generator, Encoder, reference.InversionPlan, reference.Reference],
) -> None:
    generator, encoder, plan, known = shipped
    assert known.upright
    own = photographs(16)
    turned = [np.ascontiguousarray(np.rot90(own, quarters, (1, 2))) for quarters in (1, 3)]
    lax = dataclasses.replace(known, threshold=10.0)  # the threshold has no part in it
    found = inv.invert(np.concatenate([own, *turned]), generator, encoder, plan, lax)
    assert found.accepted[:16].all()
    assert found.accepted[16:].mean() < 0.3
    unasked = inv.invert(
        turned[0], generator, encoder, plan, dataclasses.replace(lax, upright=False)
    )
    assert unasked.accepted.all()


def test_where_samples_have_no_way_up_no_image_is_asked_for_its_own(
    nets: tuple[Generator, Encoder],
) -> None:
    known = reference.make_reference(*nets, PLAN, seeded())
    assert not known.upright  # weights of chance: samples invert badly either way
    easy = dataclasses.replace(PLAN, least_upright=0.0, most_error=9.0)
    assert reference.make_reference(*nets, easy, seeded()).upright
    for option in ({"least_upright": 1.01}, {"most_error": 0.1}):
        hard = dataclasses.replace(easy, **option)
        assert not reference.make_reference(*nets, hard, seeded()).upright
    images = samples(nets[0], 6)
    lax = dataclasses.replace(known, threshold=10.0)
    strict = dataclasses.replace(PLAN, turned_margin=0.1)
    unasked = inv.invert(images, *nets, strict, lax).accepted
    assert unasked.sum() > 3  # the others have no content
    asked = dataclasses.replace(lax, upright=True)
    assert not inv.invert(images, *nets, strict, asked).accepted[unasked].all()


def test_whether_an_image_lies_on_its_side_is_its_own_matter(
    shipped: tuple[Generator, Encoder, reference.InversionPlan, reference.Reference],
) -> None:
    generator, encoder, plan, known = shipped
    own = photographs(2)
    images = np.stack([own[0], np.rot90(own[0]), own[1], np.rot90(own[1], 3)])
    together = inv.invert(
        images, generator, encoder, dataclasses.replace(plan, batch=3), known
    ).accepted
    alone = [
        bool(inv.invert(images[i : i + 1], generator, encoder, plan, known).accepted[0])
        for i in range(4)
    ]
    assert together.tolist() == alone == [True, False, True, True]  # the last, by a small margin
