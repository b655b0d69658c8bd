"""The signed bundle: what opens, what is refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigurationError, KohortError, RefusedError
from common.study.bundle import copy_bundle, open_bundle, write_bundle
from common.wire import signing, tensors
from tests.studies import small_plan


def written(folder: Path, **changes: object) -> Path:
    """A plan with a checkpoint on disk."""
    tensors.write(folder / "gan.safetensors", {"generator.w": np.ones(3, np.float32)})
    digest = hashlib.sha256((folder / "gan.safetensors").read_bytes()).hexdigest()
    data = small_plan(models__gan__start={"file": "gan.safetensors", "sha256": digest}, **changes)
    (folder / "study.yaml").write_text(json.dumps(data))
    return folder / "study.yaml"


def test_a_bundle_opens_with_the_operators_key_alone(tmp_path: Path) -> None:
    key = signing.new_key()
    study = write_bundle(written(tmp_path), key, tmp_path / "bundle")
    assert open_bundle(tmp_path / "bundle", key.public_key()) == study
    assert copy_bundle(tmp_path / "bundle", key.public_key(), tmp_path / "copy") == study
    with pytest.raises(RefusedError, match="another key"):
        open_bundle(tmp_path / "bundle", signing.new_key().public_key())


@pytest.mark.parametrize("name", ["study.yaml", "study.sig", "checkpoints/gan.safetensors"])
def test_an_altered_bundle_is_refused(tmp_path: Path, name: str) -> None:
    key = signing.new_key()
    write_bundle(written(tmp_path), key, tmp_path / "bundle")
    path = tmp_path / "bundle" / name
    data = path.read_bytes()
    if name == "study.yaml":
        path.write_bytes(data.replace(b'"epsilon": 8.0', b'"epsilon": 9.0'))
    else:
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    with pytest.raises(KohortError):
        open_bundle(tmp_path / "bundle", key.public_key())


def test_a_checkpoint_other_than_the_pinned_one_is_not_signed(tmp_path: Path) -> None:
    path = written(tmp_path)
    tensors.write(tmp_path / "gan.safetensors", {"generator.w": np.zeros(3, np.float32)})
    with pytest.raises(RefusedError, match="the plan pins"):
        write_bundle(path, signing.new_key(), tmp_path / "bundle")
    (tmp_path / "gan.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="is missing"):
        write_bundle(path, signing.new_key(), tmp_path / "bundle")
