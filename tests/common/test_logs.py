"""One line an event, with time and level, as text or as JSON."""

from __future__ import annotations

import io
import json
import logging
from datetime import datetime

import pytest
from rich.console import Console

from common import logs
from common.logs import LogSettings, log_as_told, log_to_standard_error, to_environment


def logged(settings: LogSettings, *, terminal: bool = False) -> list[str]:
    """What two events look like; one has a line break in it."""
    file = io.StringIO()
    log_to_standard_error(settings, console=Console(file=file, force_terminal=terminal))
    logging.getLogger("kohort").info("small: %s: answered", "train gan round 1 of 2")
    logging.getLogger("kohort").warning("two\nlines")
    logging.getLogger("kohort").debug("too small")
    logging.getLogger("httpx").info("noise")
    return file.getvalue().splitlines()


def test_text_is_one_line_an_event_with_zone_and_level() -> None:
    first, second = logged(LogSettings())
    time, level, event = first.split(" ", 2)
    assert datetime.fromisoformat(time).tzinfo is not None
    assert (level, event) == ("INFO", "small: train gan round 1 of 2: answered")
    assert second.endswith(" WARNING two | lines")


def test_json_is_one_object_an_event_also_on_a_terminal() -> None:
    lines = logged(LogSettings(format="json"), terminal=True)
    first, second = (json.loads(line) for line in lines)
    assert set(first) == {"time", "level", "logger", "event"}
    assert datetime.fromisoformat(first["time"]).tzinfo is not None
    assert (first["level"], first["logger"]) == ("info", "kohort")
    assert (second["level"], second["event"]) == ("warning", "two\nlines")


def test_the_level_leaves_out_what_is_less_serious() -> None:
    assert len(logged(LogSettings(level="warning"))) == 1


@pytest.mark.parametrize("told", [True, False], ids=["told", "damaged"])
def test_a_child_logs_as_it_is_told(
    told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [(name, value)] = to_environment(LogSettings(format="json")).items()
    monkeypatch.setenv(name, value if told else "{")
    log_as_told()
    logging.getLogger("kohort").info("an event")
    line = capsys.readouterr().err
    assert line.startswith("{") is told and "an event" in line
    assert name == logs.VARIABLE
