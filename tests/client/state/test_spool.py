"""A spool: blocks that are whole come again, of one binding alone, and nothing half written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.state.spool import INDEX, Spool, bind, remove_spool, spool_name, spool_of
from common.errors import Bug, EnvironmentFault

BINDING = bind("weights", "plan", "cohort")


def block(start: int, rows: int) -> dict[str, np.ndarray]:
    """Rows that know their own number."""
    own = np.arange(start, start + rows)
    codes = np.repeat(own, 6).reshape(rows, 2, 3).astype(np.float32)
    return {"codes": codes, "errors": own / 7, "accepted": own % 2 == 0}


def filled(folder: Path) -> Spool:
    """A spool of two blocks and a kept file."""
    spool = Spool.open(folder, BINDING)
    spool.keep("encoder", {"w": np.arange(4.0)})
    spool.append(block(0, 4))
    spool.append(block(4, 3))
    return spool


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Both hold the same rows of the same types."""
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_what_was_written_is_there_for_the_next_process(tmp_path: Path) -> None:
    filled(tmp_path / "job.spool")
    again = Spool.open(tmp_path / "job.spool", BINDING)
    assert again.count == 7
    same(again.arrays(), block(0, 7))
    kept = again.kept("encoder")
    assert kept is not None
    np.testing.assert_array_equal(kept["w"], np.arange(4.0))
    assert again.kept("reference") is None
    again.append(block(7, 2))
    same(Spool.open(tmp_path / "job.spool", BINDING).arrays(), block(0, 9))


def test_everything_is_for_this_account_alone(tmp_path: Path) -> None:
    folder = filled(tmp_path / "jobs" / "job.spool").folder
    assert folder.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert len(modes) == 5
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize("part", ["weights", "plan", "cohort"])
def test_a_spool_of_other_weights_plan_or_cohort_is_removed_and_not_read(
    tmp_path: Path, part: str
) -> None:
    folder = filled(tmp_path / "job.spool").folder
    parts = [name + " changed" * (name == part) for name in ("weights", "plan", "cohort")]
    other = Spool.open(folder, bind(*parts))
    assert other.count == 0
    assert other.kept("encoder") is None
    assert [path.name for path in folder.iterdir()] == [INDEX]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def turn_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def grow(path: Path) -> None:
    """What a kill leaves between the rows and the index."""
    path.write_bytes(path.read_bytes() + b"half a row")


DAMAGE: dict[str, tuple[Callable[[Path], None], int]] = {
    "a file was cut": (cut, 4),
    "a bit turned": (turn_a_bit, 4),
    "a file is gone": (lambda path: path.unlink(), 0),
    "a block was begun and not noted": (grow, 7),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("field", ["codes", "errors", "accepted"])
def test_a_damaged_block_is_computed_again_and_those_before_it_are_not(
    tmp_path: Path, name: str, field: str
) -> None:
    folder = filled(tmp_path / "job.spool").folder
    damage, left = DAMAGE[name]
    damage(folder / f"{field}.rows")
    again = Spool.open(folder, BINDING)
    assert again.count == left
    again.append(block(left, 9 - left))
    same(Spool.open(folder, BINDING).arrays(), block(0, 9))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format":"kohort-spool-1"}'])
def test_a_damaged_index_is_no_spool(tmp_path: Path, text: str) -> None:
    folder = filled(tmp_path / "job.spool").folder
    (folder / INDEX).write_text(text)
    assert Spool.open(folder, BINDING).count == 0


def test_a_field_of_an_index_names_no_other_file(tmp_path: Path) -> None:
    folder = filled(tmp_path / "job.spool").folder
    index = json.loads((folder / INDEX).read_text())
    index["fields"] = {"../codes": index["fields"]["codes"]}
    (folder / INDEX).write_text(json.dumps(index))
    assert Spool.open(folder, BINDING).count == 0


def test_where_a_kept_file_is_damaged_no_row_that_it_made_is_kept(tmp_path: Path) -> None:
    spool = filled(tmp_path / "job.spool")
    assert Spool.open(spool.folder, BINDING).count == spool.count > 0
    turn_a_bit(spool.folder / "encoder.safetensors")
    again = Spool.open(spool.folder, BINDING)
    assert again.kept("encoder") is None
    assert again.count == 0


def test_blocks_of_other_fields_are_refused(tmp_path: Path) -> None:
    spool = filled(tmp_path / "job.spool")
    with pytest.raises(Bug, match="other fields"):
        spool.append(block(7, 1) | {"more": np.zeros(1)})


def test_a_full_disk_is_named_and_the_finished_blocks_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = filled(tmp_path / "job.spool")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("client.state.spool.os.fsync", full)
        with pytest.raises(EnvironmentFault) as refused:
            spool.append(block(7, 2))
    assert refused.value.code == "E-DISK-FULL"
    same(Spool.open(spool.folder, BINDING).arrays(), block(0, 7))


def test_all_tries_of_a_round_share_one_spool_beside_them(tmp_path: Path) -> None:
    tries = [tmp_path / "jobs" / f"0123456789abcdef-{number}" for number in (0, 1, 12)]
    assert {spool_of(folder) for folder in tries} == {tmp_path / "jobs" / "0123456789abcdef.spool"}
    assert spool_name("fedcba9876543210-0") != spool_name("0123456789abcdef-0")


def test_rows_that_were_handed_out_outlive_the_files(tmp_path: Path) -> None:
    spool = filled(tmp_path / "job.spool")
    rows = spool.arrays()
    remove_spool(spool.folder)
    assert not spool.folder.exists()
    same(rows, block(0, 7))
    remove_spool(spool.folder)
