"""The ONNX graphs compute what the networks compute, to 1e-4, for every architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from common.models import stylegan, wgan
from common.models.glow_mixing import Mixing
from common.models.weights import load_weights
from common.study.architectures import build_flow
from common.study.plan import Study, load_study
from common.wire import tensors
from kohort.models import Model
from kohort.sample import open_session
from server.release import graphs, models
from server.release.graph import Exported
from tests.drawable_releases import invented_arrays
from tests.studies import small_plan, small_study, vessels_plan

DEPLOY = Path(__file__).parents[3] / "deploy"
PARITY = 1e-4
COUNT = 3
Numbers = Mapping[str, np.ndarray]


def run(study: Study, name: str, exported: Exported, inputs: Numbers) -> np.ndarray:
    """The pictures that onnxruntime computes, as a researcher's program loads the graph."""
    card = models.card_of(study, name, exported)
    session = open_session(Model(name, card, exported.onnx, ""))
    return session.run(None, dict(inputs))[0]


def numbers_for(exported: Exported, spread: float = 1.0) -> Numbers:
    """Normal numbers for each input."""
    random = np.random.default_rng(5)
    found = {}
    for name, shape in exported.inputs.items():
        normal = random.standard_normal((COUNT, *shape))
        found[name] = (spread * normal).astype(np.float32)
    return found


def public(plan: str, file: str) -> tuple[Study, tensors.Arrays]:
    """A plan of the repository, and a checkpoint that was trained for it."""
    study = load_study(DEPLOY / "studies" / plan)
    return study, tensors.read(DEPLOY / "checkpoints" / file, max_bytes=1 << 26)


def of_small(name: str, **changes: Any) -> tuple[Study, tensors.Arrays]:
    """A small plan with changes, and invented weights of one of its models."""
    plan = vessels_plan(**changes) if name == "wgan" else small_plan(**changes)
    study = Study.model_validate(plan)
    return study, invented_arrays(study, name)


GENERATORS: dict[str, Callable[[], tuple[Study, tensors.Arrays]]] = {
    "trained": lambda: public("fundus.yaml", "fundus-64/gan.safetensors"),
    "96 px": lambda: of_small("gan", intake__size_px=96, models__gan__width=8),
    "grey": lambda: of_small("gan", intake__channels=1, models__gan__latent=32),
}
PAIRS: dict[str, Callable[[], tuple[Study, tensors.Arrays]]] = {
    "trained": lambda: public("vessels.yaml", "vessels-64/wgan.safetensors"),
    "96 px": lambda: of_small("wgan", intake__size_px=96),
    "128 px": lambda: of_small("wgan", intake__size_px=128),
    **{
        f"mask first {size} px": lambda size=size: of_small(
            "wgan",
            intake__size_px=size,
            models__wgan__architecture="mask-first",
            models__wgan__start={"file": "start.safetensors", "sha256": "0" * 64},
        )
        for size in (32, 96)
    },
    **{
        f"kossen2022 {size} px": lambda size=size: of_small(
            "wgan", intake__size_px=size, models__wgan__architecture="kossen2022"
        )
        for size in (64, 96)
    },
}
FLOWS: dict[str, Callable[[], tuple[Study, tensors.Arrays]]] = {
    "trained colour": lambda: public("fundus.yaml", "fundus-64/glow.safetensors"),
    "trained grey": lambda: public("chest-demo.yaml", "chest-32/glow.safetensors"),
    "1 level": lambda: of_small("glow", models__glow__levels=1),
    "96 px, 5 levels": lambda: of_small("glow", intake__size_px=96, models__glow__levels=5),
    "2 doublings": lambda: of_small(
        "glow", intake__size_px=64, models__glow__levels=2, models__glow__doublings=2
    ),
}


