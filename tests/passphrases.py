"""Passphrases as a program gets them: through a descriptor."""

from __future__ import annotations

import os

import pytest

from common import passphrase


def descriptor_of(text: bytes) -> int:
    """Return the reading end of a pipe that holds a text."""
    reader, writer = os.pipe()
    os.write(writer, text)
    os.close(writer)
    return reader


def forget_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no passphrase of this machine, or of another test, count."""
    monkeypatch.setenv(passphrase.VARIABLE, "")
    monkeypatch.delenv(passphrase.CREDENTIALS, raising=False)
