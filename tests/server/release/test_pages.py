"""The pages of a release of many images, and the builder that holds few of them at a time."""

import base64
import dataclasses
import io
import re
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.errors import EnvironmentFault
from common.privacy import boundary
from common.study.plan import Study
from common.wire import signing, tensors
from common.wire.messages import Header, Sealed, digest_of, seal
from kohort import layout
from kohort.manifest import read_manifest
from kohort.verification import verify
from server.public_data.pictures import THUMBNAIL_PX, pair_uris, png_bytes, thumbnail_uri
from server.release.build import build_release
from server.release.collect import collect_images
from server.release.items import ReleaseInputs, SiteBatch
from server.release.page import PAGE_PICTURES
from server.release.spool import Spool
from tests.releases import release_inputs

OPERATOR = signing.new_key()
SHARES = (0.9, 0.1, 0.0)  # of the labels
COUNT = 260  # of images of each site


class Parts(Sequence[Sealed]):
    """A site's signed parts, each made when it is asked for."""

    def __init__(self, study: Study, site: str, parts: int, images: int) -> None:
        self.study, self.site, self.parts, self.images = study, site, parts, images
        self.key = signing.new_key()

    def __len__(self) -> int:
        return self.parts

    def __getitem__(self, part: Any) -> Any:
        if part >= self.parts:
            raise IndexError(part)
        rng = np.random.default_rng([part, len(self.site), ord(self.site[-1])])
        size = self.study.intake.size_px
        arrays: tensors.Arrays = {
            "images": rng.integers(0, 255, (self.images, size, size, 3), dtype=np.uint8),
            "labels": rng.choice(3, self.images, p=SHARES).astype(np.int64),
            "privatized": (np.arange(self.images) % 4 == 0).astype(np.uint8),
        }
        payload = tensors.dumps(arrays)
        statement = {
            **boundary.public_statement(self.study, "images"),
            "weights": "d" * 64,
            "head_commitment": "0" * 64,
        }
        header = Header(
            kind="images", study=self.study.hash(), phase="synthesize", round=0, part=part,
            parts=self.parts, sender=self.site, digest=digest_of(payload), statement=statement,
        )  # fmt: skip
        return seal(header, payload, self.key)

    def batch(self) -> SiteBatch:
        return SiteBatch(self.site, signing.public_text(self.key.public_key()), self)


def inputs_of(folder: Path, parts: int, images: int, **changes: Any) -> ReleaseInputs:
    changes = {"synthesis__max_images_per_site": parts * images, **changes}
    inputs = release_inputs(folder, OPERATOR, **changes)
    names = ("hospital-a", "hospital-b")
    batches = [Parts(inputs.study, name, parts, images).batch() for name in names]
    return dataclasses.replace(inputs, batches=batches, reference=None)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    return build_release(inputs_of(folder / "in", 1, COUNT), folder / "out", OPERATOR)


def page_files(release: Path) -> Iterator[Path]:
    yield release / "index.html"
    yield from sorted((release / "pages").iterdir())


def links_of(page: Path) -> list[Path]:
    """The files that a page leads to."""
    return [
        (page.parent / name).resolve() for name in re.findall('href="([^"]*)"', page.read_text())
    ]


def test_every_picture_of_a_large_label_stands_on_one_page(release: Path) -> None:
    assert verify(release).images == 2 * COUNT
    pages = sorted((release / "pages").iterdir())
    assert len(pages) == -(
        -len(list((release / "data" / "train" / "none").iterdir())) // PAGE_PICTURES
    )
    shown = [file for page in pages for file in links_of(page) if file.suffix == ".png"]
    assert sorted(shown) == sorted((release / "data" / "train" / "none").iterdir())
    assert all(page.read_text().count("<img") <= PAGE_PICTURES for page in pages)


