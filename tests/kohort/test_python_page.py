"""The page "From Python" runs as it stands."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.releases import small_release

PAGE = Path(__file__).parents[2] / "docs" / "researcher" / "python.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_page_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release, _ = small_release(tmp_path / "made")
    shutil.move(release, tmp_path / "fundus")
    key = (tmp_path / "fundus" / "allowed_signers").read_text().partition("ssh-")
    (tmp_path / "consortium.pub").write_text(key[1] + key[2])
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "12 ('none', 'mild-moderate', 'severe') True"
    assert "torch.Size([8, 3, 32, 32]) ['none', 'mild-moderate', 'severe']" in printed
