"""Each role's lock installs what its side imports, with pins and hashes of requirements.lock."""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from docs.generator.sources import package_files

ROOT = Path(__file__).parents[2]
ROLES = {
    "site": ("client", "common"),
    "server": ("server", "common"),
}
OURS = {"client", "common", "kohort", "server"}
# what belongs to the other role
OTHERS = {"site": {"mlcroissant", "torchvision"}, "server": {"pydicom", "pylibjpeg"}}
PIN = re.compile(r"^([a-z0-9.-]+)==([^ ;\\]+)", re.MULTILINE)


@cache
def read_pins(name: str) -> dict[tuple[str, str], frozenset[str]]:
    """A lock's (name, version) with the hashes of each."""
    entries = re.split(r"\n(?=[a-z])", (ROOT / name).read_text())
    found = {}
    for entry in entries:
        match = PIN.match(entry)
        assert match, entry[:80]
        found[match[1], match[2]] = frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", entry))
    return found


def imports_of(packages: tuple[str, ...]) -> set[str]:
    """The distributions that a role's packages import; the demo plays both roles."""
    found = set()
    for package in packages:
        for path in package_files(package, "*.py"):
            if path.is_relative_to(ROOT / "server" / "demo"):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {name.name.partition(".")[0] for name in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.partition(".")[0])
    owners = packages_distributions()
    foreign = found - OURS - sys.stdlib_module_names - {"_typeshed"}
    return {re.sub(r"[-_.]+", "-", owners[name][0]).lower() for name in foreign}


def only_for_readers() -> set[str]:
    """What `kohort` imports where a reader asks for it, and no role needs: its extras."""
    project = tomllib.loads((ROOT / "kohort" / "pyproject.toml").read_text())["project"]
    names = set()
    for requirements in project["optional-dependencies"].values():
        names |= {re.split(r"[^A-Za-z0-9._-]", name)[0].lower() for name in requirements}
    return names


@pytest.mark.parametrize("role", ROLES)
def test_a_roles_lock_is_a_part_of_the_whole(role: str) -> None:
    whole = read_pins("requirements.lock")
    part = read_pins(f"requirements-{role}.lock")
    assert len(part) > 50
    assert all(hashes for hashes in part.values())
    assert {pin: whole.get(pin) for pin in part} == part


@pytest.mark.parametrize("role", ROLES)
def test_a_roles_lock_has_what_its_side_imports_and_not_the_other_sides(role: str) -> None:
    names = {name for name, _ in read_pins(f"requirements-{role}.lock")}
    imported = imports_of(ROLES[role]) | (imports_of(("kohort",)) - only_for_readers())
    assert len(imported) > 10
    assert imported <= names
    assert not names & OTHERS[role]


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("*.lock")))
def test_a_lock_names_no_host_and_no_path(name: str) -> None:
    assert not re.search(r"://|^-|^\.|@", (ROOT / name).read_text(), re.MULTILINE)
