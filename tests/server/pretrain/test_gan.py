"""Pretraining on public photographs: its inputs, its files, and the resumption of a run."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import ConfigurationError, RefusedError
from common.models.encoder import load_encoder
from common.models.images import to_levels
from common.models.stylegan import Generator, MappingNetwork
from common.models.weights import load_weights
from common.wire.tensors import metadata, read
from server.pretrain import gan as pretrain
from server.pretrain import gan_sizes, gan_state
from server.pretrain import losses as pretrain_losses
from server.pretrain import prior as pretrain_prior
from server.pretrain.code_bank import CodeBank
from server.pretrain.gan_plan import PretrainPlan
from server.pretrain.provenance import Provenance
from server.pretrain.session import Session
from server.public_data import images as public_images
from server.public_data.augmentation import shown, views
from server.public_data.images import Source, read_source

torch.set_num_threads(1)
PLAN = PretrainPlan(
    size_px=32,
    width=8,
    latent=16,
    encoder_width=8,
    reconstructed=3,
    averaged=2,
    flattened=2,
    alone=0.4,
)
PLAN = dataclasses.replace(PLAN, prior_steps=2)
PROVENANCE = Provenance("ten painted discs", "CC0", "nobody")
NAMES = tuple(f"disc-{i}" for i in range(10))


def discs() -> np.ndarray:
    """Return ten discs of different colours on black, uint8 [10, 32, 32, 3].

    Each has a bright spot at its left.
    """
    y, x = np.mgrid[:32, :32] - 15.5
    images = np.zeros((10, 32, 32, 3), np.uint8)
    for i, image in enumerate(images):
        image[x**2 + y**2 < 190] = (120 + 10 * i, 60 + 5 * i, 20)
        image[(x + 8) ** 2 + y**2 < 9] = (250, 220, 120)
    return images


def npz(folder: Path, **more: object) -> Path:
    """The discs as an .npz file with names and sides."""
    path = folder / "discs.npz"
    given = {"images": discs(), "names": np.array(NAMES), "laterality": np.zeros(10, bool), **more}
    np.savez(path, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    return path


def test_a_run_writes_a_checkpoint_that_loads_and_a_card_that_names_everything(
    tmp_path: Path,
) -> None:
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("disc-3\nsomebody-else\n")
    out = tmp_path / "out"
    seen: list[tuple[int, float]] = []
    session = Session(steps=5, progress=lambda *at: seen.append(at))
    pretrain.run([npz(tmp_path)], out, PLAN, [PROVENANCE], session, exclude)
    gan, encoder = (
        read(out / f"{name}.safetensors", max_bytes=1 << 24) for name in ("gan", "encoder")
    )
    generator = Generator(32, 3, 8, 16)
    load_weights(generator, gan, "generator.")
    load_encoder(encoder, 8, 16, 32, 3)
    card = (out / "MODEL_CARD.md").read_text()
    files = [
        hashlib.sha256((out / f"{name}.safetensors").read_bytes()).hexdigest()
        for name in ("gan", "encoder")
    ]
    for text in (
        *files,
        "ten painted discs",
        "CC0",
        "nobody",
        "9, of 9 people",
        "2 names",
        "5 steps",
        "latent 16",
    ):
        assert text in card
    assert [step for step, _ in seen] == [0, 1, 2, 3, 4, 5]
    with Image.open(out / "training" / "samples-000005.png") as sheet:
        assert sheet.size == (12 * 32, 7 * 32)
    assert json.loads((out / "training" / "losses-000005.json").read_text())["reconstruction"] > 0


def test_an_interrupted_run_continues_where_it_stopped(tmp_path: Path) -> None:
    source = npz(tmp_path)
    first = pretrain.run([source], tmp_path / "out", PLAN, [PROVENANCE], Session(steps=3))
    state = gan_state.state(first)
    again = gan_state.begin(PLAN)
    gan_state.restore(again, tmp_path / "out" / "training" / "state.safetensors")
    restored = gan_state.state(again)
    assert restored.keys() == state.keys()
    assert any(name.startswith("adam1.") for name in state)
    assert all(np.array_equal(restored[name], state[name]) for name in state)
    session = Session(steps=4, resume=True)
    assert pretrain.run([source], tmp_path / "out", PLAN, [PROVENANCE], session).step == 4


def test_a_finished_checkpoint_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    source = npz(tmp_path)
    pretrain.run([source], tmp_path / "out", PLAN, [PROVENANCE], Session(steps=1))
    with pytest.raises(ConfigurationError, match="holds a checkpoint"):
        pretrain.run([source], tmp_path / "out", PLAN, [PROVENANCE], Session(steps=1))
    with pytest.raises(ConfigurationError, match="minutes or steps"):
        pretrain.run([source], tmp_path / "new", PLAN, [PROVENANCE], Session())
    wider = dataclasses.replace(PLAN, width=16)
    with pytest.raises(RefusedError, match="does not fit"):
        pretrain.run([source], tmp_path / "out", wider, [PROVENANCE], Session(steps=2, resume=True))


def test_reconstruction_gets_better(tmp_path: Path) -> None:
    source = read_source(npz(tmp_path), 32, 3)
    plan = dataclasses.replace(PLAN, alone=1.0, generator_learning_rate=3e-3)
    early = pretrain.pretrain(source, plan, tmp_path / "a", Session(steps=2)).losses
    late = pretrain.pretrain(source, plan, tmp_path / "b", Session(steps=40)).losses
    assert late["reconstruction"] < 0.9 * early["reconstruction"]


def test_excluded_names_do_not_enter(tmp_path: Path) -> None:
    source = read_source(npz(tmp_path), 32, 3, ["disc-0", "disc-9", "not-there"])
    assert source.names == NAMES[1:9]
    assert np.array_equal(source.images, discs()[1:9])
    assert source.right is not None
    assert len(source.right) == 8


def test_without_names_nothing_can_be_excluded(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nothing can be excluded"):
        read_source(npz(tmp_path, names=None), 32, 3, ["disc-0"])


def test_a_folder_is_framed_resized_and_given_its_sides(tmp_path: Path) -> None:
    for name, image in zip(NAMES[:3], discs(), strict=False):
        large = np.kron(image, np.ones((2, 2, 1), np.uint8))
        Image.fromarray(large).save(tmp_path / f"{name}.png")
    (tmp_path / "labels.csv").write_text(
        "file,laterality\n" + "".join(f"{n}.png,{s}\n" for n, s in zip(NAMES, "LRL", strict=False))
    )
    source = read_source(tmp_path, 32, 3, ["disc-2.png"])
    assert source.names == ("disc-0.png", "disc-1.png")
    assert source.right is not None
    assert source.right.tolist() == [False, True]
    assert np.abs(source.images.astype(int) - discs()[:2]).mean() < 4


def test_a_pickled_array_an_oversized_file_and_another_size_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = np.array([object()])
    with pytest.raises(ConfigurationError, match="without Python objects"):
        read_source(npz(tmp_path, images=hidden), 32, 3)
    with pytest.raises(ConfigurationError, match=r"\[N, 64, 64, 3\], got uint8 \[10, 32, 32, 3\]"):
        read_source(npz(tmp_path), 64, 3)
    with pytest.raises(ConfigurationError, match="no array `images`"):
        read_source(npz(tmp_path, images=None), 32, 3)
    monkeypatch.setattr(public_images, "SOURCE_CAP_BYTES", 1000)
    with pytest.raises(RefusedError, match="1000 bytes"):
        read_source(npz(tmp_path), 32, 3)


@pytest.mark.parametrize("missing", ["source", "licence", "attribution"])
def test_photographs_without_provenance_are_refused(missing: str) -> None:
    with pytest.raises(ConfigurationError, match=missing):
        dataclasses.replace(PROVENANCE, **{missing: " "})


def test_a_mirrored_view_changes_side_and_unknown_sides_are_not_mirrored() -> None:
    source = Source(discs(), NAMES, np.zeros(10, bool), "")
    x, side = views(source, 2, np.random.default_rng(0))
    assert x.shape == (40, 3, 32, 32)
    assert torch.equal(x[20:], x[:20].flip(3))
    assert side.tolist() == [0] * 20 + [1] * 20
    x, side = views(dataclasses.replace(source, right=None), 2, np.random.default_rng(0))
    assert len(x) == 20
    assert set(side.tolist()) == {0}


def test_averages_never_mix_the_two_sides() -> None:
    bank = CodeBank(8)
    bank.add(torch.ones(6, 8, 16), torch.zeros(6, dtype=torch.long))
    bank.add(-torch.ones(4, 8, 16), torch.ones(4, dtype=torch.long))
    assert len(bank.codes) == 8
    averages = bank.means(bank.groups(50, 5, np.random.default_rng(0)))
    assert set(averages.unique().tolist()) == {-1.0, 1.0}


def test_centring_the_layers_changes_no_image() -> None:
    """G(code) before equals G(code − offset) after, and so does every inversion."""
    generator, _, encoder = gan_state.begin(PLAN).networks
    x, codes, offset = torch.rand(2, 3, 32, 32), torch.randn(2, 8, 16), torch.randn(8, 16)
    with torch.no_grad():
        image, inverted = generator.synthesis(codes), encoder.invert(x, generator, 2)
        pretrain_prior.centre(generator, encoder, offset)
        assert torch.allclose(generator.synthesis(codes - offset), image, atol=1e-4)
        again = encoder.invert(x, generator, 2)
    assert torch.allclose(again.codes, inverted.codes - offset, atol=1e-4)
    assert torch.allclose(again.reconstructions, inverted.reconstructions, atol=1e-4)


def test_the_prior_learns_two_separate_clouds_of_codes() -> None:
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    centres = torch.where(torch.arange(400) % 2 == 0, 1.0, -1.0)[:, None] * torch.ones(16)
    codes = centres + 0.1 * torch.randn(400, 16, generator=draw)
    mapping = gan_state.begin(PLAN).networks.generator.mapping

    def distance() -> float:
        with torch.no_grad():
            made = mapping(torch.randn(200, 16, generator=draw))
        return float(torch.cdist(made, codes).min(1).values.mean())

    before = distance()
    pretrain_prior.fit_prior(mapping, codes, 150, draw)
    assert distance() < 0.5 * before
    with torch.no_grad():
        sides = mapping(torch.randn(200, 16, generator=draw)).mean(1) > 0
    assert 0.2 < float(sides.float().mean()) < 0.8


def test_the_prior_keeps_the_variance_of_the_codes_along_their_axes() -> None:
    """0.023 and 0.019 for two seeds; 0.045 and 0.047 without `moment_distance` in the loss."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    codes = 0.9 ** torch.arange(16) * torch.randn(60, 16)
    mapping = MappingNetwork(16)
    pretrain_prior.fit_prior(mapping, codes, 300, draw)
    with torch.no_grad():
        made = mapping(torch.randn(2000, 16, generator=draw))
    assert float(pretrain_prior.moment_distance(made, pretrain_prior.Principal.of(codes))) < 0.033


