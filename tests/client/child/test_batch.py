"""An image batch on tiny models: its steps, its groups, its evidence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from client.child import checks, inputs
from client.child.batch import align_groups, average_groups, synthesize
from client.child.checks import Candidate
from client.child.job import work
from client.child.rosters import Formed
from client.egress.audit import AuditReport
from client.egress.evidence import Evidence
from client.egress.facts import describe, read_findings
from client.egress.sheet_pictures import SheetPictures
from client.state.artefacts import USES
from client.state.group_store import Group, Stratum
from client.state.jobs import Job
from client.synthesize.group import Roster
from common.errors import PolicyError
from common.wire import tensors
from tests.jobs import NO_GROUPS, SECRET, job_folder, verdict
from tests.sites import Hospital, make_hospital
from tests.studies import SMALL, small_study


@pytest.fixture
def batch(
    hospital: Hospital,
    weights: dict[str, tensors.Arrays],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A job folder after one image batch.

    Untrained models know nothing, so every image counts as accepted and as passed.
    """
    monkeypatch.setattr("client.synthesize.invert.BLANK_DEVIATION", -1.0)
    monkeypatch.setattr("client.synthesize.invert.np.quantile", lambda *_: 10.0)
    monkeypatch.setattr("client.egress.audit.BLANK_DEVIATION", -1.0)
    monkeypatch.setattr("client.egress.audit.DUPLICATE_RMSE", -1.0)
    folder = job_folder(
        hospital, tmp_path / "batch", "synthesize", "", weights["gan"] | weights["glow"], NO_GROUPS
    )
    work(Job.read(folder), folder, SECRET)
    return folder


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The phases of a batch as they are reported, each once."""
    seen: list[str] = []
    report = inputs.write_progress

    def note(folder: Path, done: int, total: int, phase: str) -> None:
        if phase not in seen:
            seen.append(phase)
        report(folder, done, total, phase)

    monkeypatch.setattr("client.child.inputs.write_progress", note)
    return seen


def test_each_phase_of_a_batch_is_reported(phases: list[str], batch: Path) -> None:
    assert phases == ["encoder", "invert", "group", "align", "privatize", "audit"]


def test_an_image_batch_has_one_image_a_group_and_evidence_for_each(
    hospital: Hospital, batch: Path
) -> None:
    arrays = tensors.read(batch / "out.safetensors", max_bytes=1 << 26)
    evidence = Evidence.read(batch / "evidence.json")
    assert arrays["images"].shape[1:] == (32, 32, 3)
    assert len(arrays["images"]) == len(evidence.group_of) == len(evidence.groups) == 2
    assert evidence.audit == ()
    assert arrays["privatized"].sum() == 1  # a quarter of two groups, at least one
    assert [evidence.groups[i].stratum.label for i in evidence.group_of] == arrays[
        "labels"
    ].tolist()
    assert all(len(group.members) == 8 for group in evidence.groups)
    findings = read_findings(batch / "findings.json")
    facts = describe(hospital.study, evidence, arrays, findings, {}, "")
    assert SheetPictures([batch / "contact_sheet.png"], facts).shows(arrays["images"])
    for name in ("contact_sheet.png", "inversions.png"):
        assert (batch / name).read_bytes()[:4] == b"\x89PNG"
        assert (batch / name).stat().st_mode & 0o777 == 0o600


def test_the_cohort_is_compared_once(
    hospital: Hospital,
    weights: dict[str, tensors.Arrays],
    batch: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[int] = []
    alone = checks.audit

    def watched(released: np.ndarray, *rest: Any) -> AuditReport:
        compared.append(len(released))
        return alone(released, *rest)

    monkeypatch.setattr("client.child.checks.audit", watched)
    sent = weights["gan"] | weights["glow"]
    folder = job_folder(hospital, tmp_path / "once", "synthesize", "", sent, NO_GROUPS)
    work(Job.read(folder), folder, SECRET)
    assert compared == [2]


def test_of_frozen_groups_the_stored_images_come_again_and_nothing_else(
    hospital: Hospital,
    weights: dict[str, tensors.Arrays],
    batch: Path,
    tmp_path: Path,
) -> None:
    groups = Evidence.read(batch / "evidence.json").groups
    stored = np.full((1, 32, 32, 3), 7, np.uint8)
    stored[0, :16] = 200
    folder = job_folder(
        hospital,
        tmp_path / "again",
        "synthesize",
        "",
        weights["gan"] | weights["glow"],
        Evidence(groups, (0,), ()).to_json(),
    )
    uses = np.array([USES.index("again"), USES.index("hold")])
    flags = np.array([1], np.uint8)
    tensors.write(
        folder / "stored.safetensors", {"uses": uses, "images": stored, "privatized": flags}
    )
    work(Job.read(folder), folder, bytes(31) + b"\x01")
    arrays = tensors.read(folder / "out.safetensors", max_bytes=1 << 26)
    assert arrays["images"].tobytes() == stored.tobytes()
    assert arrays["privatized"].tolist() == [1]
    assert Evidence.read(folder / "evidence.json").groups == groups[:1]


def test_where_every_frozen_group_is_held_back_the_batch_is_refused(
    hospital: Hospital, weights: dict[str, tensors.Arrays], batch: Path, tmp_path: Path
) -> None:
    frozen = Evidence(Evidence.read(batch / "evidence.json").groups, (), ()).to_json()
    sent = weights["gan"] | weights["glow"]
    folder = job_folder(hospital, tmp_path / "held", "synthesize", "", sent, frozen)
    with pytest.raises(PolicyError, match="was released before") as refused:
        work(Job.read(folder), folder, SECRET)
    assert refused.value.code == "E-GROUP-ARTEFACT"
    assert not (folder / "out.safetensors").exists()


def test_a_batch_that_fails_the_audit_is_no_batch(
    hospital: Hospital,
    weights: dict[str, tensors.Arrays],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("client.synthesize.invert.np.quantile", lambda *_: 10.0)
    monkeypatch.setattr("client.synthesize.invert.BLANK_DEVIATION", -1.0)
    monkeypatch.setattr("client.egress.audit.BLANK_DEVIATION", 10.0)
    folder = job_folder(
        hospital, tmp_path / "job", "synthesize", "", weights["gan"] | weights["glow"], NO_GROUPS
    )
    with pytest.raises(PolicyError) as refused:
        work(Job.read(folder), folder, SECRET)
    assert refused.value.code == "E-AUDIT"
    assert not (folder / "out.safetensors").exists()


@pytest.fixture(scope="module")
def flow_hospital(
    tmp_path_factory: pytest.TempPathFactory, weights: dict[str, tensors.Arrays]
) -> Hospital:
    """A hospital whose plan has no generator: `random` groups, all of them privatized."""
    models = {"glow": SMALL["models"]["glow"]}
    synthesis = SMALL["synthesis"] | {
        "grouping": "random",
        "privatize": SMALL["synthesis"]["privatize"] | {"share": 1.0},
    }
    folder = tmp_path_factory.mktemp("flow")
    return make_hospital(
        folder, weights={"glow": weights["glow"]}, models=models, synthesis=synthesis
    )


def flow_batch(site: Hospital, weights: dict[str, tensors.Arrays], folder: Path) -> Path:
    """A job folder of an image batch from the flow's weights alone."""
    return job_folder(site, folder, "synthesize", "", weights["glow"], NO_GROUPS)


