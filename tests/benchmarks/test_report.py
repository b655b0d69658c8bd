"""The pages of docs/measurements are current and are made of what the benchmarks write."""

import argparse
import json
import re
from pathlib import Path

import pytest

from benchmarks import report

RUNS = sorted(report.RESULTS.glob("*.json"))
TABLE = report.Table("Title", ("a", "b"), (("1", "2"),), "A note.")


def test_every_page_is_current() -> None:
    stale = [path.name for path in report.outdated()]
    assert not stale, f"{stale}: run `python -m benchmarks.report`"


def test_every_benchmark_that_writes_a_run_has_a_page() -> None:
    scripts = {
        path.stem
        for path in (report.ROOT / "benchmarks").glob("*.py")
        if "report.give(" in path.read_text(encoding="utf-8")
    }
    assert scripts == {report.load(path).benchmark for path in RUNS}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_says_where_it_comes_from(path: Path) -> None:
    run = report.load(path)
    assert run.recorded in (report.WRITTEN, report.TRANSCRIBED)
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", run.date)
    assert run.command and run.machine
    assert run.tables


def test_every_picture_of_a_page_exists() -> None:
    for page in report.PAGES.glob("*.md"):
        for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (report.PAGES / name).is_file(), f"{page.name}: {name}"


def test_a_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    run = report.record("noise.part", [TABLE], [report.Target("t", "1", True)], {"s": 0.5})
    run.save(tmp_path / "noise.part.json")
    assert report.load(tmp_path / "noise.part.json") == run
    assert run.recorded == report.WRITTEN


def test_a_run_under_another_name_or_format_is_refused(tmp_path: Path) -> None:
    run = report.record("noise", [TABLE], [], {})
    run.save(tmp_path / "other.json")
    with pytest.raises(ValueError, match="holds the run noise"):
        report.load(tmp_path / "other.json")
    (tmp_path / "noise.json").write_text(json.dumps({"format": "something"}))
    with pytest.raises(ValueError, match="expected the format"):
        report.load(tmp_path / "noise.json")


def test_a_row_has_as_many_cells_as_the_table_has_columns() -> None:
    with pytest.raises(ValueError, match="2 columns"):
        report.Table("", ("a", "b"), (("1",),))


def test_a_command_names_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["x", "--data", "/somewhere/private/data", "--json", "noise.json", "--work", "../w"]
    monkeypatch.setattr("sys.argv", [*given, "--seeds", "3"])
    said = "python -m benchmarks.noise --data data --work w --seeds 3"
    assert report.command("noise") == said


def test_json_prints_figures_and_with_a_file_writes_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    report.add_json(parser)
    for arguments in ([], ["--json"], ["--json", str(tmp_path / "noise.json")]):
        wanted = parser.parse_args(arguments).json
        report.give(wanted, "noise", [TABLE], {"s": 0.5})
    printed = capsys.readouterr().out
    assert TABLE.markdown() in printed
    assert printed.endswith('{"s": 0.5}\n')
    assert report.load(tmp_path / "noise.json").figures == {"s": 0.5}
