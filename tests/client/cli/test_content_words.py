"""What enters, in the words of `approve`, `ingest` and `check`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from client.cli.letter import content_lines
from client.cli.serve import ingest_lines
from client.ingest import refresh
from client.ingest.build import IngestReport
from client.ingest.refresh import choices_of
from client.ingest.request import Choices
from client.state.config import Data
from common.study.intake import Intake
from tests.client.cli.typing_commands import Cli


def test_the_letter_says_what_a_header_may_name() -> None:
    fields = {"size_px": 64, "channels": 1, "labels": ["x"]}
    chest = Intake.model_validate({"dicom_modalities": ["DX"], **fields})
    assert list(content_lines(chest)) == [
        "body part CHEST",
        "view PA or AP",
        "made FOR PRESENTATION",
    ]
    assert list(content_lines(Intake.model_validate({"dicom_modalities": ["MR"], **fields}))) == []


def test_ingest_says_how_many_headers_are_silent() -> None:
    report = IngestReport(5, 5, 0, 1, {"wrong-view": 2}, "", {"view": 3})
    lines = list(ingest_lines(report))
    assert "3 files were taken though their headers do not name the view" in lines


def test_site_yaml_says_what_is_vouched_for_and_check_repeats_it(
    joined: tuple[Path, Path], cli: Cli
) -> None:
    assert choices_of(Data(folder="x")) == Choices(refuse_silent=False, accept_derived=False)
    stated = Data(folder="x", silent_headers="refuse", derived="accept", text_detector="off")
    assert choices_of(stated) == Choices(refuse_silent=True, accept_derived=True)
    state, _ = joined
    _, before, _ = cli("check", "--state", state, "--offline")
    assert "vouches" not in before
    text = (state / "site.yaml").read_text()
    (state / "site.yaml").write_text(text.replace('derived: "refuse"', 'derived: "accept"'))
    _, after, _ = cli("check", "--state", state, "--offline")
    assert "this hospital vouches that images with ImageType SECONDARY are plain copies" in after


@pytest.mark.parametrize(
    ("switch", "installed", "found"),
    [("auto", True, True), ("auto", False, False), ("on", True, True), ("off", True, False)],
)
def test_text_is_looked_for_where_the_package_is_installed_and_the_site_allows_it(
    switch: Literal["auto", "on", "off"],
    installed: bool,
    found: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresh, "is_installed", lambda: installed)
    assert choices_of(Data(folder="x", text_detector=switch)).find_text is found


def test_a_detector_that_must_be_and_is_not_installed_is_named(
    joined: tuple[Path, Path], cli: Cli
) -> None:
    state, _ = joined
    _, out, _ = cli("check", "--state", state, "--offline")
    assert "text in pixels is not looked for: data.text_detector is auto" in out
    text = (state / "site.yaml").read_text()
    (state / "site.yaml").write_text(text.replace('detector: "auto"', 'detector: "on"'))
    _, _, err = cli("check", "--state", state, "--offline")
    assert "E-TEXT-DETECTOR" in err
