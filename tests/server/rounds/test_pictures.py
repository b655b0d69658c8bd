"""Image batches without patients: what is no image of a site, and what honest sites send."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import RefusedError
from common.study.families import FAMILIES
from common.study.plan import load_study
from common.study.shapes import starting_weights
from common.wire.tensors import Arrays
from server.public_data.images import read_source
from server.rounds import gathering
from server.rounds.loop import run_study
from server.rounds.pictures import Gallery, check_contrast, shrink
from tests.federation import Federation, delayed, honest

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
Images = NDArray[np.uint8]


def noise(count: int, seed: int = 0, size: int = 32) -> Images:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (count, size, size, 3), dtype=np.uint8)


def code_of(site: str, images: Images, gallery: Gallery) -> str:
    """The code of a batch as the intake and the round check it; "" for a good one."""
    try:
        check_contrast(images, np.zeros(len(images), np.uint8))
        gallery.check(site, images)
    except RefusedError as error:
        return error.code
    return ""


FLAT: dict[str, Images] = {
    "white": np.full((1, 32, 32, 3), 255, np.uint8),
    "black": np.zeros((1, 32, 32, 3), np.uint8),
    "grey": np.full((1, 32, 32, 3), 128, np.uint8),
    "grey with a grain": (127 + np.random.default_rng(0).integers(0, 4, (1, 32, 32, 3))).astype(
        np.uint8
    ),
    "black and white alone": (noise(1) > 127).astype(np.uint8) * np.uint8(255),
}


@pytest.mark.parametrize("what", FLAT)
def test_an_image_without_contrast_is_refused_among_good_ones(what: str) -> None:
    batch = np.concatenate([noise(3), FLAT[what]])
    assert code_of("hospital-a", batch, Gallery()) == "E-INTAKE-IMAGES-FLAT"


def test_strong_noise_may_drive_an_image_to_black_and_white_and_to_no_flat_one() -> None:
    privatized = np.ones(1, np.uint8)
    check_contrast(FLAT["black and white alone"], privatized)
    with pytest.raises(RefusedError, match="no contrast"):
        check_contrast(FLAT["white"], privatized)


def test_the_same_pixels_twice_are_refused_in_a_part_and_over_parts() -> None:
    gallery = Gallery()
    first, second = noise(3), noise(3, 1)
    twice = np.concatenate([first, first[:1]])
    assert code_of("hospital-a", twice, gallery) == "E-INTAKE-IMAGES-REPEATED"
    gallery.add("hospital-a", first)
    again = np.concatenate([second, first[:1]])
    assert code_of("hospital-a", again, gallery) == "E-INTAKE-IMAGES-REPEATED"
    assert code_of("hospital-a", second, gallery) == ""


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("change", ["none", "a grain of one grey level", "brighter"])
def test_a_copy_of_another_sites_image_is_refused(earlier: bool, change: str) -> None:
    gallery = Gallery()
    sent = np.clip(noise(3), 1, 253)
    gallery.add("hospital-a", sent, earlier=earlier)
    copy = sent[1:2].copy()
    if change == "a grain of one grey level":
        copy += noise(1, 5) % 2
    if change == "brighter":
        copy += np.uint8(2)
    batch = np.concatenate([noise(2, 2), copy])
    assert code_of("hospital-b", batch, gallery) == "E-INTAKE-IMAGES-COPIED"
    assert code_of("hospital-b", noise(3, 2), gallery) == ""


def test_a_frozen_group_comes_again_although_another_site_copied_it() -> None:
    gallery = Gallery()
    sent = noise(3)
    gallery.add("hospital-a", sent, earlier=True)
    gallery.add("hospital-b", sent, earlier=True)
    assert code_of("hospital-a", sent, gallery) == ""


def test_what_a_site_sent_in_a_round_is_forgotten_with_the_site() -> None:
    gallery = Gallery()
    gallery.add("hospital-a", noise(3))
    gallery.forget("hospital-a")
    assert code_of("hospital-a", noise(3), gallery) == ""
    assert code_of("hospital-b", noise(3), gallery) == ""


def test_a_thumbnail_is_the_mean_of_blocks() -> None:
    images = noise(2, size=64)
    blocks = images.astype(np.float64).mean(axis=3).reshape(2, 16, 4, 16, 4).mean(axis=(2, 4))
    flat = blocks.reshape(2, -1)
    expected = flat - flat.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(shrink(images), expected, rtol=1e-4, atol=1e-3)
    assert shrink(noise(1, size=8)).shape == (1, 64)


@pytest.mark.parametrize("k", [5, 20])
def test_averages_of_the_shipped_generator_are_no_repeats_and_no_copies(k: int) -> None:
    """Stand for three sites' batches: codes of k made-up people, averaged as the plan does."""
    torch = pytest.importorskip("torch")
    from common.models.stylegan import load_generator

    study = load_study(DEPLOY / "studies" / "fundus.yaml")
    plan = study.models.gan
    assert plan is not None and plan.start is not None
    weights = starting_weights(DEPLOY / "studies" / plan.start.file, FAMILIES["gan"])
    generator = load_generator(weights, plan, study.intake.size_px, study.intake.channels)
    draw = torch.Generator().manual_seed(k)
    gallery = Gallery()
    for site in ("hospital-a", "hospital-b", "hospital-c"):
        with torch.no_grad():
            codes = generator.mapping(torch.randn(15 * k, generator.latent, generator=draw))
            means = codes.view(15, k, -1).mean(dim=1)
            pictures = generator.synthesis(generator.broadcast(means))
        values = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        batch = values.permute(0, 2, 3, 1).contiguous().numpy()
        assert code_of(site, batch, gallery) == ""
        gallery.add(site, batch)