def test_the_moment_distance_sees_a_shift_and_a_lost_variance() -> None:
    codes = torch.randn(400, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 9.0)
    wanted = pretrain_prior.Principal.of(codes)
    assert float(pretrain_prior.moment_distance(codes, wanted)) < 1e-6
    shrunk = codes.mean(0) + 0.5 * (codes - codes.mean(0))
    assert float(pretrain_prior.moment_distance(shrunk, wanted)) == pytest.approx(0.25, abs=1e-3)
    one = codes.mean(0) + wanted.axes[0] * wanted.deviation[0] + (codes - codes.mean(0))
    share = float(wanted.deviation[0].square() / wanted.deviation.square().sum())
    assert float(pretrain_prior.moment_distance(one, wanted)) == pytest.approx(share, abs=1e-3)


def test_flat_codes_come_closer_to_the_photographs_than_their_start() -> None:
    torch.manual_seed(0)
    generator = gan_state.begin(PLAN).networks.generator
    with torch.no_grad():
        seen = generator.synthesis(generator.broadcast(torch.randn(3, 16)))
    levels = to_levels(seen).permute(0, 3, 1, 2)
    wanted = shown(levels)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    start = torch.zeros(3, 16)
    found = pretrain_prior.flat_codes(generator, levels, start)

    def loss(w: torch.Tensor) -> float:
        with torch.no_grad():
            return float(
                pretrain_losses.reconstruction_loss(
                    wanted, generator.synthesis(generator.broadcast(w))
                )
            )

    assert loss(found) < 0.95 * loss(start)
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert all(p.grad is None for p in generator.parameters())


