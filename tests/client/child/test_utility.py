"""A release of pairs measured on site: verified first, cohort opened last, result kept on site."""

import csv
import io
import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from client.child import utility
from client.cli import main as command
from client.cli import state_folder
from client.ingest.cohort import FORMAT, Cohort
from client.ingest.cohort_files import SCHEMA
from client.state.folder import State
from client.state.plans import Plans
from client.state.sample import sample as site_sample
from common.errors import ConfigurationError, KohortError, PolicyError, RefusedError
from common.measure import pair_segmenter
from common.measure import pair_utility as common_utility
from common.study.bundle import write_bundle
from common.study.plan import Study
from common.wire import signing
from kohort import manifest, verification
from kohort.console import run_typer
from tests.strict_device import GPU, strict_device
from tests.studies import vessels_plan

torch.set_num_threads(1)
RECIPE = pair_segmenter.Recipe(
    width=8, epochs=3, batch_size=4, grid=(pair_segmenter.Choice(0.0, 3e-3),)
)


def blocks(count: int, seed: int) -> np.ndarray:
    """Bright rectangles on noise with exact masks, uint8 [N, 32, 32, 2]."""
    rng = np.random.default_rng(seed)
    pairs = np.zeros((count, 32, 32, 2), np.uint8)
    for i, (y, x) in enumerate(rng.integers(2, 16, (count, 2))):
        pairs[i, y : y + 12, x : x + 12, 1] = 255
    pairs[..., 0] = np.where(pairs[..., 1] > 0, 170, 80) + rng.normal(0, 12, pairs.shape[:3])
    return pairs


def write_release(folder: Path, pairs: np.ndarray) -> None:
    """The pictures and the table of a release; the signature is another test's matter."""
    (folder / "masks").mkdir(parents=True)
    (folder / "data" / "train" / "vessels").mkdir(parents=True)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file_name", "mask", "mask_nifti", "label", "mechanism", "synthetic"])
    for i, pair in enumerate(pairs):
        names = (f"data/train/vessels/{i:05d}.png", f"masks/{i:05d}.png")
        for name, plane in zip(names, (pair[..., 0], pair[..., 1]), strict=True):
            Image.fromarray(np.ascontiguousarray(plane)).save(folder / name)
        writer.writerow([*names, f"masks/{i:05d}.nii.gz", "vessels", "dp-generator", "yes"])
    (folder / "metadata.csv").write_text(table.getvalue())


def write_cohort(folder: Path, pairs: np.ndarray, patient_of: np.ndarray) -> None:
    """A cohort of these pairs."""
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", pairs)
    with closing(sqlite3.connect(folder / "index.sqlite")) as index, index:
        index.executescript(SCHEMA)
        for patient in np.unique(patient_of).tolist():
            index.execute("INSERT INTO patient VALUES (?, ?)", (patient, f"{patient:064x}"))
            index.execute("INSERT INTO alias VALUES (?, ?)", (f"{patient:064x}", patient))
        for i, patient in enumerate(patient_of.tolist()):
            index.execute("INSERT INTO image VALUES (?, ?, 0, 0, ?)", (i, patient, f"{i:064x}"))
    facts = {
        "format": FORMAT,
        "size_px": 32,
        "channels": 2,
        "label_names": ["vessels"],
        "digest": "0" * 64,
    }
    (folder / "cohort.json").write_text(json.dumps(facts))


@pytest.fixture
def hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, State, Plans, Study]:
    """A release folder and a site that approved its plan; `verification.verify` is stood in for."""
    operator = signing.new_key()
    plan = tmp_path / "study.yaml"
    written = vessels_plan()
    written["models"]["wgan"].pop("start", None)  # no checkpoint lies beside this plan
    plan.write_text(yaml.safe_dump(written))
    study = write_bundle(plan, operator, tmp_path / "bundle")
    place = State(tmp_path / "state")
    plans = Plans(place, operator.public_key())
    plans.approve(tmp_path / "bundle")
    write_cohort(place.cohort(study.intake), blocks(12, 1), np.repeat(np.arange(4), 3))
    write_release(tmp_path / "release", blocks(24, 0))

    def verified(folder: Path, *, trust: frozenset[str]) -> manifest.Manifest:
        assert trust == {signing.fingerprint(operator.public_key())}
        return manifest.Manifest.model_construct(study=study.hash(), version="1.0.0")

    monkeypatch.setattr(verification, "verify", verified)
    return tmp_path / "release", place, plans, study


def test_a_good_release_scores_high_and_the_result_stays_in_the_state_folder(
    hospital: tuple[Path, State, Plans, Study], tmp_path: Path
) -> None:
    release, place, plans, study = hospital
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    found = utility.measure_release(release, place, plans, recipe=replace(RECIPE, epochs=6))
    assert found.result.dsc > 0.8 and found.pairs == 24
    (new,) = {p for p in tmp_path.rglob("*") if p.is_file()} - before
    assert new == place.root / "utility" / f"{study.hash()[:12]}-1.0.0.json"
    assert json.loads(new.read_text())["result"]["dsc"] == found.result.dsc
    assert new.stat().st_mode & 0o077 == 0
    assert "they stay here" in "\n".join(found.lines())


