"""Public pretraining of the flow learns, resumes, keeps an average and refuses bad inputs."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import ConfigurationError, RefusedError
from common.models.glow import Glow
from common.models.glow_checkpoint import load, weights_of
from common.wire import tensors
from server.pretrain import flow as pretrain_glow
from server.pretrain import flow_files
from server.pretrain.flow import augment, begin, pretrain, run
from server.pretrain.flow_options import Pretraining
from server.pretrain.provenance import Provenance
from server.public_data.images import Source

torch.set_num_threads(1)
SMALL = Pretraining(levels=2, steps_per_level=1, width=8, batch=4, steps=3, minutes=1e9)
ORIGIN = Provenance("invented pictures", "CC0-1.0", "nobody")


def source(n: int = 6, size_px: int = 8, channels: int = 1) -> Source:
    pixels = np.random.default_rng(0).integers(
        100, 150, (n, size_px, size_px, channels), dtype=np.uint8
    )
    return Source(pixels, (), None, "0" * 64)


def options(**changes: object) -> Pretraining:
    return Pretraining(**{**vars(SMALL), **changes})  # type: ignore[arg-type]


def test_a_run_writes_checkpoint_card_state_and_sheet(tmp_path: Path) -> None:
    seen: list[float] = []
    training = run(
        source(), tmp_path, SMALL, ORIGIN, progress=lambda step, share, bits: seen.append(share)
    )
    assert seen == pytest.approx([0, 1 / 3, 2 / 3, 1])
    model = Glow(8, 1, 2, 1, 8)
    load(model, tmp_path / "glow.safetensors")
    averages = weights_of(training.average)
    assert all(np.array_equal(value, averages[name]) for name, value in weights_of(model).items())
    assert any(
        not np.array_equal(value, averages[name])
        for name, value in weights_of(training.model).items()
    )
    text = (tmp_path / "GLOW_CARD.md").read_text()
    digest = hashlib.sha256((tmp_path / "glow.safetensors").read_bytes()).hexdigest()
    assert digest in text and "invented pictures" in text and "3 steps" in text
    with Image.open(tmp_path / "training" / "glow-samples.png") as sheet:
        assert sheet.size == (80, 40)


def test_a_flow_of_twice_the_size_grows_and_what_it_grew_from_stays(tmp_path: Path) -> None:
    run(source(), tmp_path / "half", SMALL, ORIGIN)
    half = tmp_path / "half" / "glow.safetensors"
    doubled = options(doublings=1)
    twice = Source(source().images.repeat(2, 1).repeat(2, 2), (), None, "0" * 64)
    training = run(twice, tmp_path / "whole", doubled, ORIGIN, start=half)
    known = tensors.read(half, max_bytes=1 << 24)
    for network in (training.model, training.average):
        now = weights_of(network)
        assert all(np.array_equal(now[name], value) for name, value in known.items())
    fresh = weights_of(begin(twice.images, doubled).model)
    now = weights_of(training.model)
    moved = {name for name in now if not np.array_equal(now[name], fresh[name])}
    assert any(name.startswith("glow.doublings.0.level.mixings") for name in moved)
    assert "doublings 1" in (tmp_path / "whole" / "GLOW_CARD.md").read_text()

    # such a run goes on from the same checkpoint alone
    longer = options(doublings=1, steps=4)
    with pytest.raises(ConfigurationError, match="tensors learned so far") as refused:
        run(twice, tmp_path / "whole", longer, resume=True)
    assert refused.value.hint == "give --start as at first"
    again = run(twice, tmp_path / "whole", longer, resume=True, start=half)
    assert again.step == 4


def test_a_start_needs_a_doubling_and_a_flow_of_half_the_size(tmp_path: Path) -> None:
    run(source(), tmp_path, SMALL)
    half = tmp_path / "glow.safetensors"
    with pytest.raises(ConfigurationError, match="this one has no doublings"):
        begin(source().images, SMALL, start=half)
    twice = source().images.repeat(2, 1).repeat(2, 2)
    with pytest.raises(RefusedError):
        begin(twice, options(doublings=1, levels=1), start=half)


def test_training_lowers_the_bits_per_dimension() -> None:
    images, found = source(16).images, []
    longer = options(steps=60, learning_rate=0.02, batch=8)
    pretrain(
        images, longer, begin(images, longer), progress=lambda step, share, bits: found.append(bits)
    )
    assert found[-1] < found[2] - 0.3


def test_a_killed_run_goes_on_with_its_weights_average_moments_and_counters(tmp_path: Path) -> None:
    first = run(source(), tmp_path, SMALL, ORIGIN)
    steps: list[int] = []
    again = begin(source().images, SMALL)
    flow_files.restore(again, tmp_path / "training" / "glow-state.safetensors")
    assert (again.step, again.bits) == (3, first.bits)
    for mine, theirs in ((first.model, again.model), (first.average, again.average)):
        assert all(
            torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True)
        )
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        kept, restored = first.optimiser.state[a], again.optimiser.state[b]
        assert all(
            torch.equal(kept[name], restored[name]) for name in ("step", "exp_avg", "exp_avg_sq")
        )
    run(
        source(),
        tmp_path,
        options(steps=5),
        ORIGIN,
        resume=True,
        progress=lambda step, *_: steps.append(step),
    )
    assert steps == [3, 4, 5]


def test_what_is_not_asked_for_is_not_overwritten_and_a_lost_state_not_invented(
    tmp_path: Path,
) -> None:
    run(source(), tmp_path, SMALL)
    assert not (tmp_path / "GLOW_CARD.md").exists(), "no card without a provenance"
    with pytest.raises(ConfigurationError, match="exists already"):
        run(source(), tmp_path, SMALL)
    with pytest.raises(RefusedError):
        run(source(), tmp_path, options(width=16), resume=True)
    (tmp_path / "training" / "glow-state.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="cannot go on"):
        run(source(), tmp_path, SMALL, resume=True)


def test_the_same_seed_gives_the_same_flow_and_reversible_nearly_the_same() -> None:
    images = source().images

    def weights(**changes: object) -> dict[str, np.ndarray]:
        chosen = options(**changes)
        return weights_of(pretrain(images, chosen, begin(images, chosen)).model)

    one, two, other, rebuilt = weights(), weights(), weights(seed=1), weights(reversible=True)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)
    assert all(np.allclose(one[name], rebuilt[name], atol=3e-4) for name in one)


def test_depths_follow_one_another_in_the_first_half() -> None:
    staged = options(depths=(3, 5, 8))
    assert [staged.depth(share) for share in (0.0, 0.24, 0.26, 0.49, 0.5, 0.99, 1.0)] == [
        3,
        3,
        5,
        5,
        8,
        8,
        8,
    ]
    assert {SMALL.depth(share) for share in (0.0, 0.5, 1.0)} == {8}


@pytest.mark.parametrize(("flips", "variants"), [("none", 1), ("horizontal", 2), ("both", 4)])
def test_pictures_are_flipped_as_asked(flips: str, variants: int) -> None:
    picture = torch.arange(4, dtype=torch.uint8).reshape(1, 2, 2, 1)
    random = np.random.default_rng(0)
    found = {augment(picture, 0, random, flips).numpy().tobytes() for _ in range(40)}
    assert len(found) == variants


def test_a_shifted_picture_repeats_its_edge() -> None:
    picture = torch.arange(9, dtype=torch.uint8).reshape(1, 3, 3, 1)
    random = np.random.default_rng(0)
    expected = set()
    padded = np.pad(picture[0, ..., 0].numpy(), 1, mode="edge")
    for dy in range(3):
        for dx in range(3):
            expected.add(padded[dy : dy + 3, dx : dx + 3].tobytes())
    found = {augment(picture, 1, random, "none").numpy().tobytes() for _ in range(200)}
    assert found == expected


WRONG: dict[str, tuple[np.ndarray, dict[str, object]]] = {
    "16 bit": (np.zeros((4, 8, 8, 1), np.uint16), {}),
    "no square": (np.zeros((4, 8, 4, 1), np.uint8), {}),
    "one image": (np.zeros((1, 8, 8, 1), np.uint8), {}),
    "two channels": (np.zeros((4, 8, 8, 2), np.uint8), {}),
    "more levels than pixels": (np.zeros((4, 8, 8, 1), np.uint8), {"levels": 5}),
}


@pytest.mark.parametrize("case", WRONG)
def test_images_and_layouts_that_cannot_be_are_refused_in_words(case: str) -> None:
    images, changes = WRONG[case]
    with pytest.raises(ConfigurationError, match="pretrain"):
        begin(images, options(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"depths": ()},
        {"depths": (8, 5)},
        {"depths": (0, 8)},
        {"flips": "x"},
        {"reversible": True, "compiled": True},
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="pretrain"):
        options(**changes)


def test_a_run_that_diverges_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_glow, "LOST_STEPS", 3)
    lost = itertools.count()
    monkeypatch.setattr(
        pretrain_glow, "dequantise", lambda *_: next(lost) * torch.nan + torch.zeros(4, 1, 8, 8)
    )
    images = source().images
    training = begin(images, SMALL)
    with pytest.raises(ConfigurationError, match="diverged"):
        pretrain(images, options(steps=9), training)
    assert all(bool(torch.isfinite(p).all()) for p in training.model.parameters())


def test_the_module_trains_an_npz_and_constant_pictures_do_not_break_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.zeros((5, 8, 8, 3), np.uint8))
    given = [str(tmp_path / "images.npz"), str(tmp_path / "out" / "glow.safetensors")]
    small = [
        "--levels",
        "2",
        "--steps-per-level",
        "1",
        "--width",
        "8",
        "--depths",
        "3,8",
        "--minutes",
        "0.003",
    ]
    pretrain_glow.main([*given, *small])
    model = Glow(8, 3, 2, 1, 8)
    load(model, tmp_path / "out" / "glow.safetensors")
    np.savez(tmp_path / "other.npz", pictures=np.zeros(3))
    with pytest.raises(ConfigurationError, match="no array"):
        pretrain_glow.main([str(tmp_path / "other.npz"), *given[1:]])


def test_the_servers_command_trains_a_flow_of_the_studys_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from server.cli.pretrain import pretrain as command

    np.savez(tmp_path / "images.npz", images=source(size_px=16).images)
    named = {
        "source": ["invented"],
        "licence": ["CC0-1.0"],
        "attribution": ["nobody"],
        "size_px": 16,
        "channels": 1,
    }
    command([tmp_path / "images.npz"], out=tmp_path / "out", minutes=0.001, model="glow", **named)  # type: ignore[arg-type]
    load(Glow(16, 1, 4, 6, 40), tmp_path / "out" / "glow.safetensors")
    assert (tmp_path / "out" / "GLOW_CARD.md").is_file()
    with pytest.raises(ConfigurationError, match="licence"):
        command(
            [tmp_path / "images.npz"],
            out=tmp_path / "more",
            model="glow",
            **{**named, "licence": [""]},  # type: ignore[arg-type]
        )


def test_films_are_shown_in_other_frames_and_drawn_by_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[np.ndarray] = []
    views = pretrain_glow.film_views

    def spy(images: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(images.numpy().copy())
        return views(images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pretrain_glow, "film_views", spy)
    images = source(6, 16).images.copy()
    images[4:] = 200
    weights = np.array([1e-9] * 4 + [0.5, 0.5])
    chosen = options(films=True, flips="none", batch=2)
    pretrain(images, chosen, begin(images, chosen), weights=weights)
    assert len(seen) == 3 and all((batch == 200).all() for batch in seen)


def test_films_are_never_flipped() -> None:
    with pytest.raises(ConfigurationError, match="heart on one side"):
        options(films=True)