@pytest.mark.parametrize("which", GENERATORS)
def test_the_generator_of_images(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study, arrays = GENERATORS[which]()
    plan, intake = study.models.gan, study.intake
    assert plan is not None
    exported = graphs.gan_graph(arrays, plan, intake.size_px, intake.channels)
    inputs = numbers_for(exported)

    # the network draws its noise maps in the order of the graph's inputs
    maps = iter([torch.from_numpy(inputs[name]) for name in inputs if name != "z"])
    monkeypatch.setattr(stylegan, "draw_normal", lambda *_: next(maps))
    network = stylegan.load_generator(arrays, plan, intake.size_px, intake.channels)
    with torch.no_grad():
        expected = network(torch.from_numpy(inputs["z"]), "random").numpy()
    assert next(maps, None) is None
    compare(run(study, "gan", exported, inputs), expected)


@pytest.mark.parametrize("which", PAIRS)
def test_the_generator_of_pairs_is_the_averaged_one(which: str) -> None:
    study, arrays = PAIRS[which]()
    plan = study.models.wgan
    assert plan is not None
    exported = graphs.wgan_graph(arrays, plan, study.intake.size_px)
    inputs = numbers_for(exported)
    average = wgan.load_average(arrays, plan, study.intake.size_px)
    with torch.no_grad():
        expected = average(torch.from_numpy(inputs["z"])).numpy()
    compare(run(study, "wgan", exported, inputs), expected)


@pytest.mark.parametrize("which", FLOWS)
def test_the_decoder_of_the_flow(which: str) -> None:
    study, arrays = FLOWS[which]()
    plan, intake = study.models.glow, study.intake
    assert plan is not None
    exported = graphs.glow_graph(arrays, plan, intake.size_px, intake.channels)
    inputs = numbers_for(exported, models.temperature_of(study, "glow"))
    flow = build_flow(study)
    load_weights(flow, arrays, "glow.")
    assert list(exported.inputs.values()) == list(flow.part_shapes)
    decoded = flow.decode([torch.from_numpy(part) for part in inputs.values()])
    compare(run(study, "glow", exported, inputs), decoded.numpy() * graphs.FLOW_GAIN)


def compare(found: np.ndarray, expected: np.ndarray) -> None:
    """The same pictures, which are no constants."""
    assert found.shape == expected.shape
    assert expected.std() > 0.01
    assert np.abs(found - expected).max() < PARITY


def test_levels_of_the_flow_are_the_products() -> None:
    # the flow's level is floor((x + 1/2) 256), that of a picture in [-1, 1] round((v + 1) 127.5)
    x = np.linspace(-0.5, 0.4999, 10_001)
    levels = np.floor((x + 0.5) * 256)
    shown = np.rint((np.clip(x * graphs.FLOW_GAIN, -1, 1) + 1) * 127.5)
    assert (levels == shown).all()


def test_the_inverse_of_a_mixing_is_that_of_the_network() -> None:
    mixing = Mixing(12, 3)
    with torch.no_grad():
        mixing.triangles.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    found = graphs.inverse_of_mixing(mixing.triangles.detach().double().numpy(), 3)
    assert np.abs(found - mixing.inverse_matrix().numpy()).max() < 1e-12


def test_a_graph_holds_the_released_tensors_and_nothing_of_the_machine() -> None:
    study = small_study()
    plan, intake = study.models.gan, study.intake
    assert plan is not None
    arrays = invented_arrays(study, "gan")
    exported = graphs.gan_graph(arrays, plan, intake.size_px, intake.channels)
    again = graphs.gan_graph(dict(reversed(arrays.items())), plan, intake.size_px, intake.channels)
    assert exported == again

    model = onnx.load_from_string(exported.onnx)
    onnx.checker.check_model(model, full_check=True)
    assert [one.version for one in model.opset_import] == [18]
    assert (model.producer_name, model.producer_version, model.doc_string) == ("kohort", "", "")
    held = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    names = {name for name in arrays if name.startswith("generator.")}
    assert names and names <= set(held)
    assert all((held[name] == arrays[name]).all() for name in names)
    assert not any(name.startswith("critic.") for name in held)
