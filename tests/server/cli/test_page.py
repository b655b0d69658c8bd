"""`kohort-server page`, as an operator types it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigurationError
from tests.server.cli.reports import Kohort


def test_the_page_is_written_once_for_cron(state: Path, tmp_path: Path, kohort: Kohort) -> None:
    target = tmp_path / "page.html"
    code, output, errors = kohort("page", "--state", state, "--once", target)
    assert code == 0, errors
    assert output == f"written {target}; 0 alerts\n"
    text = target.read_text()
    assert "<title>demo: operator's page</title>" in text or "demo: operator&#39;s page" in text
    assert "No site is enrolled." in text and "No study has begun." in text
    assert 'http-equiv="refresh"' not in text


def test_wrong_arguments_end_with_2_and_a_hint(state: Path, tmp_path: Path, kohort: Kohort) -> None:
    both = ("--port", 9480, "--socket", tmp_path / "s")
    for arguments in (
        ("--state", tmp_path / "nowhere"),
        ("--state", state, *both),
        ("--state", state, "--once", tmp_path / "p.html", "--port", 9480),
    ):
        code, _, errors = kohort("page", *arguments)
        assert code == ConfigurationError.exit_code, arguments
        assert "hint:" in errors


def test_it_listens_on_this_machine_alone(
    state: Path, kohort: Kohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.page import listening

    heard: list[tuple[Any, ...]] = []

    def serve(app: Callable[..., Any], listener: socket.socket) -> None:
        with listener:
            heard.append(listener.getsockname())

    monkeypatch.setattr(listening, "serve", serve)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code, output, errors = kohort("page", "--state", state, "--port", port)
    assert code == 0, errors
    assert f"http://127.0.0.1:{port}/" in output
    assert heard == [("127.0.0.1", port)]
