"""A release is read by the names of its own format; one of an earlier format still verifies."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kohort import layout
from kohort.errors import RefusedError
from kohort.manifest import Manifest
from kohort.verification import verify
from tests.kohort.test_resealed import NOTHING, reseal
from tests.releases import small_release

SPLIT_WORDS = ("train", "test", "val", "dev", "eval")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ed25519PrivateKey]:
    return small_release(tmp_path_factory.mktemp("good"))


def test_a_release_of_format_1_verifies(tmp_path: Path) -> None:
    with tarfile.open(Path(__file__).with_name("format_1.tar.xz")) as packed:
        packed.extractall(tmp_path, filter="data")
    manifest = verify(tmp_path)
    assert manifest.format == "kohort-release/1" and manifest.images == 12
    assert (tmp_path / "evaluation.json").is_file()


def test_each_format_has_a_name_rule() -> None:
    pattern = Manifest.model_fields["format"].metadata[0].pattern
    assert pattern == "^kohort-release/[12]$"
    assert set(layout.NAMES) == {"kohort-release/1", "kohort-release/2"}
    assert layout.FORMAT in layout.NAMES


@pytest.mark.parametrize(
    "name",
    [
        "CITATION.cff",
        "data/train/metadata.csv",
        "models/gan-ema.onnx",
        "models/gan.json",
        "parquet/train-00000-of-00002.parquet",
        "provenance.c2pa",
        "reports/datacite.json",
        "ro-crate-metadata.json",
        "webdataset/train-000000.tar",
    ],
)
def test_format_2_allows_and_format_1_does_not(name: str) -> None:
    assert layout.is_allowed_name(name, "kohort-release/2")
    assert not layout.is_allowed_name(name, "kohort-release/1")


@pytest.mark.parametrize(
    "name",
    [
        "data/none/00000.png",
        "data/train/none/../00000.png",
        "data/train/00000.png",
        "data/test/none/00000.png",
        "evaluation.json",
        "models/gan.pt",
        "models/../gan.onnx",
        "parquet/test-00000-of-00001.parquet",
        "reports/.json",
        "reports/x.html",
    ],
)
def test_format_2_does_not_allow(name: str) -> None:
    assert not layout.is_allowed_name(name, "kohort-release/2")


def test_the_names_of_another_format_are_refused(
    good: tuple[Path, Ed25519PrivateKey], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(good[0], tmp_path / "copy"))
    reseal(folder, good[1], NOTHING, format="kohort-release/1")
    with pytest.raises(RefusedError, match="not a file that a kohort-release/1 may hold"):
        verify(folder)


def test_no_report_has_a_name_that_a_loader_takes_for_a_split(
    good: tuple[Path, Ed25519PrivateKey],
) -> None:
    reports = list((good[0] / "reports").iterdir())
    assert reports
    for path in reports:
        assert not any(word in path.name for word in SPLIT_WORDS), path.name
