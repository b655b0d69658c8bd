"""How a release is cited: name, version and fingerprint, in three forms."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from kohort import citing
from kohort.errors import RefusedError
from kohort.manifest import Manifest, read_manifest
from kohort.verification import verify
from tests.releases import small_release

KOHORT = str(Path(sys.executable).parent / "kohort")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_release(tmp_path_factory.mktemp("cited"))[0]


@pytest.fixture
def manifest(release: Path) -> Manifest:
    return read_manifest(release)


def kohort(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([KOHORT, *arguments], capture_output=True, text=True, check=False)


def test_the_command_names_name_version_and_fingerprint(release: Path) -> None:
    signers = (release / "SHA256SUMS").read_bytes()
    done = kohort("cite", str(release))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "small (2026). A small study. Synthetic data set small, version 1.0.0. Signed by SHA256:"
    )
    assert signers == (release / "SHA256SUMS").read_bytes()


def test_a_changed_release_is_not_cited(tmp_path: Path) -> None:
    release, _ = small_release(tmp_path)
    (release / "reports" / "datacite.json").write_text("{}")
    done = kohort("cite", str(release))
    assert done.returncode == 1
    assert "reports/datacite.json: altered" in done.stderr and done.stdout == ""
    both = kohort("cite", str(release), "--bibtex", "--datacite")
    assert both.returncode == 2 and "expected one of them" in both.stderr


def test_bibtex_has_the_same_facts(release: Path, manifest: Manifest) -> None:
    entry = citing.bibtex(release, manifest)
    assert entry.startswith("@misc{small-1.0.0,\n") and entry.endswith("\n}")
    assert "  author = {{small}}," in entry and "  year = {2026}," in entry
    assert "signed by SHA256:" in entry


def test_datacite_is_what_was_signed(release: Path) -> None:
    text = (release / citing.DATACITE).read_text()
    assert citing.datacite(release) + "\n" == text
    assert json.loads(text)["creators"][0]["name"] == "small"


def test_a_hostile_title_steers_neither_a_terminal_nor_tex(
    release: Path, manifest: Manifest
) -> None:
    hostile = manifest.model_copy(update={"title": "A\x1b[2J\n}, note = {x}, \\input{y} 5%"})
    assert citing.cite(release, hostile).isprintable()
    entry = citing.bibtex(release, hostile)
    assert "\x1b" not in entry and entry.count("\n") == 6
    assert r"\}, note = \{x\}, \textbackslash{}input\{y\} 5\%" in entry


def test_a_release_of_format_1_is_cited_by_its_study(tmp_path: Path) -> None:
    with tarfile.open(Path(__file__).with_name("format_1.tar.xz")) as packed:
        packed.extractall(tmp_path, filter="data")
    manifest = verify(tmp_path)
    assert citing.cite(tmp_path, manifest).startswith(f"{manifest.name} ({manifest.date[:4]}). ")
    with pytest.raises(RefusedError, match="holds no DataCite metadata"):
        citing.datacite(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"creators": []}', '{"creators": [{"name": 1}]}']
)
def test_metadata_without_a_creator_is_refused(
    tmp_path: Path, manifest: Manifest, text: str
) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / citing.DATACITE).write_text(text)
    with pytest.raises(RefusedError, match="names no creator"):
        citing.authors(tmp_path, manifest)
