"""Two builds of one study give the same bytes, wherever they run; another key changes little."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from kohort.files import file_digest
from tests.built_elsewhere import KINDS, build

ROOT = Path(__file__).parents[3]
LOCALES = Path("/usr/share/i18n/locales")
# what no key is in, and no order of pictures; all else depends on one of the two
KEYLESS = ("LICENSE", "privacy_statement.json", "privacy_statement.md", "study.yaml")
KEYLESS_FOLDERS = ("models/", "statements/")


def start(work: Path, environment: Mapping[str, str], **given: object) -> subprocess.Popen[str]:
    """Start a build of both releases below `work`, in surroundings of its own."""
    home = work / "home"
    home.mkdir(parents=True)
    command = [sys.executable, "-m", "tests.built_elsewhere", str(work / "built")]
    bare = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(home)}
    return subprocess.Popen(
        [*command, json.dumps(given)], cwd=home, env=bare | dict(environment), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def turkish(folder: Path) -> dict[str, str]:
    """A locale with a decimal comma and a dotless i, where this machine can compile one."""
    if not shutil.which("localedef") or not (LOCALES / "tr_TR").is_file():
        return {"LC_ALL": "C.UTF-8"}
    command = [
        "localedef",
        "-i",
        "tr_TR",
        "-f",
        "UTF-8",
        "--no-archive",
        str(folder / "tr_TR.utf8"),
    ]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode > 1:  # 1 is a warning
        return {"LC_ALL": "C.UTF-8"}
    return {"LOCPATH": str(folder), "LC_ALL": "tr_TR.utf8"}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes that have built both releases: everything around them differed."""
    folder = tmp_path_factory.mktemp("machines")
    west = start(
        folder / "west",
        {
            "TZ": "Etc/GMT+12", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
            "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "2",
        },
        seconds=0, umask=0o077, backwards=False,
    )  # fmt: skip
    # 26 hours to the east, three years on, on an older kind of processor
    east = start(
        folder / "east",
        {
            **turkish(folder), "TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "2",
            "OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41",
            "OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": "AVX2,FMA3",
        },
        seconds=1e8, umask=0, backwards=True,
    )  # fmt: skip
    for machine in (west, east):
        _, errors = machine.communicate(timeout=240)
        assert machine.returncode == 0, errors
    return folder


def release_of(machine: Path, kind: str) -> Path:
    """The one release of a kind that a machine built."""
    (release,) = (machine / kind / "releases").iterdir()
    return release


def digests(release: Path) -> dict[str, str]:
    """The SHA-256 of every file, by name."""
    files = [path for path in release.rglob("*") if path.is_file()]
    return {path.relative_to(release).as_posix(): file_digest(path) for path in files}


def modes(release: Path) -> set[int]:
    """The permissions of all files and folders."""
    return {path.stat().st_mode for path in (release, *release.rglob("*"))}


@pytest.mark.parametrize("kind", KINDS)
def test_two_machines_give_the_same_bytes_and_the_same_signature(work: Path, kind: str) -> None:
    west = release_of(work / "west" / "built", kind)
    east = release_of(work / "east" / "built", kind)
    one = digests(west)
    other = digests(east)
    assert sorted(one) == sorted(other)
    assert [name for name in sorted(one) if one[name] != other[name]] == []
    assert len(modes(west)) == 2 and modes(west) == modes(east)


@pytest.mark.parametrize("kind", KINDS)
def test_another_operators_key_gives_the_same_pictures_in_another_order(
    work: Path, tmp_path: Path, kind: str
) -> None:
    own = digests(release_of(work / "west" / "built", kind))
    foreign = digests(build(kind, tmp_path / kind, 2))
    # the key orders the pictures, so names and tables differ, and what they are made of does not
    assert sorted(pictures(own)) == sorted(pictures(foreign))
    assert pictures(own) != pictures(foreign)
    same = {name for name in own if own[name] == foreign.get(name)}
    keyless = {name for name in own if name in KEYLESS or name.startswith(KEYLESS_FOLDERS)}
    assert keyless <= same
    signed = {"SHA256SUMS", "SHA256SUMS.sig", "allowed_signers", "manifest.json", "study.sig"}
    assert not same & signed


def pictures(found: Mapping[str, str]) -> list[str]:
    """The digests of all pictures, in the order of their numbers."""
    names = [name for name in found if name.startswith("data/") and name.endswith(".png")]
    return [found[name] for name in sorted(names, key=lambda name: Path(name).name)]