def test_public_photographs_and_radiographs_pass() -> None:
    photographs = read_source(DEPLOY / "demo" / "fundus", 64, 3).images
    gallery = Gallery()
    assert code_of("hospital-a", photographs[:60], gallery) == ""
    gallery.add("hospital-a", photographs[:60])
    assert code_of("hospital-b", photographs[60:], gallery) == ""
    chest = np.load(DEPLOY / "demo" / "chest" / "radiographs.npz")["images"]
    chest = chest.reshape(*chest.shape[:3], 1)
    assert code_of("hospital-a", np.unique(chest, axis=0), Gallery()) == ""


# --- in a study


def white(fields: object, arrays: Arrays) -> None:
    if "images" in arrays:
        arrays["images"] = np.full_like(arrays["images"], 255)


def repeated(fields: object, arrays: Arrays) -> None:
    if "images" in arrays:
        arrays["images"] = np.repeat(arrays["images"][:1], len(arrays["images"]), axis=0)


@pytest.mark.parametrize(
    ("forge", "code"),
    [(white, "E-INTAKE-IMAGES-FLAT"), (repeated, "E-INTAKE-IMAGES-REPEATED")],
    ids=["white", "repeated"],
)
def test_a_hostile_site_of_three_is_in_quarantine_and_the_others_release(
    forge: object, code: str, tmp_path: Path
) -> None:
    federation = Federation.create(tmp_path)
    federation.sites["hospital-c"].forge = forge  # type: ignore[assignment]
    run = federation.run()
    assert run.record.complete()
    assert [batch.site for batch in run.record.batches()] == ["hospital-a", "hospital-b"]
    site = run.registry.get("hospital-c")
    assert (site.state, site.code) == ("quarantined", code)


def test_two_sites_with_the_same_images_leave_one_batch(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path)
    federation.sites["hospital-c"].seed = federation.sites["hospital-b"].seed
    run = federation.run()
    assert run.record.complete() and len(run.record.batches()) == 2
    codes = [site.code for site in run.registry.sites().values() if site.code]
    assert codes == ["E-INTAKE-IMAGES-COPIED"]


def test_images_of_an_earlier_study_on_this_server_are_known(tmp_path: Path) -> None:
    """The same site sends its own again, which is no copy; another site's copy is one."""
    first = Federation.create(tmp_path / "a")
    first.run()
    second = Federation.create(tmp_path / "b", name="second")
    place = first.study.hash()
    shutil.copytree(first.state.study(place), second.state.study(place))
    # hospital-a and -b send what they sent before, hospital-c what hospital-a sent
    second.sites["hospital-c"].seed = first.sites["hospital-a"].seed
    run = second.run()
    assert run.record.complete()
    assert [batch.site for batch in run.record.batches()] == ["hospital-a", "hospital-b"]
    assert run.registry.get("hospital-c").code == "E-INTAKE-IMAGES-COPIED"


def test_a_site_that_is_released_from_quarantine_in_the_round_may_send_its_images_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had sent was dropped, so the same bytes are no repeat."""
    federation = Federation.create(tmp_path)
    run = federation.open()
    monkeypatch.setattr(gathering, "REGISTRY_S", 0.05)
    real = gathering.Gathering._count
    seen: list[str] = []

    def count(self: Any, site: Any, part: int, accepted: Any) -> None:
        real(self, site, part, accepted)
        if "images" not in accepted.arrays or site.name != "hospital-a":
            return
        seen.append(site.name)
        if len(seen) == 1:
            run.registry.quarantine("hospital-a", "E-GATE-14")
            threading.Timer(0.3, run.registry.release, ["hospital-a"]).start()
        else:
            grid.deliver_held()

    monkeypatch.setattr(gathering.Gathering, "_count", count)
    # the others, however often they are asked, answer once it has sent its images again
    held = [honest] * 3 + [delayed(3600.0)] * 10_000
    late = {name: held for name in ("hospital-b", "hospital-c")}
    grid = federation.grid(late)
    run_study(run, grid)
    closed = run.record.closing_entry("synthesize", "", 0)
    assert closed is not None and "hospital-a" in closed.data["accepted"]
    assert run.registry.get("hospital-a").state == "registered" and seen
