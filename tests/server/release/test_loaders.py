"""Common libraries read image, label, mask and split from a release's root, without kohort."""

from __future__ import annotations

import functools
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from numpy.typing import NDArray
from PIL import Image

from common.errors import RefusedError
from common.wire import signing
from kohort.verification import verify
from server.release import build, loaders
from server.release.build import build_release
from server.release.card import front_matter
from server.release.croissant import CONFORMS_TO
from server.release.loaders import check_loaders, read_rows
from tests.pair_releases import finish_study
from tests.releases import release_inputs, small_release
from tests.studies import small_study

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:NvImgCodec:UserWarning"),  # MONAI, without a GPU's decoder
    # `datasets` leaves the tables of imagefolder open
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
GUIDE = Path(__file__).parents[3] / "docs" / "researcher" / "using.md"
LABELS = ["none", "mild-moderate", "severe"]
COUNT = 12
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_release(tmp_path_factory.mktemp("images"))[0]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    finished = finish_study(tmp_path_factory.mktemp("study"))
    return build_release(finished.inputs, tmp_path_factory.mktemp("pairs"), finished.federation.key)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """`datasets.load_dataset`, offline, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setenv(name, "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))
        import datasets

        datasets.disable_progress_bars()
        cache = tmp_path_factory.mktemp("cache")
        yield functools.partial(datasets.load_dataset, cache_dir=str(cache))


def pixels(path: Path | io.BytesIO) -> Pixels:
    """A picture's pixels."""
    with Image.open(path) as image:
        return np.asarray(image)


def rows_of(release: Path) -> list[dict[str, str]]:
    """The signed table."""
    rows = read_rows(release)
    assert len(rows) == COUNT
    return rows


def test_datasets_reads_the_root_as_one_split_of_images_and_labels(
    images: Path, load: Callable[..., Any]
) -> None:
    found = load(str(images))
    assert {name: split.num_rows for name, split in found.items()} == {"train": COUNT}
    assert found["train"].features["label"].names == LABELS
    for row, signed in zip(found["train"], rows_of(images), strict=True):
        assert row["file_name"] == signed["file_name"]
        assert LABELS[row["label"]] == signed["label"]
        assert np.array_equal(np.asarray(row["image"]), pixels(images / signed["file_name"]))


def test_datasets_reads_the_root_of_pairs_with_their_masks(
    pairs: Path, load: Callable[..., Any]
) -> None:
    found = load(str(pairs))
    assert {name: split.num_rows for name, split in found.items()} == {"train": COUNT}
    assert found["train"].features["label"].names == ["vessels"]
    for row, signed in zip(found["train"], rows_of(pairs), strict=True):
        assert np.array_equal(np.asarray(row["image"]), pixels(pairs / signed["file_name"]))
        assert np.array_equal(np.asarray(row["mask"]), pixels(pairs / signed["mask_file_name"]))