def test_the_sliced_distance_is_zero_for_the_same_sample_and_grows_with_the_shift() -> None:
    a, draw = torch.randn(64, 8), torch.Generator().manual_seed(0)
    shuffled = a[torch.randperm(64)]
    assert float(pretrain_losses.sliced_wasserstein(a, shuffled, draw)) < 1e-9
    near, far = (
        float(pretrain_losses.sliced_wasserstein(a, a + shift, draw)) for shift in (0.1, 1.0)
    )
    assert 0 < near < far


KILLED = """
import dataclasses, sys
from pathlib import Path
import torch
from server.pretrain.gan import pretrain
from server.pretrain.gan_plan import PretrainPlan
from server.pretrain.session import Session
from server.public_data.images import read_source
torch.set_num_threads(1)
plan = PretrainPlan(size_px=32, width=8, latent=16, encoder_width=8, reconstructed=3, prior_steps=2)
source = read_source(Path(sys.argv[1]), 32, 3)

def report(step, _):
    print(step, flush=True)

session = Session(steps=10**6, progress=report)
pretrain(source, plan, Path(sys.argv[2]), session, save_every_s=0.0)
"""


def test_a_run_that_was_killed_in_the_middle_of_a_step_goes_on_from_its_last_state(
    tmp_path: Path,
) -> None:
    source, out = npz(tmp_path), tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, source, out], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        for _ in range(5):
            reached = int(child.stdout.readline())
        child.kill()
    saved = read(out / "training" / "state.safetensors", max_bytes=1 << 24)
    step = int(saved["progress"][0])
    assert step >= reached > 3
    with pytest.raises(ConfigurationError, match="holds a checkpoint"):
        pretrain.run([source], out, PLAN, [PROVENANCE], Session(steps=step + 2))
    seen: list[int] = []
    done = pretrain.run(
        [source],
        out,
        PLAN,
        [PROVENANCE],
        Session(steps=step + 2, resume=True, progress=lambda at, _: seen.append(at)),
    )
    assert seen == [step, step + 1, step + 2]
    moments = done.optimisers[0].state_dict()["state"]
    # Adam counts from the very beginning too
    assert {int(one["step"]) for one in moments.values()} >= {step + 2}


