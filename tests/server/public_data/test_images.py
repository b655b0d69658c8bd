"""Archives of public images are read within a cap."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.ingest.images import frame_image
from common.errors import ConfigurationError
from server.public_data import images as public_images
from tests import phantoms
from tests.phantoms import hollow_png


def test_an_npz_that_unpacks_to_more_than_the_cap_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=np.zeros((4, 32, 32, 3), np.uint8))
    monkeypatch.setattr(public_images, "SOURCE_CAP_BYTES", 4096)
    assert path.stat().st_size < 4096
    with pytest.raises(ConfigurationError, match="unpacks to"):
        public_images.read_source(path, 32, 3)


def packed(path: Path, **members: bytes) -> Path:
    """An .npz of ready-made members."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def npy(header: str, data: bytes = b"") -> bytes:
    """An array file with this header."""
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


ODD_ARRAYS = {
    "a shape of far more bytes than there are": npy(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,)}", b"x"
    ),
    "a negative shape": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -1)}", b"x"),
    "Python objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", bytes(8)),
    "a type of no bytes": npy("{'descr': '|V0', 'fortran_order': False, 'shape': (9,)}"),
    "a header that is no literal": npy("{'descr': __import__('os')}"),
    "a header of great depth": npy("(" * 5000),
    "a version that does not exist": b"\x93NUMPY\x09\x00" + bytes(20),
    "texts of numbers that are no characters": npy(
        "{'descr': '<U1', 'fortran_order': False, 'shape': (1,)}", b"\xff\xff\xff\x7f"
    ),
    "texts of half characters": npy(
        "{'descr': '<U1', 'fortran_order': False, 'shape': (1,)}", b"\x00\xd8\0\0"
    ),
    "texts without a length": npy("{'descr': '<U0', 'fortran_order': False, 'shape': (4,)}"),
    "nothing": b"",
}


@pytest.mark.parametrize("case", ODD_ARRAYS)
def test_an_array_that_is_not_what_numpy_writes_is_refused(case: str, tmp_path: Path) -> None:
    path = packed(tmp_path / "x.npz", images=ODD_ARRAYS[case])
    with pytest.raises(ConfigurationError, match=r"expected an \.npz of arrays"):
        public_images.read_source(path, 32, 3)


def test_an_archive_with_an_unknown_compression_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.npz", images=npy("{}"))
    data = path.read_bytes()
    # the method in the local header and in the directory
    path.write_bytes(data.replace(b"\x14\0\0\0\0\0", b"\x14\0\0\0\x63\0"))
    with pytest.raises(ConfigurationError, match=r"expected an \.npz of arrays"):
        public_images.read_source(path, 32, 3)


def test_a_picture_of_very_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(hollow_png(8200, 8200))
    with pytest.raises(ConfigurationError, match="expected at most"):
        public_images.read_source(tmp_path, 32, 3)


def test_a_folder_of_fundus_photographs_is_framed_as_hospitals_frame_them(tmp_path: Path) -> None:
    for number in (1, 2):
        wide = np.zeros((150, 200, 3), np.uint8)
        wide[10:138, 40:168] = phantoms.fundus(number, 128)
        wide[4:8, 2:40:3] = 255
        Image.fromarray(wide).save(tmp_path / f"{number}.png")
    found = public_images.read_source(tmp_path, 32, 3, field_of_view=True)
    expected = frame_image(wide, 32, 3, field_of_view=True)
    assert np.array_equal(found.images[1], expected)


def test_a_photograph_without_a_field_is_named_unless_it_is_left_out(tmp_path: Path) -> None:
    for number in (1, 2):
        Image.fromarray(phantoms.fundus(number, 128)).save(tmp_path / f"{number}.png")
    Image.new("RGB", (64, 64), (200, 90, 40)).save(tmp_path / "cut.png")
    with pytest.raises(ConfigurationError, match=r"cut\.png: no field of view found"):
        public_images.read_source(tmp_path, 32, 3, field_of_view=True)
    found = public_images.read_source(tmp_path, 32, 3, ["cut.png"], field_of_view=True)
    assert found.names == ("1.png", "2.png")


@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (128, 128), (33, 200)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_is_framed_as_a_hospitals_ingest_frames_it(
    shape: tuple[int, int], channels: int, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    coarse = random.integers(40, 255, (4, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC)
    if channels == 1:
        picture = picture.convert("L")
    for name in ("a.png", "b.png"):
        picture.save(tmp_path / name)
    found = public_images.read_source(tmp_path, 32, channels).images[0]
    pixels = np.asarray(picture).reshape(*shape, channels)
    expected = frame_image(pixels, 32, channels, field_of_view=False)
    assert ((found == 0).all(axis=2) == (expected == 0).all(axis=2)).all()
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=3)


def weighed(path: Path, weights: object) -> Path:
    np.savez(
        path,
        images=np.zeros((3, 8, 8, 1), np.uint8),
        names=np.array(["a", "b", "c"]),
        weights=np.array(weights),
    )
    return path


def test_weights_sum_to_one_also_without_the_excluded(tmp_path: Path) -> None:
    path = weighed(tmp_path / "x.npz", [1, 2, 5])
    found = public_images.read_source(path, 8, 1).weights
    assert found is not None
    np.testing.assert_allclose(found, [1 / 8, 2 / 8, 5 / 8])
    fewer = public_images.read_source(path, 8, 1, ["a"]).weights
    assert fewer is not None
    np.testing.assert_allclose(fewer, [2 / 7, 5 / 7])


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, 0.0, 1.0], [1.0, np.nan, 1.0], ["1"] * 3])
def test_other_weights_are_refused(weights: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="one positive number for each of 3 images"):
        public_images.read_source(weighed(tmp_path / "x.npz", weights), 8, 1)
