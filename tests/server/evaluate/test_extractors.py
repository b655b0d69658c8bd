"""Texture features are fixed; every tensor of a network from a file must fit."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import ConfigurationError, RefusedError
from common.models.pretrained_features import load_features
from common.wire import tensors
from server.cli.publish import read_extractor
from server.evaluate import extractors

torch.set_num_threads(1)


def pictures(count: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, channels), dtype=np.uint8)


def test_texture_features_are_fixed_and_of_each_image_alone() -> None:
    for channels in (1, 3):
        images, texture = pictures(4, channels), extractors.Texture(8)
        found = texture.features(images)
        assert found.shape == (4, 48)
        assert np.array_equal(found, extractors.Texture(8).features(images))
        assert np.allclose(texture.features(images[1:2]), found[1:2], atol=1e-5)


def test_the_pretrained_network_is_computed_in_float64_in_one_unit() -> None:
    images = pictures(2, 1)
    found = extractors.Pretrained().features(images)
    wanted = load_features().of_images(images) / extractors.FEATURE_UNIT
    assert found.shape == (2, 112)
    assert 0 < np.abs(found - wanted).max() < 1e-4  # float32 differs, so found is not float32


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """resnet18 with weights drawn here."""
    from torchvision.models import get_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            name: t.numpy() for name, t in get_model("resnet18", weights=None).state_dict().items()
        }


def written(path: Path, arrays: dict[str, np.ndarray]) -> tuple[Path, str]:
    tensors.write(path, arrays)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_network_gives_the_features_before_its_classifier(
    tmp_path: Path, weights: dict[str, np.ndarray]
) -> None:
    from torchvision.models import get_model

    network = extractors.load_network("resnet18", *written(tmp_path / "w.safetensors", weights))
    grey = pictures(2, 1)
    found = network.features(grey)
    assert found.shape == (2, 512)
    assert np.allclose(network.features(grey.repeat(3, axis=3)), found, atol=1e-4)
    whole = get_model("resnet18", weights=None).eval()
    whole.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    scores = found.astype(np.float32) @ weights["fc.weight"].T + weights["fc.bias"]
    mean, deviation = (
        torch.tensor(v).view(1, 3, 1, 1)
        for v in (extractors.IMAGENET_MEAN, extractors.IMAGENET_DEVIATION)
    )
    x = torch.from_numpy(grey.repeat(3, axis=3)).permute(0, 3, 1, 2).float() / 255
    x = torch.nn.functional.interpolate(x, 224, mode="bilinear", antialias=True)
    with torch.no_grad():
        assert np.allclose(whole((x - mean) / deviation).numpy(), scores, atol=1e-4)


@pytest.mark.parametrize(
    "fault", ["missing", "unknown", "misshapen", "not finite", "digest", "architecture", "file"]
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, weights: dict[str, np.ndarray], fault: str
) -> None:
    given, architecture = dict(weights), "resnet18"
    if fault == "missing":
        del given["conv1.weight"]
    elif fault == "unknown":
        given["extra.weight"] = np.zeros(1, np.float32)
    elif fault == "misshapen":
        given["bn1.bias"] = np.zeros(3, np.float32)
    elif fault == "not finite":
        given["bn1.bias"] = np.full(64, np.nan, np.float32)
    elif fault == "architecture":
        architecture = "alexnet"
    path, digest = written(tmp_path / "w.safetensors", given)
    if fault == "digest":
        digest = "0" * 64
    if fault == "file":
        path = tmp_path / "none.safetensors"
    with pytest.raises(ConfigurationError if fault in ("architecture", "file") else RefusedError):
        extractors.load_network(architecture, path, digest)


def test_the_release_commands_option_names_architecture_file_and_digest(
    tmp_path: Path, weights: dict[str, np.ndarray]
) -> None:
    path, digest = written(tmp_path / "odd:name.safetensors", weights)
    found = read_extractor(f"resnet18:{path}:{digest}")
    assert found is not None and found.name == f"resnet18 ({digest[:12]})"
    assert read_extractor("") is None
    with pytest.raises(ConfigurationError, match="ARCHITECTURE"):
        read_extractor("resnet18")
