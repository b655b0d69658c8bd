"""Mode `anchors` from a site's daemon to the release's statement, with `cells` beside it."""

from __future__ import annotations

import hashlib
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.child import batch as batch_module
from client.child.batch import invert_cohort
from client.child.inputs import Batch
from client.child.job import work
from client.daemon.jobs import Ending
from client.egress.evidence import Evidence
from client.state.config import Policy
from client.state.group_store import Group, Grouping, GroupStore, Stratum
from client.state.jobs import Job
from client.state.ledger import Reservation
from client.synthesize import invert as inversion
from client.synthesize.reference import Whitening
from common.errors import KohortError, PolicyError, RefusedError
from common.models.basis import Basis, fit, save
from common.models.stylegan import Critic, Generator
from common.models.weights import numpy_weights
from common.privacy import boundary
from common.privacy.accounting import epsilon_pld
from common.privacy.events import anchors_event
from common.privacy.price import at_most
from common.wire import tensors
from common.wire.messages import Header, unseal
from server.release.items import Account
from server.release.statement import privacy_statement, statement_markdown
from tests import sites
from tests.sites import (
    Hospital,
    Killed,
    make_hospital,
    pseudonym,
    scripted,
    spend_once,
    write_cohort,
)

PEOPLE = 56
SYNTHESIS: dict[str, Any] = {
    "k": 5,
    "grouping": "anchors",
    "inversion_steps": 0,
    "alignment_steps": 0,
    "max_images_per_site": 40,
    "anchors": {"noise_multiplier": 0.8, "threshold_delta": 1e-6, "components": 8},
}


@pytest.fixture(scope="module")
def weights() -> dict[str, tensors.Arrays]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    gan = numpy_weights(Generator(32, 3, 16, 16), "generator.") | numpy_weights(
        Critic(32, 3, 16), "critic."
    )
    return {"gan": dict(gan)}


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained models know nothing: every image counts as inverted, and none as a duplicate."""
    monkeypatch.setattr("client.synthesize.invert.BLANK_DEVIATION", -1.0)
    monkeypatch.setattr("client.synthesize.invert.np.quantile", lambda *_: 10.0)
    monkeypatch.setattr("client.egress.audit.BLANK_DEVIATION", -1.0)
    monkeypatch.setattr("client.egress.audit.DUPLICATE_RMSE", -1.0)
    for module in ("client.state.price", "client.state.ledger"):
        monkeypatch.setattr(f"{module}.spend", spend_once)
    monkeypatch.setattr("client.child.batch.invert_cohort", inverted_once)


_inverted: dict[int, Any] = {}


def inverted_once(batch: Batch, random: torch.Generator) -> Any:
    """The real inversion, once a cohort size: models and people are the same in every test."""
    people = batch.cohort.patient_count
    if people not in _inverted:
        _inverted[people] = invert_cohort(batch, random)
    return _inverted[people]


@pytest.fixture
def hospital(tmp_path: Path, weights: dict[str, tensors.Arrays]) -> Hospital:
    return anchored_hospital(tmp_path, weights)


def anchored_hospital(
    root: Path, weights: dict[str, tensors.Arrays], people: int = PEOPLE, **changes: Any
) -> Hospital:
    models = {
        "models__glow": None,
        "models__encoder": {"steps": 1, "learning_rate": 1e-3, "width": 16, "iterations": 1},
    }
    hospital = make_hospital(root, weights=weights, **models, **{"synthesis": SYNTHESIS, **changes})
    folder = hospital.site().state.cohort(hospital.study.intake)
    shutil.rmtree(folder)
    write_cohort(folder, hospital.study, people)
    return hospital


class InProcess:
    """Do the child's real work in this process; `before` runs first: "crash", "die" or nothing."""

    def __init__(self, *script: str) -> None:
        self.script, self.folders = list(script), list[Path]()

    def __call__(
        self, folder: Path, threads: int, secret: bytes, stop: threading.Event, progress: Any
    ) -> Ending:
        self.folders.append(folder)
        if self.script and self.script.pop(0) == "die":
            raise Killed
        try:
            work(Job.read(folder), folder, secret)
        except KohortError as error:
            return Ending(False, error.code)
        return Ending(True)


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    runs = InProcess()
    monkeypatch.setattr("client.daemon.jobs.run_child", runs)
    return runs


