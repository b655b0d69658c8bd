"""A bundle: what is in it, what is refused, and that its own words install it without network."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from common.errors import ConfigurationError, EnvironmentFault
from common.wire import signing
from deploy.bundle import wheels
from deploy.bundle.__main__ import INSTALL, main, write_bundle

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ("client", "common", "server", "kohort")
NO_NETWORK = ["unshare", "--net"]


def small_wheel(folder: Path, name: str = "smallthing", version: str = "1.0") -> Path:
    """Write a package of one module, as an index would have it."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
        rows.append(f"{path},sha256={digest.rstrip('=')},{len(text)}")
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def hashed(*files: Path) -> str:
    """A lock of wheels."""
    return "".join(
        f"{file.name.split('-')[0]}=={file.name.split('-')[1]} \\\n"
        f"    --hash=sha256:{wheels.digest(file)}\n"
        for file in files
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the registry."""
    folder = tmp_path / "index"
    small_wheel(folder)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed bundle of the server's role with one dependency."""
    folder = tmp_path_factory.mktemp("bundle")
    index = folder / "index"
    lock = folder / "small.lock"
    lock.write_text(hashed(small_wheel(index)))
    key = folder / "key"
    signing.save_private(key, signing.new_key())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_FIND_LINKS", str(index))
        patch.setenv("PIP_NO_INDEX", "1")
        write_bundle("server", folder / "made", lock, key, [])
    return folder / "made"


def test_the_own_wheels_hold_every_tracked_file_of_the_packages(bundle: Path) -> None:
    inside = set()
    for wheel in (bundle / "wheels").glob("kohort*.whl"):
        inside |= set(zipfile.ZipFile(wheel).namelist())
    tracked = {str(path) for path in wheels.tracked_files(*PACKAGES)}
    beside = {"kohort/pyproject.toml", "kohort/LICENSE"}  # of the distribution, not the package
    assert tracked - beside <= inside
    assert not [name for name in inside if name.startswith(("tests", "benchmarks", "deploy"))]


def test_the_list_of_parts_names_every_wheel(bundle: Path) -> None:
    parts = json.loads((bundle / "sbom.cdx.json").read_text())
    assert parts["bomFormat"] == "CycloneDX"
    names = {part["name"] for part in parts["components"]}
    assert {"kohort", "kohort-app", "smallthing"} <= names
    locked = (bundle / "requirements.lock").read_text().splitlines()
    assert names == {line.partition("==")[0] for line in locked}


def test_the_server_s_bundle_has_plans_to_start_from(bundle: Path) -> None:
    for name in ("RUNBOOK.md", "systemd", "studies/fundus.yaml", "studies/checkpoints/fundus-64"):
        assert (bundle / "deploy" / name).exists(), name


def test_the_bundles_own_words_check_and_install_it_without_network(
    bundle: Path, tmp_path: Path
) -> None:
    if shutil.which("ssh-keygen") is None or not may_unshare():
        pytest.skip("ssh-keygen or network namespaces: not here")
    commands = install_commands(bundle).replace("/opt/", f"{tmp_path}/")
    # the other dependencies are those of this environment: a full bundle takes minutes
    environment = {**os.environ, "PIP_NO_DEPS": "1", "PIP_FIND_LINKS": ""}
    done = run_offline(commands, bundle, environment)
    assert done.returncode == 0, done.stdout
    beside = next(path for path in sys.path if path.endswith("site-packages"))
    program = tmp_path / "kohort" / "bin" / "kohort-server"
    asked = run_offline(
        f"{program} --help && {tmp_path}/kohort/bin/python -c 'import smallthing, server; "
        "print(server.__file__)'",
        tmp_path,
        {**os.environ, "PYTHONPATH": beside},
    )
    assert asked.returncode == 0, asked.stdout
    assert "The operator's program" in asked.stdout
    assert str(tmp_path / "kohort") in asked.stdout.splitlines()[-1]


def install_commands(bundle: Path) -> str:
    """The commands of INSTALL.txt, as a person types them."""
    text = (bundle / "INSTALL.txt").read_text()
    lines = [line.strip() for line in text.splitlines() if line.startswith("     ")]
    return "set -e\n" + "\n".join(lines)


def may_unshare() -> bool:
    """Whether this account may make a network namespace."""
    return subprocess.run([*NO_NETWORK, "true"], capture_output=True, check=False).returncode == 0


def run_offline(
    text: str, folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run shell lines where there is no network."""
    return subprocess.run(
        [*NO_NETWORK, "bash", "-c", text],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "refused_by"),
    [
        ("SHA256SUMS", "ssh-keygen"),
        ("requirements.lock", "sha256sum"),
        ("wheels/smallthing-1.0-py3-none-any.whl", "sha256sum"),
    ],
)
def test_a_changed_file_stops_the_installation(
    bundle: Path, tmp_path: Path, name: str, refused_by: str
) -> None:
    if shutil.which(refused_by) is None:
        pytest.skip(f"{refused_by}: not installed")
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    with (copy / name).open("ab") as file:
        file.write(b"\n")
    checks = install_commands(copy).partition("python3 -m venv")[0]
    assert subprocess.run(["bash", "-c", checks], cwd=copy, capture_output=True).returncode != 0
    checks = install_commands(bundle).partition("python3 -m venv")[0]
    assert subprocess.run(["bash", "-c", checks], cwd=bundle, capture_output=True).returncode == 0


def test_a_download_with_another_hash_ends_the_build(index: Path, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text(
        hashed(index / "smallthing-1.0-py3-none-any.whl").replace("sha256:", "sha256:0")
    )
    lock.write_text(re.sub(r"sha256:0(\w{63})\w", r"sha256:0\1", lock.read_text()))
    (tmp_path / "wheels").mkdir()
    with pytest.raises(EnvironmentFault, match="HASH"):
        wheels.download(lock, tmp_path / "wheels")


def test_a_wheel_takes_the_place_of_the_locked_one(tmp_path: Path) -> None:
    first, gpu_part = "anyio==4 \\\n    --hash=sha256:a\n", "nvidia-nccl-cu13==2 \\\n    --hash=b\n"
    lock = first + gpu_part + "torch==2\ntriton==3\n"
    other = small_wheel(tmp_path, "anyio", "9")
    assert wheels.without(lock, [other]) == gpu_part + "torch==2\ntriton==3\n"
    processors = tmp_path / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"
    assert wheels.without(lock, [processors]) == first
    gpu = tmp_path / "torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl"
    assert "nvidia" in wheels.without(lock, [gpu])


def test_a_bundle_that_exists_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["site", "--out", str(tmp_path)]) == 2
    assert "error" in capsys.readouterr().err
    with pytest.raises(ConfigurationError):
        wheels.name_of(Path("torch.tar.gz"))


def test_the_words_name_the_namespace_of_the_signature() -> None:
    from kohort.signatures import BUNDLE

    assert f"-n {BUNDLE} " in INSTALL
