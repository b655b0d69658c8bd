"""The documents build without a warning, load nothing from elsewhere, and link to what exists."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AT_ROOT = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "THREAT_MODEL.md")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
LOADED = re.compile(r"""<(?:script|link|img)[^>]*(?:src|href)=["'](?:https?:)?//""")
OFTEN_LOOKED_FOR = {
    "docs/hospital/data.md": "## labels.csv",
    "docs/reference/errors.md": "## E-POLICY-CAP",
    "docs/reference/study-yaml.md": "| `privacy.epsilon` |",
    "docs/glossary.md": "### Clip",
    "docs/decisions/0001-lattice-noise.md": "lattice",
}


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings."""
    found = set()
    for heading in HEADING.findall(text):
        found.add(re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("document", AT_ROOT)
def test_every_link_of_a_document_at_the_root_goes_somewhere(document: str) -> None:
    for path, anchor in LINK.findall((ROOT / document).read_text()):
        target = ROOT / (path or document)
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target.read_text()), f"{path}#{anchor}"


@pytest.mark.parametrize("page", OFTEN_LOOKED_FOR)
def test_what_is_often_looked_for_is_one_click_from_the_readme(page: str) -> None:
    linked = {path for path, _ in LINK.findall((ROOT / "README.md").read_text())}
    assert page in linked
    assert OFTEN_LOOKED_FOR[page] in (ROOT / page).read_text()


def test_the_documents_build_without_a_warning_and_load_nothing_from_elsewhere(
    tmp_path: Path,
) -> None:
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*mkdocs, "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    built = list(tmp_path.rglob("*.html"))
    assert len(built) > 60
    assert [path.name for path in built if LOADED.search(path.read_text())] == []
