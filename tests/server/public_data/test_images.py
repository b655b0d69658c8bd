"""Archives of public images are read within a cap."""

from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigurationError
from server.public_data import images as public_images


def test_an_npz_that_unpacks_to_more_than_the_cap_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=np.zeros((4, 32, 32, 3), np.uint8))
    monkeypatch.setattr(public_images, "SOURCE_CAP_BYTES", 4096)
    assert path.stat().st_size < 4096
    with pytest.raises(ConfigurationError, match="unpacks to"):
        public_images.read_source(path, 32, 3)
