"""Every code of an alert stands on a page of the reference."""

from __future__ import annotations

import re
from pathlib import Path

from client.fleet.health import STATES
from common.codes import all_advice
from docs.generator.status import ALERTS

ROOT = Path(__file__).parents[2]
INSPECTION = sorted((ROOT / "client/cli/inspection").glob("*.py"))
SOURCES = (
    ROOT / "client/daemon/standing.py",
    *INSPECTION,
    ROOT / "server/rounds/standing.py",
)
CODE = re.compile(r'"([A-Z]+(?:-[A-Z]+)+)"')


def test_every_code_of_an_alert_stands_in_the_reference() -> None:
    known = {*ALERTS, *STATES, *all_advice()}
    found = set()
    for source in SOURCES:
        found |= set(CODE.findall(source.read_text()))
    assert found - known == set()
    assert set(ALERTS) <= found