def test_without_a_generator_every_image_is_a_privatized_average_of_a_random_group(
    flow_hospital: Hospital,
    weights: dict[str, tensors.Arrays],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "client.child.batch.invert_cohort",
        lambda *_: pytest.fail("there is no generator to invert"),
    )
    monkeypatch.setattr("client.child.checks.audit", verdict("A-PASS", "A-PASS"))
    folder = flow_batch(flow_hospital, weights, tmp_path / "job")
    work(Job.read(folder), folder, SECRET)
    arrays, evidence = (
        tensors.read(folder / "out.safetensors", max_bytes=1 << 26),
        Evidence.read(folder / "evidence.json"),
    )
    assert arrays["privatized"].tolist() == [1, 1] and arrays["images"].shape == (2, 32, 32, 3)
    assert sorted(len(group.members) for group in evidence.groups) == [8, 8]
    assert [evidence.groups[i].stratum.label for i in evidence.group_of] == arrays[
        "labels"
    ].tolist()


def test_patients_images_never_choose_among_noised_averages_of_random_groups(
    flow_hospital: Hospital,
    weights: dict[str, tensors.Arrays],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An image that noise brought near to a patient's leaves with the rest of its batch."""
    monkeypatch.setattr("client.child.checks.audit", verdict("A-PASS", "A-NEAR"))
    folder = flow_batch(flow_hospital, weights, tmp_path / "job")
    work(Job.read(folder), folder, SECRET)
    arrays = tensors.read(folder / "out.safetensors", max_bytes=1 << 26)
    assert arrays["privatized"].tolist() == [1, 1]
    # the gate takes it; the person on site sees it
    assert Evidence.read(folder / "evidence.json").audit == ()
    found = read_findings(folder / "findings.json")
    assert sorted(finding.code for finding in found) == ["A-NEAR", "A-PASS"]


def test_a_copy_that_noise_should_cover_stops_the_batch(
    flow_hospital: Hospital,
    weights: dict[str, tensors.Arrays],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("client.child.checks.audit", verdict("A-PASS", "A-COPY"))
    folder = flow_batch(flow_hospital, weights, tmp_path / "job")
    with pytest.raises(PolicyError, match="pixel for pixel") as refused:
        work(Job.read(folder), folder, SECRET)
    assert refused.value.code == "E-AUDIT"
    assert not (folder / "out.safetensors").exists()


@pytest.mark.parametrize("directions", [0, 2])
def test_averages_are_moved_out_before_they_are_drawn_where_the_plan_says_so(
    directions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned_codes, asked, drawn = torch.zeros(1, 2, 3), [], []
    plan = SMALL["synthesis"] | {"grouping": "cells", "spread_directions": directions}
    group = Group(tuple("abcde"), Stratum(0), 5)
    who = Roster(tuple("abcde"), (Stratum(0),) * 5, tuple((i,) for i in range(5)))
    looks = np.ones((5, 2, 3), np.float32)
    known = SimpleNamespace(spread=1.0, look_on=lambda _: None)
    coarse = np.zeros((5, 4, 1, 1), np.float32)
    looked = known, SimpleNamespace(accepted=np.ones(5, np.bool_), looks=looks, coarse=coarse)
    batch = SimpleNamespace(
        synthesis=small_study(synthesis=plan).synthesis,
        cohort=SimpleNamespace(images=np.zeros((5, 2, 2, 3))),
        generator=lambda: None,
        critic=lambda: None,
        device=None,
        report=lambda _: lambda *_: None,
    )
    monkeypatch.setattr("client.child.batch.measure_patients", lambda *_: {})
    monkeypatch.setattr("client.child.batch.gather_statistics", lambda *_: [])
    monkeypatch.setattr("client.child.batch.align", lambda *_: SimpleNamespace(codes=aligned_codes))
    monkeypatch.setattr("client.child.batch.gather_features", lambda *_: [])
    monkeypatch.setattr("client.child.batch.keep_nearer", lambda codes, *_: codes + 5)
    monkeypatch.setattr(
        "client.child.batch.render_outputs",
        lambda codes, *_, **__: drawn.append(codes) or [np.zeros((1, 2, 2, 3))],
    )
    moved = SimpleNamespace(move_out=lambda codes: codes + 1)
    monkeypatch.setattr(
        "client.child.batch.find_directions", lambda *given: asked.append(given) or moved
    )
    align_groups(batch, [group], who, looked, torch.Generator())  # type: ignore[arg-type]
    assert torch.equal(drawn[0], aligned_codes + 5 + (directions > 0))
    assert asked == ([(looked[0], 2, 5, "cells", 0.75)] if directions else [])


@pytest.mark.parametrize("missing", [(), (4,), (0, 1, 2, 3, 4)])
def test_a_group_of_which_a_member_has_no_accepted_image_gives_no_average(
    missing: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would say k patients and average fewer."""
    measured: list[tuple[str, ...]] = []

    def measure(images: np.ndarray, found: object, who: Roster, *_: object) -> dict[str, object]:
        measured.append(who.pseudonyms)
        raise PolicyError("far enough")

    group = Group(tuple("abcde"), Stratum(0), 5)
    who = Roster(tuple("abcde"), (Stratum(0),) * 5, tuple((i,) for i in range(5)))
    accepted = np.isin(np.arange(5), missing, invert=True)
    known = SimpleNamespace(spread=1.0, look_on=lambda _: None)
    looked = known, SimpleNamespace(accepted=accepted)
    batch = SimpleNamespace(
        synthesis=small_study().synthesis,
        cohort=SimpleNamespace(images=np.zeros((5, 2, 2, 3))),
        generator=lambda: None,
        critic=lambda: None,
        device=None,
    )
    monkeypatch.setattr("client.child.batch.measure_patients", measure)
    if missing:
        assert align_groups(batch, [group], who, looked, torch.Generator()) == []  # type: ignore[arg-type]
        return
    with pytest.raises(PolicyError, match="far enough"):
        align_groups(batch, [group], who, looked, torch.Generator())  # type: ignore[arg-type]
    assert measured == [tuple("abcde")]


def test_the_images_of_a_batch_stand_in_an_order_of_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups are formed in an order that can depend on images; it must not be seen."""
    written: list[list[int]] = []
    monkeypatch.setattr("client.child.batch.average_groups", lambda *_: list(range(40)))
    monkeypatch.setattr("client.child.batch.drop_failed", lambda batch, candidates: candidates)
    monkeypatch.setattr("client.child.batch.write_batch", lambda _, rows: written.append(rows))
    plan = SimpleNamespace(needs_generator=False, anchors=None)
    batch = SimpleNamespace(synthesis=plan, folder=tmp_path / "job-0", begin=lambda *_: None)
    for _ in range(2):
        synthesize(batch)  # type: ignore[arg-type]
    assert sorted(written[0]) == sorted(written[1]) == list(range(40))
    assert list(range(40)) not in written
    assert written[0] != written[1]


def test_which_of_too_many_images_are_kept_is_chosen_by_a_secret_and_by_no_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups = tuple(Group((f"a{i}", f"b{i}"), Stratum(0), 2) for i in range(12))
    again = [Candidate(np.zeros((2, 2, 3), np.uint8), group, False) for group in groups]

    def kept(order: list[Candidate], secret: bytes) -> frozenset[str]:
        formed = Formed(tuple(order), (), (), Roster((), (), ()))
        monkeypatch.setattr("client.child.batch.group_patients", lambda *_: formed)
        batch = SimpleNamespace(
            secret=secret,
            begin=lambda _: None,
            synthesis=SimpleNamespace(privatize=None, max_images_per_site=6, outputs_per_group=1),
        )
        found = average_groups(batch, None, torch.Generator())  # type: ignore[arg-type]
        return frozenset(candidate.group.token for candidate in found)

    first = kept(again, bytes(32))
    assert len(first) == 6
    assert kept(again[::-1], bytes(32)) == first
    assert len({kept(again, bytes([n]) * 32) for n in range(4)}) > 1


@pytest.mark.parametrize("most", [1, 5, 7, 1000])
def test_no_image_is_made_for_a_group_whose_images_cannot_leave(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images that leave are those that the secret chooses of all."""
    groups = tuple(Group((f"a{i}", f"b{i}"), Stratum(0), 2) for i in range(12))
    names = tuple(name for group in groups for name in group.members)
    who = Roster(names, (Stratum(0),) * 24, tuple((row,) for row in range(24)))
    formed = Formed((), (), groups, who)
    blank = np.zeros((2, 2, 3), np.uint8)
    made: list[str] = []

    def align(batch: object, some: list[Group], *_: object) -> list[Candidate]:
        made.extend(group.token for group in some)
        return [Candidate(blank, group, False) for group in some for _ in range(2)]

    def privatize(batch: object, some: tuple[Group, ...], *_: object) -> list[Candidate]:
        made.extend(group.token for group in some)
        return [Candidate(blank, group, True) for group in some]

    def leaves(at_most: int) -> list[tuple[str, bool]]:
        batch = SimpleNamespace(
            secret=SECRET,
            begin=lambda _: None,
            synthesis=SimpleNamespace(max_images_per_site=at_most, outputs_per_group=2),
        )
        found = average_groups(batch, looked, torch.Generator())  # type: ignore[arg-type]
        return [(candidate.group.token, candidate.privatized) for candidate in found]

    # the last group's second member has no accepted image: it gives none
    accepted = np.arange(24) != 23
    known = SimpleNamespace(spread=1.0, look_on=lambda _: None)
    looked = known, SimpleNamespace(accepted=accepted)
    monkeypatch.setattr("client.child.batch.group_patients", lambda *_: formed)
    monkeypatch.setattr("client.child.batch.choose_privatized", lambda *_: groups[:3])
    monkeypatch.setattr("client.child.batch.align_groups", align)
    monkeypatch.setattr("client.child.batch.privatize_groups", privatize)
    everything = leaves(10_000)
    assert len(everything) == 3 + 2 * 8
    made.clear()
    assert leaves(most) == everything[:most]
    assert set(made) == {token for token, _ in everything[:most]}
