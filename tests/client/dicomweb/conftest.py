"""A server with three images, and a site that asks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client.dicomweb import connection
from client.dicomweb.fetch import Fetched, fetch_images
from client.state.config import SiteConfig
from tests.client.dicomweb.dicomweb_server import Server, serving

KEY = bytes(range(32))
Fetch = Callable[..., Fetched]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(connection, "PAUSES_S", (0.0, 0.0))
    made = Server(
        images={
            ("1.1", "1.1.1", "1.1.1.1"): b"MARKERSURNAME one" * 9,
            ("1.1", "1.1.2", "1.1.2.1"): b"a hand",
            ("1.2", "1.2.1", "1.2.1.1"): b"two",
        },
        modality={"1.1.1": "DX", "1.1.2": "DX", "1.2.1": "CT"},
        body_part={"1.1.1": "CHEST", "1.1.2": "HAND"},
    )
    with serving(made) as running:
        yield running


def site(server: Server, tmp_path: Path, **keys: Any) -> SiteConfig:
    limits = {"max_file_mib": keys.pop("max_file_mib", 1)}
    asks = {"url": server.url, "modalities": ["DX", "CT"], "timeout_s": 5.0} | keys
    data = {"folder": str(tmp_path / "state" / "fetched")}
    return SiteConfig.model_validate(
        {"site": "hospital-a", "data": data, "dicomweb": asks, "limits": limits}
    )


@pytest.fixture
def fetch(server: Server, tmp_path: Path) -> Fetch:
    def call(credential: str | None = None, **keys: Any) -> Fetched:
        config = site(server, tmp_path, **keys)
        return fetch_images(config, KEY, credential, lambda done, total: None)

    return call
