"""The foreign runs that were refused: written whole, read totally, bounded."""

from __future__ import annotations

from pathlib import Path

from server.operator.foreign import FOREIGN_FILE, FOREIGN_KEPT, foreign_runs, note_foreign_run


def test_foreign_runs_are_kept_the_newest_of_them(tmp_path: Path) -> None:
    assert foreign_runs(tmp_path) == []
    for number in range(FOREIGN_KEPT + 5):
        rows = foreign_runs(tmp_path)[-1:]
        if number < 5 or number > FOREIGN_KEPT:
            note_foreign_run(tmp_path, number, "ab" * 40)
            rows = foreign_runs(tmp_path)
            assert rows[-1]["run"] == number
            assert len(rows[-1]["bundle"]) == 64
    (tmp_path / FOREIGN_FILE).write_text("[" + ",".join(["{}"] * (FOREIGN_KEPT + 9)) + "]")
    note_foreign_run(tmp_path, 1, "")
    assert len(foreign_runs(tmp_path)) == FOREIGN_KEPT
    (tmp_path / FOREIGN_FILE).write_text("{")
    assert foreign_runs(tmp_path) == []