def ask(hospital: Hospital, weights: dict[str, tensors.Arrays]) -> Header:
    site = hospital.site(review="not_required")
    reply = site.answer(hospital.ask("synthesize", weights=weights["gan"]))
    header = unseal(reply, site.state.signing_key().public_key(), max_bytes=1 << 26)
    boundary.check_images(
        boundary.open_payload(reply.payload, header, 1 << 26), header, hospital.study
    )  # the server's check
    return header


def test_a_plan_with_anchors_yields_a_cleared_batch_a_ledger_entry_and_its_statement(
    hospital: Hospital,
    weights: dict[str, tensors.Arrays],
    child: InProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("private statistics of a group in mode anchors")

    for name in ("measure_patients", "gather_statistics", "align"):
        monkeypatch.setattr(f"client.child.batch.{name}", forbidden)
    header, event = ask(hospital, weights), anchors_event(hospital.study)
    assert event is not None
    rows = hospital.site().ledger().rows()
    assert [row.kind for row in rows] == ["open", "reserve", "commit"]
    assert rows[1].data["event"]["mechanism"] == "noisy_anchors"

    evidence = Evidence.read(child.folders[0] / "evidence.json")
    assert {len(group.members) for group in evidence.groups} == {
        PEOPLE // 2
    }  # one cell a label: no upper bound of 2k-1
    assert len(evidence.group_of) == len(evidence.groups) == 2
    with hospital_groups(hospital) as frozen:
        assert frozen.groups() == ()  # a charged release binds no later study

    assert header.statement["grouping"] == "anchors"
    assert header.statement["anchors_noise_multiplier"] == 0.8
    assert not any(
        isinstance(value, str) and pseudonym(0) in value for value in header.statement.values()
    )
    spent = epsilon_pld([event], hospital.study.privacy.delta)
    account = Account({"PLD": spent}, {"dp-accounting": "0"}, {})
    said = statement_markdown(privacy_statement(hospital.study, {"hospital-a": header}, account))
    print(said)
    for words in (
        "and as averages of patients, is (8, 1e-05)-differentially private",
        f"PLD {at_most(spent)}",
        "Grouping: anchors",
        "published from k=5 patients",
        "linked component of patient ids",
        "covers these averages and the updates together",
    ):
        assert words in said
    assert "chosen by similarity" not in said


def hospital_groups(hospital: Hospital) -> GroupStore:
    return GroupStore(hospital.site().state.groups)


def test_the_reservation_is_in_the_ledger_before_a_child_starts_and_stays_spent(
    hospital: Hospital, weights: dict[str, tensors.Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = InProcess("die")
    monkeypatch.setattr("client.daemon.jobs.run_child", runs)
    with pytest.raises(Killed):
        ask(hospital, weights)
    assert [row.kind for row in hospital.site().ledger().rows()] == ["open", "reserve"]
    ask(hospital, weights)  # what a dead child may have drawn stays spent
    rows = hospital.site().ledger().rows()
    assert [row.kind for row in rows] == ["open", "reserve", "reserve", "commit"]
    assert rows[3].data["reservation"] == rows[2].seq
    assert len(runs.folders) == 2


def test_a_crash_before_the_gate_sends_the_same_bytes_later(
    hospital: Hospital,
    weights: dict[str, tensors.Arrays],
    child: InProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("client.egress.gate.Gate.clear_images", dies)
        with pytest.raises(Killed):
            ask(hospital, weights)
    digest = tensors.read(child.folders[0] / "out.safetensors", max_bytes=1 << 26)[
        "images"
    ].tobytes()
    header = ask(hospital, weights)
    assert len(child.folders) == 1  # no second draw
    sent = tensors.loads(
        hospital.site().answer(hospital.ask("synthesize", weights=weights["gan"])).payload,
        max_bytes=1 << 26,
    )
    assert sent["images"].tobytes() == digest
    assert header.kind == "images"


def dies(*_: object, **__: object) -> None:
    raise Killed


def job(
    hospital: Hospital,
    folder: Path,
    weights: dict[str, tensors.Arrays],
    frozen: Evidence,
    **changes: Any,
) -> Path:
    event = anchors_event(hospital.study)
    assert event is not None
    site = hospital.site()
    fields = {
        "kind": "synthesize",
        "model": "",
        "plan": str(site.plans.folder(hospital.study.hash())),
        "cohort": str(site.state.cohort(hospital.study.intake)),
        "reservation": Reservation(2, 1, event).to_json(),
        "threads": 1,
        "memory_gib": 0,
        **changes,
    }
    Job(**fields).write(folder, tensors.dumps(weights["gan"]), frozen.to_json())
    return folder


def test_anchors_take_all_patients_whatever_is_frozen(
    hospital: Hospital, weights: dict[str, tensors.Arrays], child: InProcess, tmp_path: Path
) -> None:
    """Groups that images formed must not decide who takes part under an epsilon per patient."""
    before = job(hospital, tmp_path / "before", weights, Evidence((), (), ()))
    work(Job.read(before), before, bytes(32))
    everyone = Evidence.read(before / "evidence.json").groups
    assert sum(len(group.members) for group in everyone) == PEOPLE
    # most people are frozen by an earlier study
    with hospital_groups(hospital) as store:
        names = [pseudonym(patient) for patient in range(PEOPLE - 6)]
        group = Group(tuple(names), Stratum(0, 2), 5)
        store.freeze(Grouping((group,), ()), "similar")
    hospital.site().state.journal.append(f"{'e' * 64}/synthesize//0/0", "seen")
    ask(hospital, weights)
    assert Evidence.read(child.folders[0] / "groups.json").groups == ()
    assert not (child.folders[0] / "stored.safetensors").exists()
    assert set(Evidence.read(child.folders[0] / "evidence.json").groups) == set(everyone)
    # the child does not look either
    told = job(hospital, tmp_path / "told", weights, Evidence((group,), (), ()))
    work(Job.read(told), told, bytes(32))
    assert set(Evidence.read(told / "evidence.json").groups) == set(everyone)


def test_fewer_than_k_patients_and_a_third_id_are_the_same_silence(
    tmp_path: Path, weights: dict[str, tensors.Arrays]
) -> None:
    import sqlite3
    from contextlib import closing

    for people in (3, 6):  # below k; from k on, below the threshold
        small = anchored_hospital(tmp_path / str(people), weights, people)
        folder = job(small, tmp_path / f"job-{people}", weights, Evidence((), (), ()))
        with pytest.raises(PolicyError) as refused:
            work(Job.read(folder), folder, bytes(32))
        assert refused.value.code == "E-NO-IMAGES"
    linked = anchored_hospital(tmp_path / "linked", weights)
    with (
        closing(
            sqlite3.connect(linked.site().state.cohort(linked.study.intake) / "index.sqlite")
        ) as index,
        index,
    ):
        index.executemany("INSERT INTO alias VALUES (?, 0)", [("1" * 64,), ("2" * 64,)])
    folder = job(linked, tmp_path / "job-linked", weights, Evidence((), (), ()))
    with pytest.raises(PolicyError, match="are one person") as refused:
        work(Job.read(folder), folder, bytes(32))
    assert refused.value.code == "E-NO-IMAGES"


def test_the_gate_refuses_averages_whose_mechanism_was_not_reserved(
    hospital: Hospital, weights: dict[str, tensors.Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that forgot the mechanism, and a child that made images all the same."""
    children = scripted(monkeypatch, hospital.study)
    children.change = lambda arrays: arrays | {"privatized": np.zeros(2, np.uint8)}
    monkeypatch.setattr("client.daemon.spending.image_event", lambda study: None)
    with pytest.raises(RefusedError) as refused:
        ask(hospital, weights)
    assert refused.value.code == "E-GATE-21"


def test_the_inversion_of_anchors_takes_one_image_at_a_time(
    tmp_path: Path,
    weights: dict[str, tensors.Arrays],
    child: InProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a common batch a neighbour could move a patient's code by rounding, into another cell."""
    sizes: list[int] = []
    alone = inversion._invert_batch

    def watched(images: np.ndarray, *rest: Any) -> inversion.Inversion:
        sizes.append(len(images))
        return alone(images, *rest)

    monkeypatch.setattr(inversion, "_invert_batch", watched)
    ask(anchored_hospital(tmp_path, weights, people=50), weights)
    assert sizes == [1] * 50


def test_without_a_reservation_nothing_is_drawn(
    hospital: Hospital, weights: dict[str, tensors.Arrays], tmp_path: Path
) -> None:
    folder = job(hospital, tmp_path / "job", weights, Evidence((), (), ()), reservation="")
    with pytest.raises(RefusedError):
        work(Job.read(folder), folder, bytes(32))
    assert not (folder / "out.safetensors").exists()


def test_nearness_to_a_patient_stays_on_the_sheet_and_drops_no_image(
    hospital: Hospital,
    weights: dict[str, tensors.Arrays],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("client.egress.audit.NEAR_SHARE", 1e9)
    folder = job(hospital, tmp_path / "job", weights, Evidence((), (), ()))
    work(Job.read(folder), folder, bytes(32))
    assert len(tensors.read(folder / "out.safetensors", max_bytes=1 << 26)["images"]) == 2
    assert Evidence.read(folder / "evidence.json").audit == ()
    assert capsys.readouterr().err.count("near to a patient's") == 1  # child.log


def test_looks_of_patients_never_enter_an_image_that_carries_an_epsilon(
    hospital: Hospital,
    weights: dict[str, tensors.Arrays],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are k-averages without noise; `anchors` decodes in the generator's own look."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a look of patients")

    for name in ("show_in", "average_looks", "look_from"):
        monkeypatch.setattr(f"client.synthesize.appearance.{name}", forbidden)
    folder = job(hospital, tmp_path / "job", weights, Evidence((), (), ()))
    work(Job.read(folder), folder, bytes(32))
    assert len(tensors.read(folder / "out.safetensors", max_bytes=1 << 26)["images"])


def test_a_public_basis_of_the_plan_makes_the_space_and_the_images(
    tmp_path: Path,
    weights: dict[str, tensors.Arrays],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file is in the bundle; the images are those of its directions and no other's."""
    written = sites.write_plan
    rng = np.random.default_rng(0)
    public = fit(rng.normal(size=(40, 8 * 16)), 12)

    def write_plan(folder: Path, *args: Any, **changes: Any) -> Path:
        save(public, folder / "codes.safetensors")
        return written(folder, *args, **changes)

    monkeypatch.setattr("tests.sites.write_plan", write_plan)
    digest = hashlib.sha256(encoded(public, tmp_path / "codes.safetensors")).hexdigest()
    basis = {"file": "codes.safetensors", "sha256": digest}
    synthesis = {**SYNTHESIS, "anchors": {**SYNTHESIS["anchors"], "basis": basis}}
    hospital = anchored_hospital(tmp_path / "hospital", weights, synthesis=synthesis)
    seen: list[Any] = []
    shown = batch_module.show_cells

    def note(means: Any, whitening: Whitening, *rest: Any) -> Any:
        seen.append(whitening)
        return shown(means, whitening, *rest)

    monkeypatch.setattr(batch_module, "show_cells", note)
    folder = job(hospital, tmp_path / "job", weights, Evidence((), (), ()))
    work(Job.read(folder), folder, bytes(32))
    assert len(tensors.read(folder / "out.safetensors", max_bytes=1 << 26)["images"])
    np.testing.assert_allclose(seen[0].mean, public.mean, atol=1e-6)
    assert seen[0].directions.shape == (8 * 16, 8)


def encoded(basis: Basis, path: Path) -> bytes:
    save(basis, path)
    return path.read_bytes()


def test_a_site_may_forbid_anchors(tmp_path: Path, weights: dict[str, tensors.Arrays]) -> None:
    assert "anchors" in Policy().groupings
    assert "similar-swap" not in Policy().groupings
    forbidding = anchored_hospital(tmp_path, weights)
    site = forbidding.site(groupings=("similar",))
    with pytest.raises(PolicyError):
        site.answer(forbidding.ask("synthesize", weights=weights["gan"]))


@pytest.mark.parametrize("mode", ["cells", "similar-swap"])
def test_the_other_modes_yield_a_batch_of_groups_of_k_to_2k_minus_1(
    tmp_path: Path, weights: dict[str, tensors.Arrays], mode: str
) -> None:
    synthesis = {**SYNTHESIS, "grouping": mode, "anchors": None, "outputs_per_group": 1}
    plain = anchored_hospital(tmp_path / "hospital", weights, 22, synthesis=synthesis)
    folder = tmp_path / "job"
    site = plain.site()
    Job(
        kind="synthesize",
        model="",
        plan=str(site.plans.folder(plain.study.hash())),
        cohort=str(site.state.cohort(plain.study.intake)),
        reservation="",
        threads=1,
        memory_gib=0,
    ).write(folder, tensors.dumps(weights["gan"]), Evidence((), (), ()).to_json())
    work(Job.read(folder), folder, bytes(32))
    groups = Evidence.read(folder / "evidence.json").groups
    assert sorted(len(group.members) for group in groups) == [5, 5, 6, 6]
