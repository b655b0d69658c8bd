"""`kohort.load`: items, data sets, trust and refusals from Python."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

import kohort
from common.errors import ConfigurationError, RefusedError
from common.wire import signing
from kohort import layout, seen, signatures
from kohort.files import file_digest
from kohort.picture import decode
from tests.catalogues import GONE, NOW, URL, catalogue_fields, sign_catalogue
from tests.releases import small_release

HEAVY = ("torch", "numpy", "PIL", "datasets", "httpx", "rich", "typer", "pydantic")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_release(tmp_path_factory.mktemp("made"))[0]


@pytest.fixture(scope="module")
def key(folder: Path) -> str:
    line = kohort.load(folder, verify=False).manifest.operator_key
    return signatures.fingerprint(signatures.parse_public(line))


@pytest.fixture(scope="module")
def release(folder: Path, key: str) -> kohort.Release:
    return kohort.load(folder, trust=key)


@pytest.fixture(scope="module")
def pairs(release: kohort.Release, tmp_path_factory: pytest.TempPathFactory) -> kohort.Release:
    """The same images with invented masks; nobody signed them."""
    folder = Path(shutil.copytree(release.path, tmp_path_factory.mktemp("pairs") / "copy"))
    (folder / "masks").mkdir()
    rng = np.random.default_rng(1)
    lines = ["file_name,mask,label"]
    for row in release.rows:
        mask = f"masks/{Path(row.file).name}"
        Image.fromarray(rng.choice([0, 255], (32, 32)).astype(np.uint8)).save(folder / mask)
        lines.append(f"{row.file},{mask},{row.label}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    digests = {name: file_digest(folder / name) for name in files if layout.is_listed(name)}
    (folder / "SHA256SUMS").write_text(layout.sums_text(digests))
    return kohort.load(folder, verify=False)


def test_items_are_the_tables_rows_with_the_pictures_of_the_files(release: kohort.Release) -> None:
    assert len(release) == release.manifest.images == len(list(release))
    assert release.labels == ("none", "mild-moderate", "severe")
    for row, item in zip(release.rows, release, strict=True):
        stored = np.asarray(Image.open(release.path / row.file))
        assert item.image.dtype == np.uint8 and np.array_equal(item.image, stored)
        assert row.file.split("/")[-2] == item.label == row.label
        assert item.mask is None
    assert release[-1].label == release.rows[-1].label
    with pytest.raises(IndexError):
        release[len(release)]


def test_pairs_give_the_mask_of_their_own_number(pairs: kohort.Release) -> None:
    assert pairs.rows
    for row, (image, label, mask) in zip(pairs.rows, pairs, strict=True):
        assert Path(row.file).name == Path(row.mask).name
        assert mask is not None and mask.shape == image.shape[:2]
        assert set(np.unique(mask)) <= {0, 255}
        assert label in pairs.labels


def test_loading_warns_of_a_key_that_nobody_checked(folder: Path, key: str) -> None:
    with pytest.warns(kohort.UncheckedKeyWarning, match=re.escape(f"not checked: {key}; take")):
        assert not kohort.load(folder).trusted


def test_loading_names_a_withdrawal_that_a_catalogue_knows(
    release: kohort.Release, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(seen.VARIABLE, str(tmp_path))
    operator = signing.new_key()
    gone = GONE | {"version": "1.0.0", "sums": file_digest(release.path / layout.SUMS)}
    text, signature = sign_catalogue(
        operator, catalogue_fields(operator, 1, releases=[], withdrawn=[gone])
    )
    seen.accept(URL, text, signature, trust=frozenset(), now=NOW)
    with pytest.warns(kohort.NoticeWarning, match=r"small 1\.0\.0 was WITHDRAWN"):
        kohort.load(release.path, trust=key)
    for file in seen.cache_folder().iterdir():
        file.write_text("{}")
    with pytest.warns(kohort.NoticeWarning):
        kohort.load(release.path, trust=key)


@pytest.mark.parametrize("kind", ["fingerprint", "line", "file", "several"])
def test_trust_is_a_fingerprint_a_line_a_file_or_several(
    folder: Path, key: str, tmp_path: Path, kind: str
) -> None:
    line = kohort.load(folder, verify=False).manifest.operator_key
    (tmp_path / "keys").write_text(line)
    other = "SHA256:" + "A" * 43
    given = {"fingerprint": key, "line": line, "file": tmp_path / "keys", "several": [other, key]}
    assert kohort.load(folder, trust=given[kind]).trusted


def test_what_cannot_be_relied_on_is_refused(folder: Path, key: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="you trust"):
        kohort.load(folder, trust="SHA256:" + "A" * 43)
    with pytest.raises(ConfigurationError, match="checks nobody's signature"):
        kohort.load(folder, trust=key, verify=False)
    with pytest.raises(ConfigurationError, match="names nobody"):
        kohort.load(folder, trust=[])
    with pytest.raises(ConfigurationError, match="no such folder"):
        kohort.load(tmp_path / "nowhere")


def test_a_picture_that_changed_after_loading_is_refused(
    release: kohort.Release, tmp_path: Path
) -> None:
    copy = kohort.load(shutil.copytree(release.path, tmp_path / "copy"), verify=False)
    path = copy.path / copy.rows[0].file
    path.write_bytes((copy.path / copy.rows[1].file).read_bytes())
    for read in (lambda: copy[0], lambda: copy.to_torch()[0]):
        with pytest.raises(RefusedError, match=rf"{path.name}: altered"):
            read()
    with pytest.raises(RefusedError, match=rf"{path.name}: altered"):
        copy.verify()


def test_an_unverified_table_leads_to_no_file_outside(
    release: kohort.Release, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(release.path, tmp_path / "copy"))
    (tmp_path / "secret.png").write_bytes((copy / release.rows[0].file).read_bytes())
    table = copy / "metadata.csv"
    good = table.read_text()
    for old, new in ((release.rows[0].file, "../secret.png"), (",none,", ",nobody,")):
        table.write_text(good.replace(old, new, 1))
        with pytest.raises(RefusedError, match=r"metadata\.csv: "):
            kohort.load(copy, verify=False)


def test_the_verdict_says_who_signed(release: kohort.Release, key: str) -> None:
    assert release.trusted and release.verify(trust=key).fingerprint == key
    assert not release.verify().trusted
    with pytest.raises(RefusedError, match="0 of 1 sign-offs"):
        release.verify(require=1)


def test_a_citation_names_title_version_year_and_key(release: kohort.Release, key: str) -> None:
    assert release.cite() == (
        f"small (2026). A small study. Synthetic data set small, version 1.0.0. Signed by {key}."
    )
    assert "Signed" not in kohort.load(release.path, verify=False).cite()


def test_a_torch_data_set_gives_tensors_and_label_indices(release: kohort.Release) -> None:
    data = release.to_torch()
    image, target = data[1]
    assert image.shape == (3, 32, 32) and str(image.dtype) == "torch.float32"
    assert np.array_equal((image.numpy() * 255).round().transpose(1, 2, 0), release[1].image)
    assert data.classes == list(release.labels)
    assert data.targets == [data.class_to_idx[row.label] for row in release.rows]
    assert target == data.targets[1]


def test_a_spawned_worker_reads_the_same_items(release: kohort.Release) -> None:
    data = release.to_torch(np.asarray)
    loader = DataLoader(data, batch_size=12, num_workers=1, multiprocessing_context="spawn")
    [(images, targets)] = loader
    assert targets.tolist() == data.targets
    assert np.array_equal(images.numpy(), np.stack([item.image for item in release]))


def test_a_transform_of_pairs_gets_image_and_mask(pairs: kohort.Release) -> None:
    image, target, mask = pairs.to_torch()[0]
    assert image.shape[1:] == mask.shape[1:] and mask.shape[0] == 1
    assert pairs.labels[target] == pairs.rows[0].label
    turned = pairs.to_torch(lambda image, mask: (image.rotate(90), mask.rotate(90)))[0]
    assert np.array_equal(np.asarray(turned[2]), np.rot90(pairs[0].mask))


def test_a_hugging_face_data_set_has_images_labels_and_masks(
    release: kohort.Release, pairs: kohort.Release
) -> None:
    for one in (release, pairs):
        data = one.to_hf()
        assert data.features["label"].names == list(one.labels)
        row, item = data[1], one[1]
        assert np.array_equal(np.asarray(row["image"]), item.image)
        assert one.labels[row["label"]] == item.label
        assert ("mask" in row) is (item.mask is not None)
        if item.mask is not None:
            assert np.array_equal(np.asarray(row["mask"]), item.mask)


def test_format_1_loads_as_format_2_does(tmp_path: Path) -> None:
    with tarfile.open(Path(__file__).with_name("format_1.tar.xz")) as packed:
        packed.extractall(tmp_path, filter="data")
    old = kohort.load(tmp_path, verify=False)
    assert len(old) == old.manifest.images and old[0].image.dtype == np.uint8
    assert not old.verify().trusted


def png(mode: str, size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size).save(out, "PNG")
    return out.getvalue()


def gif() -> bytes:
    out = io.BytesIO()
    Image.new("L", (4, 4)).save(out, "GIF")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png("RGBA", (4, 4)), "4 x 4 pixels of mode RGBA"),
        (png("L", (4097, 1)), "4097 x 1 pixels"),
        (png("L", (4, 4))[:40], "not a PNG"),
        (gif(), "not a PNG"),
    ],
    ids=["transparent", "large", "cut", "gif"],
)
def test_a_picture_of_another_kind_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(RefusedError, match=rf"x\.png: {said}"):
        decode(data, "x.png")


def test_a_missing_package_is_named_with_its_extra(
    release: kohort.Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"images": lambda: release[0], "hf": release.to_hf, "torch": release.to_torch}
    blocked = {"images": "PIL", "hf": "datasets", "torch": "torch"}
    monkeypatch.delitem(sys.modules, "kohort.torch_data", raising=False)
    for name, call in calls.items():
        with monkeypatch.context() as without:
            without.setitem(sys.modules, blocked[name], None)
            with pytest.raises(ConfigurationError, match=blocked[name]) as caught:
                call()
        assert f"kohort[{name}]" in caught.value.hint


def test_importing_kohort_imports_nothing_heavy() -> None:
    code = f"import sys, kohort; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert set(kohort.__all__) == {
        "Item",
        "NoticeWarning",
        "Release",
        "UncheckedKeyWarning",
        "load",
    }
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = kohort.lode
