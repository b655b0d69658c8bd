"""What models/ of a release holds, from which weights, and always as the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.study.plan import Study
from common.wire import tensors
from kohort.models import Card
from server.operator.caps import models_bytes
from server.release.models import write_models
from tests.drawable_releases import invented_weights
from tests.studies import small_plan, vessels_plan


def cards(folder: Path, plan: dict[str, Any]) -> dict[str, Card]:
    """Write the models of a plan with invented weights; returns their cards by name."""
    study = Study.model_validate(plan)
    folder.mkdir()
    write_models(folder, study, invented_weights(study, folder / "weights"))
    files = sorted((folder / "models").glob("*.json"))
    return {file.stem: Card.model_validate_json(file.read_bytes()) for file in files}


def test_a_model_is_weights_architecture_and_graph_and_the_same_inputs_give_the_same_bytes(
    tmp_path: Path,
) -> None:
    cards(tmp_path / "one", small_plan())
    cards(tmp_path / "two", small_plan())
    files = sorted((tmp_path / "one" / "models").iterdir())
    assert [file.name for file in files] == [
        "gan.json", "gan.onnx", "gan.safetensors", "glow.json", "glow.onnx", "glow.safetensors",
    ]  # fmt: skip
    for file in files:
        assert file.read_bytes() == (tmp_path / "two" / "models" / file.name).read_bytes()
    weights = tmp_path / "one" / "weights" / "gan.safetensors"
    assert weights.read_bytes() == files[2].read_bytes()
    # what the plan's caps count on
    sizes = [file.stat().st_size for file in files if file.suffix == ".safetensors"]
    assert sum(file.stat().st_size for file in files) <= models_bytes(sizes)


def test_a_card_has_the_plans_sizes(tmp_path: Path) -> None:
    found = cards(tmp_path / "images", small_plan())
    assert found["gan"].architecture == {"width": 16, "latent": 16}
    assert found["gan"].label == found["glow"].label == "unlabelled"
    assert (found["gan"].planes, found["gan"].mask, found["gan"].temperature) == (3, False, 1.0)
    assert found["glow"].temperature == 0.7
    assert found["glow"].numbers == 3 * 32 * 32
    pairs = cards(tmp_path / "pairs", vessels_plan())["wgan"]
    assert pairs.architecture["architecture"] == "small"
    assert (pairs.tensors, pairs.label) == ("average.", "vessels")
    assert (pairs.planes, pairs.channels, pairs.mask) == (2, 1, True)


def test_the_flow_is_drawn_at_the_temperature_of_the_plans_own_draws(tmp_path: Path) -> None:
    plan = small_plan(synthesis__privatize__prior_temperature=0.5)
    assert cards(tmp_path / "a", plan)["glow"].temperature == 0.5
    plan = small_plan()
    del plan["synthesis"]["privatize"]
    assert cards(tmp_path / "b", plan)["glow"].temperature == 1.0


def test_weights_of_another_network_are_copied_alone(tmp_path: Path) -> None:
    study = Study.model_validate(small_plan())
    files = invented_weights(study, tmp_path / "weights")
    arrays = tensors.read(files["gan"], max_bytes=1 << 26)
    arrays["generator.constant"] = arrays["generator.constant"][..., :2]
    tensors.write(files["gan"], arrays)
    write_models(tmp_path, study, files)
    names = {file.name for file in (tmp_path / "models").iterdir()}
    assert names == {"gan.safetensors", "glow.json", "glow.onnx", "glow.safetensors"}


def test_a_card_is_json_with_sorted_keys(tmp_path: Path) -> None:
    cards(tmp_path / "x", vessels_plan())
    text = (tmp_path / "x" / "models" / "wgan.json").read_text()
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"
