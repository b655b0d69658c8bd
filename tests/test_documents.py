"""The documents are true: the README's tree is the tree, its commands exist, the threat model lists the gate's rules."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def modules() -> dict[str, str]:
    """Every module of the three packages with the first sentence of its docstring."""
    found = {}
    for package in ("common", "client", "server"):
        for path in sorted((ROOT / package).rglob("*.py")):
            doc = ast.get_docstring(ast.parse(path.read_text()))
            assert doc, f"{path}: no module docstring"
            found[path.relative_to(ROOT).as_posix()] = doc.split("\n\n")[0].replace("\n", " ")
    return found


def test_the_readmes_tree_is_the_tree() -> None:
    listed = set(re.findall(r"^(?:common|client|server)/[\w/]+\.py", README, re.MULTILINE))
    real = {name for name in modules() if not name.endswith("__init__.py")}
    assert listed == real


def test_every_path_that_the_documents_name_exists() -> None:
    for document in ("README.md", "THREAT_MODEL.md", "SECURITY.md"):
        text = (ROOT / document).read_text()
        for name in re.findall(
            r"\b(?:common|client|server|tests|deploy|benchmarks)/[\w/.-]*\w(?:\.\w+)?", text
        ):
            assert (ROOT / name).exists(), f"{document} names {name}"


def test_the_threat_model_lists_every_rule_of_the_gate() -> None:
    from common.privacy.boundary import RULES

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


FLOWER_PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}


@pytest.mark.parametrize("name", ["client/fleet/app.py", "server/app.py"])
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
