"""The distribution `kohort` installs and runs without the rest of the repository."""

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.releases import small_release

LATE = {"httpx", "rich", "numpy", "PIL", "datasets"}
ROOT = Path(__file__).parents[2]
UV = str(Path(sys.executable).parent / "uv")
NOT_COPIED = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")

# An import hook that refuses the application and its two heavy dependencies.
ALONE = """\
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"client", "common", "server", "torch", "flwr"}:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Refuse())
from kohort.commands import main
sys.argv = ["kohort", *sys.argv[1:]]
main()
"""


def alone(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ALONE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which ./kohort alone is installed, without an index."""
    folder = tmp_path_factory.mktemp("distribution")
    source = shutil.copytree(ROOT / "kohort", folder / "kohort", ignore=NOT_COPIED)
    command = [UV, "pip", "install", "--offline", "--no-deps", "--no-build-isolation", "--quiet"]
    command += ["--python", sys.executable, "--target", str(folder / "target"), str(source)]
    subprocess.run(command, check=True)
    return folder / "target"


def metadata(installed: Path) -> Distribution:
    (found,) = distributions(path=[str(installed)])
    return found


def test_it_verifies_where_nothing_else_of_the_repository_can_be_imported(tmp_path: Path) -> None:
    assert alone("verify", "--help").returncode == 0
    nowhere = alone("verify", str(tmp_path / "none"))
    assert nowhere.returncode == 2
    assert "no such folder" in nowhere.stderr


def test_the_demo_without_the_application_ends_with_2_and_a_hint() -> None:
    done = alone("demo")
    assert done.returncode == 2
    assert "error: the demo needs kohort-app" in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_installed_kohort_runs_from_its_own_folder(installed: Path, tmp_path: Path) -> None:
    assert {path.name for path in installed.iterdir() if path.is_dir()} >= {"kohort"}
    assert not [name for name in ("client", "common", "server") if (installed / name).exists()]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    code = "import kohort.commands as c; print(c.__file__)"
    for command in (["-c", code], ["-m", "kohort.commands", "verify", "--help"]):
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env=environment,
        )
        assert str(installed) in done.stdout or "--trust" in done.stdout


def test_its_metadata_names_its_command_licence_and_light_dependencies(installed: Path) -> None:
    found = metadata(installed)
    assert found.metadata["Name"] == "kohort"
    assert found.metadata["License-Expression"] == "Apache-2.0"
    assert {(e.name, e.value) for e in found.entry_points} == {("kohort", "kohort.commands:main")}
    assert required(found) == {"click", "cryptography", "httpx", "pydantic", "rich", "typer"}
    assert "kohort/py.typed" in {str(path) for path in found.files or ()}
    texts = [path for path in found.files or () if path.name == "LICENSE"]
    assert [str(path.read_text()).strip()[:14] for path in texts] == ["Apache License"]


def required(found: Distribution) -> set[str]:
    """The distributions that one needs here, without those of its extras."""
    lines = [Requirement(line) for line in found.requires or ()]
    return {one.name for one in lines if not one.marker or one.marker.evaluate({"extra": ""})}


def test_it_takes_less_than_60_mb_with_all_that_it_requires(installed: Path) -> None:
    waiting, size_bytes, seen = [metadata(installed)], 0, set()
    while waiting:
        found = waiting.pop()
        size_bytes += sum(
            path.stat().st_size
            for path in map(Path, map(found.locate_file, found.files or ()))
            if path.is_file()
        )
        for name in required(found) - seen:
            seen.add(name)
            waiting.append(distribution(name))
    assert {"pydantic_core", "pydantic-core", "cffi", "pygments"} & {name.lower() for name in seen}
    assert 30e6 < size_bytes < 60e6


def test_verify_imports_no_more_than_it_needs(tmp_path: Path) -> None:
    release, _ = small_release(tmp_path)
    table = {("--help",): {"pydantic", "cryptography"}, ("verify", str(release)): set()}
    for arguments, more in table.items():
        code = (
            ALONE.replace("main()", "", 1)
            + f"""
import resource
try:
    main()
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    names = [name for name in {sorted(more | LATE)} if name in sys.modules]
    print("used", used.ru_utime + used.ru_stime, *names)
"""
        )
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        _, cpu_s, *names = done.stdout.splitlines()[-1].split()
        assert names == []
        assert float(cpu_s) < 1.0  # 0.15 and 0.45 where nothing else runs


def test_the_application_leaves_command_and_package_to_kohort() -> None:
    top = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert top["project"]["name"] == "kohort-app"
    assert set(top["project"]["scripts"]) == {"kohort-site", "kohort-server"}
    packages = top["tool"]["setuptools"]["packages"]["find"]["include"]
    assert packages == ["client*", "common*", "server*"]


def test_both_distributions_have_one_version() -> None:
    texts = [(ROOT / name).read_text() for name in ("pyproject.toml", "kohort/pyproject.toml")]
    one, other = [tomllib.loads(text)["project"]["version"] for text in texts]
    assert one == other
