"""One line an event: when, how serious, what. As text, or as JSON for whoever collects logs.

In: `log:` of site.yaml or server.yaml. Out: the handler of a daemon's process.
Guarantees: an event is one line, whatever its text holds; every line has date, time and zone.
Not covered: what is logged. No line holds a number of patients, a file's name or the text of an
exception that could hold one; each module sees to that.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from datetime import datetime
from typing import Literal

from pydantic import Field
from rich.console import Console
from rich.logging import RichHandler

from common.config import FrozenModel

VARIABLE = "KOHORT_LOG"
NOISY = ("httpx", "httpcore", "flwr", "grpc", "uvicorn")


class LogSettings(FrozenModel):
    """How the daemon logs; it writes to standard error."""

    format: Literal["text", "json"] = Field(
        default="text",
        description="`text`: date, time with zone, level and event on one line; `json`: the same "
        "as one JSON object a line, with the keys time, level, logger and event",
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="the least serious events that are logged"
    )


class TextLines(logging.Formatter):
    """`2026-11-30T08:00:00+01:00 INFO event`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return an event as one line."""
        return f"{_time(record)} {record.levelname} {_one_line(record.getMessage())}"


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return an event as one line."""
        facts = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        return json.dumps(facts, ensure_ascii=False)


def log_to_standard_error(settings: LogSettings, *, console: Console | None = None) -> None:
    """Let this process log to standard error: rich lines on a terminal, else as `settings` say."""
    console = console or Console(stderr=True)
    handler: logging.Handler = logging.StreamHandler(console.file)
    handler.setFormatter(JsonLines() if settings.format == "json" else TextLines())
    if console.is_terminal and settings.format == "text":
        handler = RichHandler(console=console, show_path=False, log_time_format="%X")
        handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def to_environment(settings: LogSettings) -> dict[str, str]:
    """Return what tells child processes how to log."""
    return {VARIABLE: settings.model_dump_json()}


def log_as_told() -> None:
    """Log to standard error as the process above says; as the defaults say where it says nothing.

    A child's standard error is a file.
    """
    settings = LogSettings()
    text = os.environ.get(VARIABLE, "")
    if text:
        with suppress(ValueError):
            settings = LogSettings.model_validate_json(text)
    log_to_standard_error(settings)


def _time(record: logging.LogRecord) -> str:
    """When it happened, ISO 8601 with this machine's zone."""
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="seconds")


def _one_line(text: str) -> str:
    """A text without line breaks."""
    return " | ".join(text.splitlines())
