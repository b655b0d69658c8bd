"""`kohort-server release`: only a complete study, images and pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import PolicyError
from kohort import layout
from server.operator import plan as plans
from tests.federation import Federation, tiny_plan
from tests.server.cli.reports import Kohort, fake_report


def test_a_release_needs_a_complete_study(
    tmp_path: Path, state: Path, kohort: Kohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "feasibility", fake_report("feasible"))
    kohort("sign", tiny_plan(tmp_path / "plan"), "--state", state, "--out", tmp_path / "bundle")
    code, _, errors = kohort(
        "release", tmp_path / "bundle", "--state", state, "--out", tmp_path / "out"
    )
    assert (
        code == PolicyError.exit_code
        and "not complete" in errors
        and not (tmp_path / "out").exists()
    )


def test_a_complete_study_is_released_and_verifies(tmp_path: Path, kohort: Kohort) -> None:
    from kohort.verification import verify

    federation = Federation.create(tmp_path)
    run = federation.run()
    run.registry.quarantine("hospital-c", "E-TEST")
    code, output, errors = kohort(
        "release", tmp_path / "bundle", "--state", federation.state.root, "--out", tmp_path / "out"
    )
    assert code == 0, errors
    (folder,) = (tmp_path / "out").iterdir()
    verify(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (
        manifest["images"] == 12
        and manifest["sites"] == ["hospital-a", "hospital-b"]
        and str(folder) in output
    )
    said = "hospital-c is in quarantine (E-TEST). Nothing that it sent is among the images."
    for name in ("privacy_statement.json", "privacy_statement.md", "index.html"):
        assert said in (folder / name).read_text(), name


def test_a_complete_study_of_pairs_is_released_and_compared_with_public_pairs(
    tmp_path: Path, kohort: Kohort
) -> None:
    from kohort.verification import verify
    from tests.server.public_data.test_pairs import folder as public_folder

    federation = Federation.of_pairs(tmp_path)
    run = federation.run()
    run.registry.quarantine("hospital-c", "E-TEST")
    command = (
        "release",
        tmp_path / "bundle",
        "--state",
        federation.state.root,
        "--out",
        tmp_path / "out",
    )
    code, output, errors = kohort(*command, "--reference", public_folder(tmp_path / "public"))
    assert code == 0, errors
    (folder,) = (tmp_path / "out").iterdir()
    manifest = verify(folder)
    assert manifest.k is None and manifest.images == 12 and str(folder) in output
    # all of them are in the weights
    assert manifest.sites == (
        "hospital-a",
        "hospital-b",
        "hospital-c",
    )
    assert (
        "hospital-c is in quarantine (E-TEST). Its updates are in the weights."
        in (folder / "index.html").read_text()
    )
    names = {
        finding["name"]
        for finding in json.loads((folder / layout.FINDINGS).read_text())["findings"]
    }
    assert any("segmentation DSC" in name for name in names)
    run.registry.quarantine("hospital-b", "E-TEST")
    code, _, errors = kohort(*command)
    assert code == PolicyError.exit_code and "1 sites of the last round" in errors
