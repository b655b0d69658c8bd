"""`kohort sample`: more pictures from a release's models, which are no release."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder
from typer.testing import CliRunner

import kohort
from common.study.plan import Study
from kohort import sample
from kohort.commands import app
from kohort.drawn_claim import STATEMENT, claim_of_drawn
from kohort.drawn_folder import write_drawn
from kohort.errors import ConfigurationError, EnvironmentFault, RefusedError
from kohort.layout import DRAWN, SUMS
from kohort.manifest import Manifest, read_manifest
from kohort.models import Model, read_model
from kohort.sample import draw, draw_from, open_session
from kohort.verification import verify
from server.release.graph import Graph
from server.release.statement import privacy_statement
from tests.drawable_releases import drawable_release
from tests.releases import ACCOUNT, small_release
from tests.studies import small_plan, vessels_plan

GUIDE = Path(__file__).parents[2] / "docs" / "researcher" / "using.md"
GAUSSIAN = {"share": 1.0, "mechanism": "gaussian", "epsilon": 4.0, "delta": 1e-6}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawable_release(tmp_path_factory.mktemp("drawable"))


@pytest.fixture(scope="module")
def drawn(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures from the generator, written by the command."""
    out = tmp_path_factory.mktemp("drawn") / "more"
    done = CliRunner().invoke(app, ["sample", str(release), "-n", "70", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "70 pictures drawn from gan of small 1.0.0" in done.output
    assert "(8, 1e-05)-DP per patient, zero-out" in done.output
    assert "k-anonymity is not claimed" in done.output
    assert "signed by a key that you have not checked" in done.stderr
    return out


# --- the folder -----------------------------------------------------------------------------------


def test_image_folder_loads_what_the_table_lists(drawn: Path) -> None:
    dataset = ImageFolder(str(drawn / "data" / "train"))
    assert len(dataset) == 70 and dataset.classes == ["unlabelled"]
    assert dataset[0][0].size == (32, 32) and dataset[0][0].mode == "RGB"
    rows = list(csv.DictReader((drawn / "metadata.csv").read_text().splitlines()))
    files = sorted(path.relative_to(drawn).as_posix() for path in drawn.rglob("*.png"))
    assert [row["file_name"] for row in rows] == files
    assert list(rows[0]) == ["file_name", "label", "mechanism", "synthetic"]


def test_pictures_differ_and_say_that_an_algorithm_made_them(drawn: Path) -> None:
    files = sorted(drawn.rglob("*.png"))
    assert len({file.read_bytes() for file in files}) == 70
    with Image.open(files[0]) as image:
        image.load()
        assert "trainedAlgorithmicMedia" in image.info["XML:com.adobe.xmp"]


def test_it_does_not_look_like_a_release_and_is_not_verified_as_one(drawn: Path) -> None:
    names = {path.name for path in drawn.iterdir()}
    assert names == {"README.md", "data", DRAWN, "metadata.csv"}
    with pytest.raises(RefusedError, match="drawn by a user with `kohort sample`, not a signed"):
        verify(drawn)


def test_it_says_from_what_it_was_drawn_and_what_holds(release: Path, drawn: Path) -> None:
    facts = json.loads((drawn / DRAWN).read_text())
    sums = hashlib.sha256((release / SUMS).read_bytes()).hexdigest()
    assert facts["release"]["sums"] == sums and facts["signed"] is False
    model = hashlib.sha256((release / "models/gan.onnx").read_bytes()).hexdigest()
    assert (facts["model"], facts["model_sha256"]) == ("gan", model)
    statement = json.loads((release / STATEMENT).read_text())
    stated = next(claim for claim in statement["claims"] if claim["kind"] == "updates")
    for key in ("epsilon", "delta", "adjacency", "unit", "given"):
        assert facts["claim"][key] == stated[key], key
    assert facts["claim"]["k"] is None
    text = (drawn / "README.md").read_text()
    for words in (facts["claim"]["sentence"], *stated["given"], "not the signed release", sums):
        assert words in text


def test_a_seed_draws_the_same_again_and_none_does_not(release: Path) -> None:
    def pixels(seed: int | None) -> bytes:
        return b"".join(one.image.tobytes() for one in draw(release, 3, seed=seed, model="glow"))

    assert pixels(4) == pixels(4) != pixels(5)
    assert pixels(None) != pixels(None)


def test_the_guides_programs_run(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    text = GUIDE.read_text().split("## Draw more")[1].split("\n## ")[0]
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(programs) == 2
    (tmp_path / "fundus").symlink_to(release)
    monkeypatch.chdir(tmp_path)
    made: dict[str, np.ndarray] = {}
    for program in programs:
        exec(program, made)
    assert capsys.readouterr().out == "(32, 32, 3) None unlabelled\n" * 8
    assert made["levels"].shape == (8, 3, 32, 32) and made["levels"].dtype == np.uint8


# --- what is refused ------------------------------------------------------------------------------


def test_a_loaded_release_draws_as_the_command_does(release: Path) -> None:
    loaded = kohort.load(release, verify=False)
    [one] = loaded.sample(1, seed=7, model="glow")
    [same] = draw(release, 1, seed=7, model="glow")
    assert one.label == same.label and np.array_equal(one.image, same.image)


@pytest.mark.parametrize("count", [0, 100_001])
def test_too_few_and_too_many_are_refused(release: Path, count: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected 1 to 100,000"):
        write_drawn(release, count, tmp_path / "x")
    with pytest.raises(ConfigurationError, match="expected 1 to 100,000"):
        draw(release, count)


def test_a_folder_that_exists_is_refused_and_stays_as_it_is(release: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="exists already"):
        write_drawn(release, 1, tmp_path)
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="exists already"):
        write_drawn(release, 1, dangling)
    assert list(tmp_path.iterdir()) == [dangling]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError(28, "No space left")])
def test_what_is_interrupted_leaves_nothing(
    release: Path, tmp_path: Path, kind: type[BaseException] | OSError
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise kind

    with pytest.raises((KeyboardInterrupt, EnvironmentFault)):
        write_drawn(release, 4, tmp_path / "more", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_names_the_extra(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigurationError, match=r"extra \[sample\].*onnxruntime") as caught:
        write_drawn(release, 1, tmp_path / "more")
    assert "kohort[sample]" in caught.value.hint


def test_a_release_without_models_and_an_absent_model_are_named(
    release: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="this release holds gan, glow"):
        draw(release, 1, model="wgan")
    bare, _ = small_release(tmp_path)
    with pytest.raises(ConfigurationError, match="holds no model to draw from"):
        draw(bare, 1)


def test_only_a_release_that_verifies_is_drawn_from(release: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(release, tmp_path / "copy")
    (copy / "LICENSE").write_text("changed")
    with pytest.raises(RefusedError, match="LICENSE: altered"):
        draw(copy, 1)
    with pytest.raises(RefusedError, match="LICENSE: altered"):
        write_drawn(copy, 1, tmp_path / "more")
    with pytest.raises(RefusedError, match="you trust"):
        draw(release, 1, trust=frozenset({"SHA256:other"}))
    arguments = ["sample", str(release), "-n", "1", "--out", str(tmp_path / "more"), "--strict"]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, RefusedError)
    assert "a key that you have not checked" in str(done.exception)
    assert not (tmp_path / "more").exists()


READERS = {
    "models/gan.onnx": read_model,
    "models/gan.json": read_model,
    STATEMENT: lambda folder: claim_of_drawn(folder, read_manifest(folder)),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_changes_after_the_check_is_not_read(
    release: Path, tmp_path: Path, name: str
) -> None:
    copy = shutil.copytree(release, tmp_path / "copy")
    (copy / name).write_bytes((copy / name).read_bytes() + b" ")
    with pytest.raises(RefusedError, match=f"{name}: altered"):
        READERS[name](copy)


# --- a hostile model ------------------------------------------------------------------------------


def changed(release: Path, **changes: object) -> Model:
    """The release's generator with other bytes or another card."""
    return dataclasses.replace(read_model(release, "gan"), **changes)  # type: ignore[arg-type]


def adding(shape: tuple[int, ...], file: str = "") -> bytes:
    """A graph that returns its input and a tensor, which lies in a file if one is named."""
    graph = Graph()
    tensor = graph.add_tensor("t", np.zeros((1, *shape), np.float32))
    total = graph("Add", graph.add_input("z", shape), tensor)
    model = onnx.load_from_string(graph.finish("adding", total, shape).onnx)
    if file:
        onnx.external_data_helper.set_external_data(model.graph.initializer[0], file)
        model.graph.initializer[0].ClearField("raw_data")
    return model.SerializeToString()


def test_what_is_no_graph_or_another_one_is_refused(release: Path) -> None:
    with pytest.raises(RefusedError, match=r"models/gan\.onnx: onnxruntime cannot load it"):
        open_session(changed(release, onnx=b"no graph"))
    with pytest.raises(RefusedError, match="other inputs or outputs"):
        open_session(changed(release, onnx=adding((3, 32, 32))))


def test_onnxruntimes_own_format_is_not_read(release: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = os.fspath(tmp_path / "gan.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.log_severity_level = 4
    model = read_model(release, "gan")
    onnxruntime.InferenceSession(model.onnx, options, providers=["CPUExecutionProvider"])
    with pytest.raises(RefusedError, match="cannot load it"):
        open_session(changed(release, onnx=(tmp_path / "gan.ort").read_bytes()))


def test_a_graph_reads_no_file(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shape = (3, 64, 64)
    (tmp_path / "private").write_bytes(np.ones(shape, np.float32).tobytes())
    for file in ("private", os.fspath(tmp_path / "private")):
        with pytest.raises(RefusedError, match="cannot load it"):
            open_session(changed(release, onnx=adding(shape, file)))


def test_pictures_of_another_shape_and_numbers_that_are_none(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Session:
        def __init__(self, values: np.ndarray) -> None:
            self.values = values

        def run(self, names: list[str], inputs: object) -> list[np.ndarray]:
            return [self.values]

    values = np.full((1, 3, 32, 32), np.nan, np.float32)
    values[0, 1] = np.inf
    monkeypatch.setattr(sample, "open_session", lambda model: Session(values))
    pixels = next(draw_from(read_model(release), 1)).image
    assert (pixels == (0, 255, 0)).all()
    monkeypatch.setattr(sample, "open_session", lambda model: Session(values[..., 1:]))
    with pytest.raises(RefusedError, match="pictures of shape"):
        next(draw_from(read_model(release), 1))


# --- what holds of drawn pictures -----------------------------------------------------------------


def stated(study: Study, folder: Path, **changes: object) -> tuple[Path, Manifest]:
    """A folder with the study's privacy statement and its digest, and the facts of its manifest."""
    folder.mkdir()
    statement = privacy_statement(study, {}, ACCOUNT) | changes
    data = json.dumps(statement).encode()
    (folder / STATEMENT).write_bytes(data)
    (folder / SUMS).write_text(f"{hashlib.sha256(data).hexdigest()}  {STATEMENT}\n")
    privacy = study.privacy
    return folder, Manifest.model_construct(epsilon=privacy.epsilon, delta=privacy.delta)


COVERING = small_plan(synthesis__grouping="random", synthesis__privatize=GAUSSIAN)
STUDIES = {
    "gan and glow": (small_plan(), "what each site sent through training: (8, 1e-05)"),
    "wgan": (vessels_plan(), "what each site sent through training: (8, 1e-05)"),
    "averages counted in": (COVERING, "and as averages of patients: (8, 1e-05)"),
}


@pytest.mark.parametrize("which", STUDIES)
def test_the_claim_is_that_of_the_updates(which: str, tmp_path: Path) -> None:
    plan, words = STUDIES[which]
    claim = claim_of_drawn(*stated(Study.model_validate(plan), tmp_path / "x"))
    assert words in claim.sentence
    assert "of all 3 sites it is the sum: (24, 3e-05)" in claim.sentence
    assert "k-anonymity is not claimed" in claim.sentence
    assert any("starting checkpoints are taken as public" in given for given in claim.given)
    assert (claim.epsilon, claim.delta, claim.k) == (8.0, 1e-5, None)


def test_without_a_claim_on_the_updates_nothing_is_drawn(tmp_path: Path) -> None:
    study = Study.model_validate(small_plan())
    folder, manifest = stated(study, tmp_path / "none", claims=[])
    with pytest.raises(RefusedError, match="expected one claim on the updates"):
        claim_of_drawn(folder, manifest)
    folder, manifest = stated(study, tmp_path / "another")
    smaller = Manifest.model_construct(epsilon=1.0, delta=manifest.delta)
    with pytest.raises(RefusedError, match="expected one claim on the updates"):
        claim_of_drawn(folder, smaller)
    folder, manifest = stated(study, tmp_path / "unknown", format="kohort-privacy-statement/9")
    with pytest.raises(RefusedError, match="not as a release has them"):
        claim_of_drawn(folder, manifest)
