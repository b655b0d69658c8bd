"""Pinned local weights: the right file loads without a network.

Every other file is a ConfigurationError before a tensor is read.
"""

import hashlib
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.models
from torchvision.models.resnet import BasicBlock, ResNet

from benchmarks.paper import external
from common.config import load_yaml
from common.errors import ConfigurationError
from common.wire.tensors import dumps

torch.set_num_threads(1)


def saved(path: Path, network: torch.nn.Module, **more: np.ndarray) -> external.LocalWeights:
    arrays = {name: value.numpy() for name, value in network.state_dict().items()} | more
    path.write_bytes(dumps(arrays))
    return external.LocalWeights(file=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def small_resnet(**_: object) -> ResNet:
    """A ResNet of torchvision's own parts, its batch norms with used statistics."""
    network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)
    for name, value in network.state_dict().items():
        if "running_mean" in name:
            value.normal_(0, 0.1)
    return network


@pytest.fixture(autouse=True)
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torchvision.models, "resnet50", small_resnet)


def test_the_pinned_file_of_a_resnet_gives_its_unit_features_without_its_head(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    network, x = small_resnet(), torch.randn(2, 3, 32, 32)
    content = external.load_content(saved(tmp_path / "moco.safetensors", network))
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = torch.nn.functional.normalize(network.eval()(x), dim=1)
        np.testing.assert_allclose(content(x), expected, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in content.parameters())


def test_vgg_is_cut_after_the_relu_of_its_second_convolution(tmp_path: Path) -> None:
    texture = external.Texture()
    more = {"classifier.0.bias": np.ones(3, np.float32)}
    loaded = external.load_texture(saved(tmp_path / "vgg.safetensors", texture, **more))
    seen = loaded(torch.randn(1, 3, 8, 8))
    assert seen.shape == (1, 64, 8, 8)
    assert bool((seen >= 0).all())
    assert bool((seen == 0).any())
    assert torch.equal(loaded.features["2"].weight, texture.features["2"].weight)


@pytest.mark.parametrize("what", ["missing", "another file", "too large"])
def test_a_wrong_file_is_refused_before_a_tensor_is_parsed(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = saved(tmp_path / "vgg.safetensors", external.Texture())
    monkeypatch.setattr(external, "loads", lambda *_, **__: pytest.fail("parsed"))
    if what == "missing":
        weights.file.unlink()
    elif what == "another file":
        weights.file.write_bytes(weights.file.read_bytes() + b" ")
    else:
        monkeypatch.setattr(external, "WEIGHTS_CAP_BYTES", 100)
    message = {"missing": "no such file", "another file": "SHA-256 is", "too large": "larger than"}[
        what
    ]
    with pytest.raises(ConfigurationError, match=message) as caught:
        external.load_texture(weights)
    assert caught.value.hint


@pytest.mark.parametrize("what", ["shape", "absent", "not finite"])
def test_tensors_that_do_not_fit_are_refused(what: str, tmp_path: Path) -> None:
    texture = external.Texture(32 if what == "shape" else 64)
    if what == "absent":
        del texture.features["2"]
    if what == "not finite":
        texture.features["2"].bias.data[0] = torch.nan
    with pytest.raises(ConfigurationError, match="do not fit this network: features"):
        external.load_texture(saved(tmp_path / "vgg.safetensors", texture))


def test_a_batch_norm_that_cannot_be_folded_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="batch norm"):
        external.fold_batch_norms(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.BatchNorm2d(3)))


def test_the_configuration_pins_both_files(tmp_path: Path) -> None:
    path = tmp_path / "features.yaml"
    path.write_text(
        f"vgg19: {{file: a.safetensors, sha256: {'0' * 64}}}\n"
        "moco_v2: {file: b.safetensors, sha256: x}\n"
    )
    with pytest.raises(ConfigurationError, match="moco_v2"):
        load_yaml(path, external.PaperFeatures)