def test_the_index_shows_some_of_each_label_and_leads_to_every_page(release: Path) -> None:
    index = release / "index.html"
    files = links_of(index)
    assert set((release / "pages").iterdir()) <= set(files)
    labels = {file.parent.name for file in files if file.suffix == ".png"}
    assert labels == {"none", "mild-moderate"}
    assert index.read_text().count("<img") <= PAGE_PICTURES


def test_a_link_leads_to_a_signed_file_of_the_release(release: Path) -> None:
    listed = {(release / entry.path).resolve() for entry in read_manifest(release).files}
    for page in page_files(release):
        assert links_of(page)
        assert set(links_of(page)) <= listed, page


def test_no_page_has_a_script_or_loads_anything(release: Path) -> None:
    for page in page_files(release):
        text = page.read_text()
        assert "default-src 'none'; img-src data:" in text
        assert "<script" not in text and "http:" not in text and "https:" not in text
        sources = re.findall('src="([^"]{10})', text)
        assert sources and set(sources) == {"data:image"}
        assert "url(" not in text and "@import" not in text


def test_a_large_picture_stands_on_a_page_as_a_small_one(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path / "in", 1, 4, intake__size_px=256)
    release = build_release(inputs, tmp_path / "out", OPERATOR)
    text = (release / "index.html").read_text()
    assert text.count("data:image/jpeg") == 8
    first = re.search('data:image/jpeg;base64,([^"]*)', text)
    assert first is not None
    shown = Image.open(io.BytesIO(base64.b64decode(first[1])))
    assert shown.size == (THUMBNAIL_PX, THUMBNAIL_PX)
    with Image.open(release / layout.CONTACT_SHEET) as sheet:
        assert sheet.width < 9 * 140
    # the picture itself is whole
    with Image.open(next((release / "data").rglob("*.png"))) as whole:
        assert whole.size == (256, 256)


def test_a_small_picture_keeps_its_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    kind, _, data = thumbnail_uri(image).partition(",")
    assert kind == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), image)


def test_a_png_has_the_same_pixels_and_the_same_bytes_each_time() -> None:
    for shape in ((32, 32), (64, 48, 1), (20, 300, 3)):
        image = np.random.default_rng(1).integers(0, 255, shape, dtype=np.uint8)
        data = png_bytes(image)
        assert data == png_bytes(image.copy())
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), image.squeeze())


def test_large_pairs_are_made_small_and_their_masks_stay_sharp() -> None:
    images = np.full((2, 512, 512, 1), 90, np.uint8)
    masks = np.zeros((2, 512, 512), np.uint8)
    masks[:, 100:300, 100:300] = 255
    data = pair_uris(images, masks)[0].partition(",")[2]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert shown.shape[0] == THUMBNAIL_PX
    mask = shown[:, THUMBNAIL_PX + 2 : 2 * THUMBNAIL_PX + 2]
    assert set(np.unique(mask)) == {0, 255}


def overfill(folder: Path, count: int) -> None:
    """Add so many pictures to a spool on a full disk."""
    with closing(Spool(folder, (4, 4))) as spool:
        spool._file.close()
        spool._file = open("/dev/full", "wb")  # noqa: SIM115
        for place in range(count):
            spool.add(place.to_bytes(2), np.zeros((4, 4), np.uint8), 0, 0)


@pytest.mark.parametrize("count", [1, 1 << 14])
def test_a_full_disk_is_named_at_the_closing_and_while_pictures_come(
    count: int, tmp_path: Path
) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        overfill(tmp_path, count)
    assert caught.value.code == "E-DISK-FULL"


def test_one_part_of_the_images_is_in_memory_at_a_time(tmp_path: Path) -> None:
    peaks = []
    images = 40
    for parts in (1, 6):
        inputs = inputs_of(tmp_path / f"in {parts}", parts, images, intake__size_px=128)
        tracemalloc.start()
        _, items = collect_images(inputs, OPERATOR, tmp_path / f"pictures {parts}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(items.images) == 2 * parts * images
        assert len({image.tobytes() for image in items.images}) == len(items.images)
    part = images * 128 * 128 * 3
    assert peaks[1] < peaks[0] + part
