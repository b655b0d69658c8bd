"""`kohort-site quarantine`: each file that did not enter, by its path, for this site alone."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from client.cli.terminal import printable, write_table
from client.ingest import decode, decode_child
from client.ingest.quarantine import Reason, Unusable
from client.ingest.refused import LIST, read_refused
from client.ingest.request import Photograph, Settings
from client.state.folder import State
from common.errors import RefusedError
from tests import phantoms
from tests.client.cli.typing_commands import Cli
from tests.sites import Hospital, make_hospital


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospital:
    """A hospital without a cohort: two people, a text, a stranger and a file with an odd name."""

    def decode_here(
        paths: Iterable[Path], settings: Settings, workers: int
    ) -> Iterator[Photograph | Reason]:
        for path in paths:
            try:
                yield decode_child.read_file(str(path), settings)
            except Unusable as refusal:
                yield refusal.reason

    monkeypatch.setattr(decode, "decode_all", decode_here)
    hospital = make_hospital(tmp_path)
    place = State(hospital.root)
    place.membership.write_text(hospital.site().membership.model_dump_json())
    for path in place.cohort(hospital.study.intake).iterdir():
        path.unlink()
    place.cohort(hospital.study.intake).rmdir()
    data = tmp_path / "data"
    rows = ["file,patient,label,laterality"]
    for number in range(2):
        Image.fromarray(phantoms.fundus(number, 64)).save(data / f"{number}.png")
        rows.append(f"{number}.png,P{number},none,R")
    (data / "sub").mkdir()
    (data / "sub" / "notes.txt").write_text("no image")
    (data / "=1+1\x1b[2J.txt").write_text("no image")
    Image.fromarray(phantoms.fundus(7, 64)).save(data / "stranger.png")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    settings = hospital.root / "site.yaml"
    settings.write_text(
        settings.read_text().replace("labels_csv: null", f"labels_csv: {tmp_path}/labels.csv")
    )
    return hospital


def listing(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_each_file_stands_by_its_path_with_the_sentence_and_the_fix(
    site: Hospital, cli: Cli
) -> None:
    state = ("--state", site.root)
    code, _, err = cli("quarantine", *state)
    assert code == 3 and "no folder was taken in yet" in err
    code, out, _ = cli("ingest", *state)
    assert code == 0
    plan = site.study.hash()[:12]
    sentence = Reason.UNKNOWN_FORMAT.sentence
    assert f"{plan}: not used: 2 files, unknown-format: {sentence}\n" in out
    assert f"{plan}: `kohort-site quarantine` lists these files, with what to do\n" in out

    code, out, _ = cli("quarantine", *state)
    assert code == 0
    assert out.startswith(f"{plan}: 3 files not used, of the cohort (")
    row = f"unknown-format\t2\t{sentence}\t{Reason.UNKNOWN_FORMAT.fix}\n"
    assert row in out
    # a file's name does not steer the terminal
    assert "unknown-format:\n  =1+1\\x1b[2J.txt\n  sub/notes.txt\n" in out
    assert f"{Reason.NO_PATIENT.value}:\n  stranger.png\n" in out

    # one code, and no more than asked for
    _, out, _ = cli("quarantine", *state, "--code", "unknown-format", "--limit", 1)
    assert "stranger" not in out and "sub/notes.txt" not in out
    assert "  and 1 more: --limit 0" in out
    code, _, err = cli("quarantine", *state, "--code", "no-such")
    assert code == 2 and "'no-such'" in err

    # as JSON; a file that is gone since is counted
    (site.root.parent / "data" / "stranger.png").unlink()
    facts = json.loads(cli("quarantine", *state, "--json")[1])
    assert facts["format"] == "kohort-site-quarantine/1"
    (one,) = facts["plans"]
    assert (one["built"], one["gone"], one["counts"]) == (True, 1, {"unknown-format": 2})
    assert one["files"][1] == {
        "path": "sub/notes.txt",
        "code": "unknown-format",
        "sentence": sentence,
        "fix": Reason.UNKNOWN_FORMAT.fix,
    }
    assert "1 more are no longer there" in cli("quarantine", *state)[1]

    # what was read is in the audit log, and no path is
    _, log, _ = cli("log", *state)
    assert "quarantine-read" in log and "notes" not in log and "stranger" not in log


def test_the_export_is_for_this_account_and_replaces_nothing_by_itself(
    site: Hospital, cli: Cli, tmp_path: Path
) -> None:
    state = ("--state", site.root)
    assert cli("ingest", *state)[0] == 0
    out = tmp_path / "refused.csv"
    assert cli("quarantine", *state, "--export", out)[0] == 0
    assert out.stat().st_mode & 0o777 == 0o600
    rows = listing(out.read_text())
    # no spreadsheet computes a name
    assert [row["path"] for row in rows] == ["stranger.png", "./=1+1\x1b[2J.txt", "sub/notes.txt"]
    assert [row["code"] for row in rows] == ["no-patient-id", "unknown-format", "unknown-format"]
    assert rows[0]["sentence"] == Reason.NO_PATIENT.sentence
    assert rows[0]["fix"] == Reason.NO_PATIENT.fix

    out.write_text("mine")
    code, _, err = cli("quarantine", *state, "--export", out)
    assert code == 2 and "--force" in err and out.read_text() == "mine"
    assert cli("quarantine", *state, "--export", out, "--force")[0] == 0
    assert len(listing(out.read_text())) == 3
    inside = tmp_path / "data" / "refused.csv"
    code, _, err = cli("quarantine", *state, "--export", inside)
    assert code == 2 and "never writes" in err and not inside.exists()


def test_also_when_nothing_was_usable_the_files_are_listed_and_no_name_is_stored(
    site: Hospital, cli: Cli, tmp_path: Path
) -> None:
    state = ("--state", site.root)
    labels = tmp_path / "labels.csv"
    rows = labels.read_text()
    labels.write_text(rows.replace(",R", ","))
    code, _, err = cli("ingest", *state)
    assert code == 2
    assert "no usable image among 5 files" in err and "`kohort-site quarantine`" in err
    _, out, _ = cli("quarantine", *state)
    assert ": 5 files not used, of the last attempt, which built no cohort (" in out
    assert "no-laterality:\n  0.png\n  1.png\n" in out
    stored = b"".join(path.read_bytes() for path in site.root.rglob("*") if path.is_file())
    assert b"stranger" not in stored and b"notes.txt" not in stored

    # a cohort that comes about has a list of its own, and the other goes
    labels.write_text(rows)
    assert cli("ingest", *state)[0] == 0
    assert ": 3 files not used, of the cohort (" in cli("quarantine", *state)[1]
    assert not list(site.root.glob(".cohort-*"))

    # a later attempt that fails is what is told of, until one succeeds
    labels.write_text(rows.replace(",R", ","))
    assert cli("ingest", *state, "--refresh")[0] == 2
    assert ": 5 files not used, of the last attempt" in cli("quarantine", *state)[1]
    labels.write_text(rows)
    assert cli("ingest", *state, "--refresh")[0] == 0
    assert ": 3 files not used, of the cohort (" in cli("quarantine", *state)[1]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"file,code\nno id,no-label\n",
        b"id,code\n",
        b"file,code\n0123456789abcdef\n",
    ],
)
def test_a_damaged_list_is_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / LIST).write_bytes(text)
    with pytest.raises(RefusedError, match="not a list of refused files"):
        read_refused(tmp_path / LIST)


def test_on_a_terminal_the_codes_are_a_table_and_no_cell_is_read_as_markup() -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=60)
    write_table(("code", "files"), [("[red]no-label[/red]", "3")], screen)
    assert isinstance(screen.file, io.StringIO)
    assert "[red]no-label[/red]  3" in screen.file.getvalue()


def test_what_steers_a_terminal_is_spelled_out() -> None:
    assert printable("a\x1b[2Jb\n\udcff é") == "a\\x1b[2Jb\\n\\udcff é"


def test_the_files_of_an_archive_stand_by_their_paths_in_it(site: Hospital, cli: Cli) -> None:
    state = ("--state", site.root)
    archive = shutil.make_archive(
        str(site.root.parent / "export"), "zip", site.root.parent / "data"
    )
    settings = site.root / "site.yaml"
    text = settings.read_text()
    settings.write_text(text.replace(f"{site.root.parent}/data", archive))
    assert settings.read_text() != text
    assert cli("ingest", *state)[0] == 0
    code, out, _ = cli("quarantine", *state)
    assert code == 0
    assert "unknown-format:\n  =1+1\\x1b[2J.txt\n  sub/notes.txt\n" in out
    assert not list(site.root.glob(".unpacked-*"))

    # one that was cut off takes no cohort away, and `check` names it, also without labels
    whole = Path(archive).read_bytes()
    Path(archive).write_bytes(whole[: len(whole) // 2])
    assert cli("ingest", *state, "--refresh")[0] == 2
    assert State(site.root).cohort(site.study.intake).is_dir()
    labels = f"labels_csv: {site.root.parent}/labels.csv"
    settings.write_text(settings.read_text().replace(labels, "labels_csv: null"))
    _, out, err = cli("check", *state, "--offline")
    assert "not a ZIP archive, or a damaged one" in out + err
