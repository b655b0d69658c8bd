"""The promise pages name files and tests that exist, with current counts, and forget no file."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "promises"
PAGES = sorted(FOLDER.glob("[0-9]-*.md"))
PARTS = (
    "## Statement",
    "## Adjacency",
    "## To read",
    "## All that it hangs on",
    "## Tests",
    "## What it does not cover",
)

# Files of these rooms stand on a page, or here with the reason why no promise hangs on them.
ROOMS = (
    "client/daemon",
    "client/egress",
    "client/learn",
    "client/state",
    "client/synthesize",
    "common/privacy",
)
EXEMPT = {
    "client/daemon/certificates.py": "when a certificate is renewed; nothing of a patient",
    "client/daemon/own_people.py": "counts for this site's own screen; nothing in it leaves",
    "client/daemon/device.py": "which device computes; refused before anything is spent",
    "client/daemon/standing.py": "what is true now, for the site's staff; decides nothing",
    "client/egress/audit.py": "finds copies; no promise is made of what it finds",
    "client/egress/contact_sheet.py": "a picture for the site's staff",
    "client/egress/facts.py": "what a reviewer reads; the gate counts persons itself",
    "client/egress/sheet_pictures.py": "cuts a picture for the site's staff",
    "client/egress/membership.py": "stops gross leaks; promises nothing",
    "client/egress/nearest.py": "how the audit compares images",
    "client/egress/spaces.py": "where the audit compares images",
    "client/learn/machine.py": "where a trainer computes; the private step guarantees the same",
    "client/learn/train_encoder.py": "takes no cohort: generator samples alone",
    "client/state/dicomweb.py": "which server of the hospital is asked for images; nothing leaves",
    "client/state/domain.py": "counts of a look at pictures, for this site alone; nothing leaves",
    "client/state/folder.py": "paths and keys",
    "client/state/machine.py": "memory against a plan's public constants",
    "client/state/membership.py": "who the operator is",
    "client/state/operators.py": "which key of the operator counts",
    "client/state/records.py": "hands the others round together",
    "client/state/request.py": "the site's public keys, for the operator",
    "client/state/sample.py": "a file to fill in; what it says counts once config.py read it",
    "client/state/spool.py": "finished rows of a child; nothing in them leaves",
    "client/state/sweep.py": "removes what was answered, or is half written",
    "client/state/work.py": "progress, for the site's staff alone",
    "client/synthesize/descent.py": "an optimiser",
    "client/synthesize/features.py": "public features; what enters them is checked in align.py",
    "client/synthesize/inversion_sheet.py": "a picture for the site's staff",
    "common/privacy/audit_file.py": "what a rehearsal on public data measured",
    "common/privacy/planning.py": "a verdict before anything is spent",
    "common/privacy/plan_report.py": "the verdict's words",
    "common/privacy/planned_price.py": "a plan's price, for people",
    "common/privacy/price.py": "words and digits, for people",
    "common/privacy/update_norm.py": "the norm of an honest update, for the plan's cap",
    "common/privacy/aggregation_noise.py": "what a rule of aggregation costs in noise",
}


def counting() -> ModuleType:
    """The script that writes the counts."""
    path = FOLDER / "count_lines.py"
    spec = importlib.util.spec_from_file_location("kohort_count_lines", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


count_lines = counting()


def part_of(text: str, name: str) -> str:
    """What stands under a heading."""
    return text.split(name, 1)[1].split("\n## ", 1)[0]


def test_there_are_five_promises() -> None:
    assert [page.name[0] for page in PAGES] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_its_parts_in_order(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    places = [text.find(part) for part in PARTS]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_at_most_five_files_are_to_read_and_none_stands_twice(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert 1 <= len(count_lines.files_of(part_of(text, "## To read"))) <= 5
    rows = count_lines.ROW.findall(text)
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_and_test_of_a_page_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in count_lines.files_of(text):
        assert (ROOT / name).is_file(), f"{page.name} names {name}"
    tests = re.findall(r"tests/[\w/]+\.py", part_of(text, "## Tests"))
    assert tests
    for name in tests:
        assert (ROOT / name).is_file(), f"{page.name} names {name}"


def test_every_file_and_test_that_the_mutants_name_exists() -> None:
    text = (FOLDER / "mutants.md").read_text(encoding="utf-8")
    for name in re.findall(r"^\| `([\w/.-]+)` \|", text, re.MULTILINE):
        assert (ROOT / name).is_file(), name
    tests = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py"))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named <= set(re.findall(r"def (test_\w+)\(", tests))


def test_every_count_is_current() -> None:
    stale = [path.name for path in count_lines.outdated()]
    assert not stale, f"{stale}: run `python docs/promises/count_lines.py`"


def test_no_file_of_a_privacy_room_is_forgotten() -> None:
    named = {
        name for page in PAGES for name in count_lines.files_of(page.read_text(encoding="utf-8"))
    }
    files = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).glob("*.py")
        if path.name != "__init__.py"
    }
    assert files - named == set(EXEMPT)


def test_the_check_says_whether_the_counts_are_current() -> None:
    command = [sys.executable, str(FOLDER / "count_lines.py"), "--check"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_a_wrong_count_is_found() -> None:
    page = "| `client/learn/lattice.py` | 1 | the clip |\n\n**1 lines in 1 files.**\n"
    lines = count_lines.lines_of("client/learn/lattice.py")
    assert f"| {lines} |" in count_lines.counted(page)
    assert f"**{lines} lines in 1 files.**" in count_lines.counted(page)