def test_the_cohort_is_opened_after_the_network_is_chosen(
    hospital: tuple[Path, State, Plans, Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    release, place, plans, _ = hospital
    order: list[str] = []
    fit, opened = pair_segmenter.fit, Cohort.open

    def fits(pairs: np.ndarray, *rest: object, **named: object) -> pair_segmenter.Segmenter:
        order.append("fit")
        assert np.array_equal(pairs, blocks(24, 0))  # the released pairs and nothing else
        return fit(pairs, *rest, **named)  # type: ignore[arg-type]

    def opens(folder: Path) -> Cohort:
        order.append("cohort")
        return opened(folder)

    monkeypatch.setattr(pair_segmenter, "fit", fits)
    monkeypatch.setattr(Cohort, "open", opens)
    utility.measure_release(release, place, plans, recipe=replace(RECIPE, epochs=1))
    assert order == ["fit", "cohort"]


@pytest.mark.parametrize(
    "fault", ["unverified", "unapproved", "no masks", "no cohort", "bad picture", "wrong size"]
)
def test_what_cannot_be_measured_is_refused_before_the_cohort_is_opened(
    hospital: tuple[Path, State, Plans, Study], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    release, place, plans, study = hospital
    wanted: type[KohortError] = RefusedError

    def refuses(*_: object, **__: object) -> manifest.Manifest:
        raise RefusedError("SHA256SUMS.sig: bad")

    if fault == "unverified":
        monkeypatch.setattr(verification, "verify", refuses)
    elif fault == "unapproved":
        monkeypatch.setattr(Plans, "is_approved", lambda *_: False)
        wanted = PolicyError
    elif fault == "no masks":
        (release / "metadata.csv").write_text(
            "file_name,label\ndata/train/vessels/00000.png,vessels\n"
        )
        wanted = ConfigurationError
    elif fault == "no cohort":
        place.cohort(study.intake).rename(place.root / "elsewhere")
        wanted = ConfigurationError
    elif fault == "bad picture":
        (release / "masks" / "00003.png").write_bytes(b"GIF89a")
    elif fault == "wrong size":
        Image.new("L", (64, 64)).save(release / "masks" / "00003.png")
    monkeypatch.setattr(
        common_utility, "measure", lambda *_, **__: pytest.fail("the cohort was opened")
    )
    with pytest.raises(wanted):
        utility.measure_release(release, place, plans, recipe=RECIPE)
    assert not (place.root / "utility").exists()


def typed(
    hospital: tuple[Path, State, Plans, Study], monkeypatch: pytest.MonkeyPatch, device: str
) -> list[str]:
    """The command of a site whose site.yaml names this device."""
    release, place, plans, _ = hospital
    text = site_sample("hospital-a", str(release))
    assert 'device: "auto"' in text
    (place.root / "site.yaml").write_text(text.replace('device: "auto"', f'device: "{device}"'))
    membership = SimpleNamespace(operator=plans.operator)
    monkeypatch.setattr(state_folder, "read_membership", lambda _: membership)
    monkeypatch.setattr(utility, "recipe", lambda *, full: RECIPE)
    return ["utility", str(release), "--state", str(place.root)]


def test_the_network_trains_and_predicts_where_site_yaml_says(
    hospital: tuple[Path, State, Plans, Study],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = typed(hospital, monkeypatch, "cuda")
    monkeypatch.setattr(utility, "recipe", lambda *, full: replace(RECIPE, width=4, epochs=1))
    trained: list[torch.device] = []
    masks = pair_segmenter.Segmenter.masks

    def notes(segmenter: pair_segmenter.Segmenter, images: np.ndarray) -> np.ndarray:
        trained.append(next(segmenter.network.parameters()).device)
        return masks(segmenter, images)

    monkeypatch.setattr(pair_segmenter.Segmenter, "masks", notes)
    with strict_device():
        assert command.run_command_line(arguments) == 0
        assert set(trained) == {GPU}
    assert "DSC" in capsys.readouterr().out


def test_a_gpu_that_is_not_there_is_named_before_the_release_is_read(
    hospital: tuple[Path, State, Plans, Study],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = typed(hospital, monkeypatch, "cuda:99")
    monkeypatch.setattr(verification, "verify", lambda *_, **__: pytest.fail("it was read"))
    assert command.run_command_line(arguments) == 2
    assert "compute.device is cuda:99" in capsys.readouterr().err


def test_the_command_prints_the_result_and_exits_zero(
    hospital: tuple[Path, State, Plans, Study],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usual = typed(hospital, monkeypatch, "auto")
    for extra in ((), ("--json",)):
        arguments = [*usual, *extra]
        assert (
            run_typer(
                "kohort-site", lambda given=arguments: command.app(given, standalone_mode=False)
            )
            == 0
        )
        out = capsys.readouterr().out
        assert (
            json.loads(out)["pairs"] == 24 if extra else "DSC" in out and "nothing was sent" in out
        )
