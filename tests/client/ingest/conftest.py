"""Fixtures of the intake tests: a study's rules, a key, and decoding without child processes where those are not the point."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client.ingest import decode
from client.ingest.quarantine import Reason, Unusable
from common.study import Intake

KEY = bytes(range(32))


@pytest.fixture
def key() -> bytes:
    return KEY


@pytest.fixture
def intake() -> Callable[..., Intake]:
    """Fundus rules with three ordered labels; keyword arguments change them, unchecked."""

    def build(**changes: Any) -> Intake:
        rules: dict[str, Any] = {
            "dicom_modalities": ("OP",),
            "size_px": 64,
            "channels": 3,
            "labels": ("none", "mild", "severe"),
            "ordinal_labels": True,
            "merge_labels": {},
            "stratify_laterality": False,
            "window": None,
        }
        return Intake.model_construct(**(rules | changes))

    return build


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode in this process: for tests of rules, where a child would only cost seconds."""

    def decode_all(
        paths: Iterable[Path], settings: decode.Settings, workers: int
    ) -> Iterator[decode.Photograph | Reason]:
        for path in paths:
            try:
                yield decode.read_file(str(path), settings)
            except Unusable as refusal:
                yield refusal.reason

    monkeypatch.setattr(decode, "decode_all", decode_all)
