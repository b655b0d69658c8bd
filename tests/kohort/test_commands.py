"""`kohort`: exit codes and lines as a researcher sees them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.releases import small_release

KOHORT = str(Path(sys.executable).parent / "kohort")


def kohort(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([KOHORT, *arguments], capture_output=True, text=True, check=False)


def test_verify_prints_the_claims_and_a_changed_byte_ends_with_1(tmp_path: Path) -> None:
    release, _ = small_release(tmp_path)
    good = kohort("verify", str(release))
    assert good.returncode == 0
    assert "at least k = 5 distinct patients" in good.stdout
    (release / "metadata.csv").write_text("changed")
    bad = kohort("verify", str(release))
    assert bad.returncode == 1
    assert "metadata.csv: altered" in bad.stderr


def test_list_goes_on_after_a_damaged_manifest(tmp_path: Path) -> None:
    release, _ = small_release(tmp_path / "whole")
    damaged = release.parent / "damaged"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{}")
    done = kohort("list", "--folder", str(release.parent))
    assert done.returncode == 0
    assert f"{damaged}: NOT verified" in done.stdout
    assert f"{release}: " in done.stdout


def test_wrong_commands_and_places_end_with_2_and_a_hint() -> None:
    for arguments in (
        ("verifyy",),
        ("verify", "/nonexistent"),
        ("pull", "http://example.org", "x"),
        ("demo", "--study", "x"),
    ):
        done = kohort(*arguments)
        assert done.returncode == 2, arguments
        assert "error:" in done.stderr
        assert "hint:" in done.stderr


def test_ctrl_c_ends_the_demo_with_130(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [KOHORT, "demo", "--out", str(tmp_path / "out")],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored in a shell's background
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "work").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(child.pid, signal.SIGINT)
    assert child.wait(60) == 130
    assert not (tmp_path / "out" / "work").exists()
