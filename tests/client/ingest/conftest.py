"""Fixtures of the intake tests.

A study's rules, a key, and decoding without child processes where those are not the point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.ingest import decode, decode_child, request, scanning, volumes
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import Cut, Scan, VolumeFiles
from common.study.intake import Intake

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
        paths: Iterable[Path], settings: request.Settings, workers: int
    ) -> Iterator[request.Photograph | Reason]:
        for path in paths:
            try:
                yield decode_child.read_file(str(path), settings)
            except Unusable as refusal:
                yield refusal.reason

    class InProcess(decode.Decoder):
        """Answers like a child."""

        def scan(self, path: Path) -> Scan:
            return scanning.scan(str(path), self._settings.caps)

        def fits(self, slices: Sequence[Path], mask: Path) -> bool:
            return volumes.fits([str(path) for path in slices], str(mask), self._settings.caps)

        def cut(self, files: VolumeFiles, seed_of: Callable[[bytes], bytes]) -> Cut:
            mask = files.mask and (files.mask[0], str(files.mask[1]))
            volume = volumes.read_volume(
                [str(path) for path in files.slices], mask, self._settings.caps
            )
            found = np.empty((0, 0, 0, 2), np.uint8)
            if volume.refusal is None:
                found = volumes.patches(
                    volume, seed_of(volume.digest), self._settings.patches, self._settings.size_px
                )
            facts = (volume.digest, volume.slices, volume.look, volume.refusal)
            return Cut(*facts, found, volume.left_out)

    monkeypatch.setattr(decode, "decode_all", decode_all)
    monkeypatch.setattr(decode, "Decoder", InProcess)
