"""One operator with two versions of a release, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.catalogues import Operator, operator


@pytest.fixture(scope="package")
def built(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    return operator(tmp_path_factory.mktemp("operator") / "built", "1.0.0", "1.1.0")


@pytest.fixture
def eyes(built: Operator, tmp_path: Path) -> Operator:
    """That operator, with folders of this test's own."""
    return built.copy(tmp_path / "eyes")
