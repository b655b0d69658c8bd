"""The researcher's notebook runs from a release to an honest test on real public radiographs.

The release is built for it: averages of five of the demonstration's radiographs, each of another
person of one hospital.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.arrays import Images, Labels
from common.wire import signing
from server.release.build import build_release
from tests.releases import batch_of, release_inputs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "researcher" / "notebook.ipynb"
REAL = ROOT / "deploy" / "demo" / "chest"
LABELS = ("normal", "pneumonia")
K = 5


def averages(hospital: str) -> tuple[Images, Labels]:
    """Averages of K people of one label, uint8 [N, 32, 32, 1], and the labels."""
    stored = np.load(REAL / "radiographs.npz")["images"][..., 0]
    with open(REAL / "labels.csv", newline="", encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if row["hospital"] == hospital]
    images, labels = [], []
    for index, label in enumerate(LABELS):
        people = {row["person"]: int(row["row"]) for row in rows if row["label"] == label}
        chosen = list(people.values())
        for start in range(0, len(chosen) - K + 1, K):
            mean = stored[chosen[start : start + K]].mean(0).astype(np.uint8)
            images.append(np.asarray(Image.fromarray(mean).resize((32, 32))))
            labels.append(index)
    return np.stack(images)[..., None], np.array(labels)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    operator = signing.new_key()
    inputs = release_inputs(
        folder,
        operator,
        modality="chest",
        intake={
            "dicom_modalities": ["DX"],
            "size_px": 32,
            "channels": 1,
            "labels": list(LABELS),
        },
    )
    hospitals = ("hospital-a", "hospital-b", "hospital-c")
    batches = [batch_of(inputs.study, name, *averages(name)) for name in hospitals]
    inputs = replace(inputs, batches=batches, reference=None)
    (folder / "operator.pub").write_text(signing.public_text(operator.public_key()))
    return build_release(inputs, folder / "releases", operator)


def test_the_notebook_holds_no_outputs() -> None:
    import nbformat  # a second of every worker's collection, else

    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_it_leads_from_a_release_to_figures_with_intervals(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat
    from nbclient import NotebookClient

    given = {"RELEASE": release, "TRUST": release.parents[1] / "operator.pub", "REAL": REAL}
    for name, value in given.items():
        monkeypatch.setenv(f"KOHORT_{name}", str(value))
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=200, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    said = "".join(output.get("text", "") for output in outputs)
    assert "a key that you trust: True" in said
    assert "synthetic images to train on, 300 real ones to test on" in said
    figures = {line[:24].strip(): line[24:].split() for line in said.splitlines() if "  [" in line}
    assert set(figures) == {"trained on the release", "shuffled labels", "mean image"}
    for value, low, high in figures.values():
        assert float(low.strip("[,")) <= float(value) <= float(high.strip("]"))
    assert float(figures["trained on the release"][0]) > 0.7
    assert abs(float(figures["shuffled labels"][0]) - 0.5) < 0.2
    assert "the release is better than shuffled labels" in said