def test_one_dial_changes_the_size(tmp_path: Path) -> None:
    large = np.kron(discs()[:3], np.ones((1, 4, 4, 1), np.uint8))
    plan = dataclasses.replace(
        PLAN, size_px=128, width=2, latent=8, encoder_width=4, alone=0.6, coarse=0.4
    )
    source = Source(large, NAMES[:3], None, "")
    made = pretrain.pretrain(source, plan, tmp_path, Session(steps=3))
    assert made.averages.generator.synthesis(torch.zeros(1, 12, 8)).shape == (1, 3, 128, 128)
    with Image.open(tmp_path / "training" / "samples-000003.png") as sheet:
        assert sheet.size == (12 * 128, 7 * 128)


@pytest.mark.parametrize("size_px", [64, 128, 256, 512])
def test_synthesis_to_a_smaller_size_is_the_generators_own_below_its_last_layers(
    size_px: int,
) -> None:
    torch.manual_seed(0)
    generator = Generator(size_px, 3, 1, 4).requires_grad_(False)
    codes = torch.randn(2, generator.layer_count, 4)
    small = gan_sizes.synthesis(generator, codes, size_px // 2)
    # the last block adds nothing now, so the whole image is the enlarged half
    generator.to_image[-1].weight.zero_()
    torch.testing.assert_close(
        gan_sizes.enlarge(small, size_px), generator.synthesis(codes), atol=1e-4, rtol=1e-4
    )
    assert torch.equal(gan_sizes.synthesis(generator, codes, size_px), generator.synthesis(codes))


def test_an_unknown_device_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    session = Session(steps=1, device="abacus")
    with pytest.raises(ConfigurationError, match="device abacus"):
        pretrain.run([tmp_path / "absent.npz"], tmp_path / "out", PLAN, [PROVENANCE], session)


def test_two_sources_of_other_cameras_make_one_checkpoint_that_names_both(tmp_path: Path) -> None:
    """Photographs of twice the size; the files and the card say what the checkpoint knows."""
    paths = []
    for name, part in (("one", discs()[:5]), ("two", discs()[5:])):
        path = tmp_path / f"{name}.npz"
        finer = np.kron(part, np.ones((1, 2, 2, 1), np.uint8))
        np.savez(path, images=finer, laterality=np.zeros(5, bool))
        paths.append(path)
    plan = dataclasses.replace(PLAN, cameras=True, alone=0.0, textured=0.0)
    known = [Provenance("clinic one", "CC0", "nobody"), Provenance("clinic two", "CC BY", "them")]
    out = tmp_path / "out"
    pretrain.run(paths, out, plan, known, Session(steps=2))
    card = (out / "MODEL_CARD.md").read_text()
    assert "clinic one" in card and "clinic two" in card
    assert "--channels 3 --cameras --minutes" in card
    for file in ("gan", "encoder"):
        texts = metadata(out / f"{file}.safetensors")
        assert texts["source 1"] == "clinic one (5 photographs, CC0, attribution: nobody)"
        assert texts["source 2"].startswith("clinic two")

    # another run begins with these weights, and only with those of its sizes
    training = gan_state.begin(plan)
    gan_state.load_start(training, out)
    arrays = read(out / "gan.safetensors", max_bytes=1 << 24)
    for networks in (training.networks, training.averages):
        assert np.array_equal(
            networks.generator.constant.detach().numpy(), arrays["generator.constant"]
        )
    with pytest.raises(RefusedError, match="does not fit"):
        gan_state.load_start(gan_state.begin(dataclasses.replace(plan, width=16)), out)
