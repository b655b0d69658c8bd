"""The transcripts of the three guides are what the programs print."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from client.cli.main import run_command_line
from client.ingest.labels import read_labels
from common.study.bundle import write_bundle
from common.wire import signing
from server.demo.hospitals import photograph_hospitals
from server.operator.certificates import create_authority
from server.operator.config import new_config
from server.operator.enrolment import enrol
from server.operator.state import ServerState
from tests import phantoms
from tests.docs.transcripts import File, Step, fits, play, play_page, read_guide, run_here
from tests.drawable_releases import drawable_release
from tests.sites import write_plan

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
GUIDES = {
    "hospital": ["index.md", "data.md", "first-study.md", "every-day.md", "trouble.md"],
    "operator": ["index.md", "first-study.md", "every-day.md", "trouble.md"],
    "researcher": ["index.md", "using.md", "trouble.md"],
}
# pages that a test of their own plays; tests/kohort/test_python_page.py runs the last
PLAYED_HERE = {"hospital": ["folder-and-table.md"], "researcher": ["python.md"]}
LEAST_COMPARED = {"hospital": 12, "operator": 10, "researcher": 4}


def guide(name: str) -> dict[str, str]:
    """The pages of a guide, in the order in which they are read."""
    return {f"{name}/{page}": (ROOT / "docs" / name / page).read_text() for page in GUIDES[name]}


def whole(name: str) -> str:
    """The text of a guide."""
    return "\n".join(guide(name).values())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a reader has: a clone, a hospital's export, a downloaded release."""
    world = tmp_path / "w"
    world.mkdir()
    (world / "deploy").symlink_to(ROOT / "deploy")
    (world / "var" / "lib").mkdir(parents=True)
    return world


def test_the_hospital_guide(folder: Path) -> None:
    names = ["hospital-a", "hospital-b", "hospital-c"]
    truth = photograph_hospitals(folder / "made", names, lambda done, total: None)["hospital-a"]
    (folder / "data").mkdir()
    shutil.move(truth.folder, folder / "data" / "dicom")
    shutil.move(truth.labels_csv, folder / "data" / "labels.csv")
    assert play(guide("hospital"), folder) >= LEAST_COMPARED["hospital"]


def operator_answers(folder: Path) -> None:
    """The join file and the bundle that an operator sends."""
    server, operator = ServerState(folder / "server"), signing.new_key()
    config = new_config("test", "https://127.0.0.1:4433", server.config)
    create_authority(server.authority)
    request = folder / "var" / "lib" / "table" / "hospital-a.request.json"
    public = signing.public_text(operator.public_key())
    (folder / "hospital-a.join.json").write_bytes(enrol(request, server, config, public))
    (folder / "plan").mkdir()
    write_bundle(write_plan(folder / "plan"), operator, folder / "plan-bundle")


def test_a_folder_and_a_table_become_a_cohort(folder: Path) -> None:
    for number in range(1, 14):
        year = 2024 if number < 11 else 2025
        path = folder / "data" / "photographs" / str(year) / f"IMG_{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(phantoms.fundus(number, 64)).save(path)

    def runner(step: Step, folder: Path, page: str) -> str:
        programs = {"kohort-site": run_command_line}
        return run_here(step, folder, page, programs, {"the operator answers": operator_answers})

    page = "hospital/folder-and-table.md"
    assert play_page(page, (ROOT / "docs" / page).read_text(), folder, runner) == 12


def test_the_operator_guide(folder: Path) -> None:
    (folder / "data" / "dicom").mkdir(parents=True)
    assert play(guide("operator"), folder) >= LEAST_COMPARED["operator"]


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="the guide uses ssh-keygen")
def test_the_researcher_guide(folder: Path) -> None:
    shutil.move(drawable_release(folder / "made"), folder / "fundus")
    assert play(guide("researcher"), folder) >= LEAST_COMPARED["researcher"]


def test_the_labels_files_of_the_hospital_guide_are_read(tmp_path: Path) -> None:
    files = [step for step in read_guide(whole("hospital")) if isinstance(step, File)]
    examples = [file for file in files if "/labels" in file.path]
    assert len(examples) >= 2
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.csv"
        path.write_text(example.text)
        labels = ("none", "mild-moderate", "severe", "vessels")
        read = read_labels(path, labels, [], 1 << 20, masks="mask" in example.text.split("\n")[0])
        rows = [row for rows in (*read.by_file.values(), *read.by_patient.values()) for row in rows]
        assert len(rows) == len(example.text.strip().splitlines()) - 1
        assert all(row.label in labels for row in rows)


@pytest.mark.parametrize("name", GUIDES)
def test_every_page_of_a_guide_is_played(name: str) -> None:
    assert {path.name for path in (ROOT / "docs" / name).glob("*.md")} == {
        *GUIDES[name],
        *PLAYED_HERE.get(name, ()),
    }


@pytest.mark.parametrize("name", GUIDES)
def test_a_block_that_is_not_run_says_why(name: str) -> None:
    for reason in re.findall(r"<!-- not run(.*?)-->", whole(name)):
        assert re.match(r": \w+ \w+", reason), reason


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("a\n", "a\n", True),
        ("a b c\n", "a ... c\n", True),
        ("a\nb\nc\n", "a\n...\nc\n", True),
        ("a\n", "a\n...\n", True),
        ("", "", True),
        ("b\n", "a\n", False),
        ("a\nb\n", "a\n", False),
        ("", "a\n", False),
    ],
)
def test_an_output_is_compared_line_by_line(printed: str, shown: str, same: bool) -> None:
    assert fits(printed, shown) is same


def test_a_guide_is_read_in_order() -> None:
    text = """
<!-- run: true -->
```csv title="/data/x.csv"
a,b
```
<!-- exit 3 -->
```console
$ one \\
> two
out
$ three
```
<!-- not run: takes hours -->
```console
$ four
```
"""
    assert list(read_guide(text)) == [
        Step("true", None, 0, 2),
        File("/data/x.csv", "a,b\n"),
        Step("one two", "out\n", 0, 7),
        Step("three", "", 3, 7),
    ]
