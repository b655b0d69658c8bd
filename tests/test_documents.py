"""The documents are true: README's rooms, the paths that are named, and the gate's rules."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from docs.generator.sources import package_files

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


ROOM = re.compile(r"^\| `([\w/]+)/` \| (.+) \|$", re.MULTILINE)


def docstrings() -> dict[str, str]:
    """Every module of the packages with its whole docstring on one line."""
    found = {}
    for package in ("client", "common", "kohort", "server", "benchmarks/paper"):
        for path in package_files(package, "*.py"):
            doc = ast.get_docstring(ast.parse(path.read_text()))
            assert doc, f"{path}: no module docstring"
            found[path.relative_to(ROOT).as_posix()] = " ".join(doc.split())
    return found


def test_the_readmes_rooms_are_the_rooms() -> None:
    real = {
        name.removesuffix("/__init__.py"): doc
        for name, doc in docstrings().items()
        if name.endswith("__init__.py")
    }
    assert len(real) > 25
    assert dict(ROOM.findall(README)) == real


def test_every_module_lies_in_a_room_of_the_readme() -> None:
    rooms = {name for name, _ in ROOM.findall(README)}
    assert {name.rpartition("/")[0] for name in docstrings()} <= rooms


def test_every_path_that_the_documents_name_exists() -> None:
    for document in ("README.md", "THREAT_MODEL.md", "SECURITY.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text()
        for name in re.findall(
            r"\b(?:common|client|server|tests|deploy|benchmarks)/[\w/.-]*\w(?:\.\w+)?", text
        ):
            assert (ROOT / name).exists(), f"{document} names {name}"


def test_the_threat_model_lists_every_rule_of_the_gate() -> None:
    from common.privacy.boundary_rules import RULES

    text = (ROOT / "THREAT_MODEL.md").read_text()
    for rule in RULES.values():
        assert f"| {rule.number} | {rule.sentence} |" in text


def test_no_machine_path_or_registry_host_is_tracked() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    pattern = "(^|[^a-zA-Z])/(work|farm)/|" + "index" + "-url|find" + "-links"
    done = subprocess.run(
        ["git", "grep", "-nE", pattern, "--", ".", ":!Makefile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""


def test_nothing_cites_what_the_repository_does_not_hold() -> None:
    """No file names notes from outside: a folder beside the checkout, a method that is no page."""
    pages = "|".join(path.stem for path in (ROOT / "docs" / "methods").glob("*.md"))
    outside = [r"\.\./" + "shared", "seed" + " system", "the " + "seed's"]
    pattern = re.compile("|".join([*outside, rf"methods/(?!{pages})[a-z-]+\.md"]))
    found = []
    for folder in ("client", "server", "common", "kohort", "docs", "benchmarks", "tests", "deploy"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".md", ".yaml", ".j2", ".toml"}:
                found += [f"{path}: {text}" for text in pattern.findall(path.read_text("utf-8"))]
    assert found == []


FLOWER_PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}


@pytest.mark.parametrize(
    "name",
    [
        "client/fleet/app.py",
        "server/app.py",
        "server/rounds/exchange.py",
        "server/rounds/records.py",
    ],
)
def test_the_apps_import_flowers_public_types_alone(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text())
    froms = {
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
    }
    plain = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    used = {module for module in froms | plain if module.split(".")[0] == "flwr"}
    assert used
    assert used <= FLOWER_PUBLIC