@pytest.mark.parametrize("below", ["", "data/train"])
@pytest.mark.parametrize("kind", ["images", "pairs"])
def test_imagefolder_reads_image_and_label(
    kind: str, below: str, load: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    release: Path = request.getfixturevalue(kind)
    found = load("imagefolder", data_dir=str(release / below))
    assert {name: split.num_rows for name, split in found.items()} == {"train": COUNT}
    for row, signed in zip(found["train"], rows_of(release), strict=True):
        assert row["label"] == signed["label"]
        assert np.array_equal(np.asarray(row["image"]), pixels(release / signed["file_name"]))


def test_imagefolder_reads_masks_by_the_signed_table(pairs: Path, load: Callable[..., Any]) -> None:
    files = {"train": "metadata.csv"}
    found = load("imagefolder", data_dir=str(pairs), data_files=files)
    assert {name: split.num_rows for name, split in found.items()} == {"train": COUNT}
    for row, signed in zip(found["train"], rows_of(pairs), strict=True):
        assert row["label"] == signed["label"]
        assert np.array_equal(np.asarray(row["image"]), pixels(pairs / signed["file_name"]))
        assert np.array_equal(np.asarray(row["mask"]), pixels(pairs / signed["mask_file_name"]))


@pytest.mark.parametrize("kind", ["images", "pairs"])
def test_torchvision_reads_one_folder_a_label(kind: str, request: pytest.FixtureRequest) -> None:
    from torchvision.datasets import ImageFolder

    release: Path = request.getfixturevalue(kind)
    dataset = ImageFolder(str(release / "data" / "train"))
    label_of = {str(release / row["file_name"]): row["label"] for row in rows_of(release)}
    assert {path: dataset.classes[label] for path, label in dataset.samples} == label_of


def test_monai_reads_images_with_their_label(images: Path) -> None:
    from monai.data import load_decathlon_datalist
    from monai.transforms import LoadImaged

    entries = load_decathlon_datalist(images / "datalist.json", is_segmentation=False)
    assert [LABELS[entry["label"]] for entry in entries] == [r["label"] for r in rows_of(images)]
    for entry, row in zip(entries[:3], rows_of(images), strict=False):
        read = LoadImaged(keys=["image"])(entry)["image"]
        # MONAI's first axis is the picture's column
        assert np.array_equal(np.asarray(read).swapaxes(0, 1), pixels(images / row["file_name"]))


def test_monai_reads_pairs_whose_axes_agree(pairs: Path) -> None:
    from monai.data import load_decathlon_datalist
    from monai.transforms import LoadImaged

    entries = load_decathlon_datalist(pairs / "datalist.json", is_segmentation=True)
    for entry, row in zip(entries, rows_of(pairs), strict=True):
        read = LoadImaged(keys=["image", "label"])(entry)
        assert np.array_equal(np.asarray(read["image"]).T, pixels(pairs / row["file_name"]))
        assert np.array_equal(
            np.asarray(read["label"]).T * 255, pixels(pairs / row["mask_file_name"])
        )


@pytest.mark.parametrize("kind", ["images", "pairs"])
def test_mlcroissant_reads_pixels_labels_and_split(
    kind: str, request: pytest.FixtureRequest
) -> None:
    import mlcroissant

    release: Path = request.getfixturevalue(kind)
    dataset = mlcroissant.Dataset(jsonld=str(release / "croissant.json"))
    issues = dataset.metadata.ctx.issues
    assert not issues.errors and not issues.warnings
    document = json.loads((release / "croissant.json").read_text())
    assert document["conformsTo"] == CONFORMS_TO and document["rai:hasSyntheticData"] is True
    names = [record["labels/name"] for record in dataset.records("labels")]
    for record, row in zip(dataset.records("items"), rows_of(release), strict=True):
        assert np.array_equal(np.asarray(record["items/image"]), pixels(release / row["file_name"]))
        assert names[record["items/label"]] == row["label"]
        assert record["items/split"] == b"train"
        if kind == "pairs":
            assert np.array_equal(
                np.asarray(record["items/mask"]), pixels(release / row["mask_file_name"])
            )


def test_pandas_reads_tables_and_pictures(images: Path, pairs: Path) -> None:
    for release in (images, pairs):
        table = pandas.read_csv(release / "metadata.csv", keep_default_na=False)
        pictures = pandas.read_parquet(release / "parquet")
        assert list(pictures["file_name"]) == list(table["file_name"])
        for name, picture in zip(table["file_name"], pictures["image"], strict=True):
            assert picture["bytes"] == (release / name).read_bytes()


# ---- tars of a large release


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release that is large enough for tars, in shards of a few pictures, built twice."""
    folder, operator = tmp_path_factory.mktemp("large"), signing.new_key()
    inputs = release_inputs(folder, operator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaders, "TARS_FROM_IMAGES", COUNT)
        patch.setattr(loaders, "SHARD_BYTES", 16_000)
        first, again = (build_release(inputs, folder / out, operator) for out in ("a", "b"))
    assert (first / "SHA256SUMS").read_bytes() == (again / "SHA256SUMS").read_bytes()
    return first


def test_tars_hold_every_picture_once_in_shards(large: Path, load: Callable[..., Any]) -> None:
    paths = sorted((large / "webdataset").iterdir())
    assert len(paths) == 3 == len(list((large / "parquet").iterdir()))
    files: dict[str, bytes] = {}
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
                file = tar.extractfile(member)
                assert file is not None
                files[member.name] = file.read()
    assert len(files) == 3 * COUNT
    for row in rows_of(large):
        key = Path(row["file_name"]).stem
        assert files[f"{key}.png"] == (large / row["file_name"]).read_bytes()
        assert LABELS[int(files[f"{key}.cls"])] == row["label"]
        assert json.loads(files[f"{key}.json"]) == row
    found = load("webdataset", data_files={"train": [str(path) for path in paths]})["train"]
    assert found.num_rows == COUNT and found[0]["png"].size == (32, 32)
    assert load(str(large))["train"].num_rows == COUNT


def test_a_small_release_has_no_tars(images: Path) -> None:
    assert not (images / "webdataset").exists()


def test_tars_with_other_pictures_are_found(large: Path) -> None:
    check_loaders(large, LABELS)
    path = sorted((large / "webdataset").iterdir())[0]
    data = path.read_bytes()
    at = data.index(b"IDAT") + 20
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(RefusedError, match="webdataset: holds other pictures"):
        check_loaders(large, LABELS)
    path.write_bytes(data)


@pytest.mark.parametrize("change", ["picture", "row"])
def test_a_release_whose_parquet_differs_from_its_files_is_not_signed(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loaders.write_loaders

    def spoiled(part: Path, *arguments: Any) -> None:
        original(part, *arguments)
        name = next((part / "data").rglob("*.png"))
        if change == "picture":
            with Image.open(name) as image:
                image.rotate(90).save(name)
        else:
            path = next((part / "parquet").iterdir())
            pandas.read_parquet(path).iloc[:-1].to_parquet(path)

    monkeypatch.setattr(build, "write_loaders", spoiled)
    operator = signing.new_key()
    with pytest.raises(RefusedError, match="parquet: holds other pictures"):
        build_release(release_inputs(tmp_path, operator), tmp_path / "out", operator)
    assert not list((tmp_path / "out").iterdir())


# ---- the card and the guide


@pytest.mark.parametrize(
    ("spdx", "expected"),
    [
        ("CC-BY-4.0", "license: cc-by-4.0\n"),
        ("ODbL-1.0", "license: odbl\n"),
        ("LicenseRef-x", "license: other\nlicense_name: LicenseRef-x\nlicense_link: LICENSE\n"),
    ],
)
def test_the_card_names_the_licence_as_the_hub_does(spdx: str, expected: str) -> None:
    assert expected in front_matter(small_study(release__licence=spdx), 12)


@pytest.mark.parametrize(
    ("count", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K")]
)
def test_the_card_says_how_large_the_release_is(count: int, size: str) -> None:
    assert f"- {size}\n" in front_matter(small_study(), count)


def test_every_snippet_of_the_guide_runs(
    images: Path,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    load: Callable[..., Any],
) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fundus").symlink_to(images)
    (tmp_path / "vessels").symlink_to(pairs)
    section = GUIDE.read_text().partition("## Load it")[2].partition("\n## ")[0]
    snippets = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(snippets) == 5
    for snippet in snippets:
        exec(snippet, {})
    verify(images)
