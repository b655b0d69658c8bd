"""The child process on tiny models: what it writes, what it refuses, and that it dies with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from client.child.batch import align_groups
from client.child.checks import Candidate, drop_failed, reveals_members
from client.child.job import main, work
from client.child.rosters import person_names
from client.daemon.jobs import run_child
from client.egress.audit import AuditReport, Code
from client.egress.audit import Evidence as AuditEvidence
from client.egress.evidence import Evidence
from client.ingest.cohort import Cohort
from client.state.folder import State
from client.state.group_store import Group, Stratum
from client.state.jobs import Job, Stopped
from client.state.ledger import Reservation
from client.synthesize.group import Roster
from common.errors import PolicyError
from common.models.glow import Glow
from common.models.glow_checkpoint import weights_of
from common.models.stylegan import Critic, Generator
from common.models.weights import numpy_weights
from common.privacy.events import round_event
from common.study.training import WganPlan
from common.wire import tensors
from tests.sites import Hospital, make_hospital, pseudonym
from tests.studies import SMALL, VESSELS, small_study

SECRET = bytes(32)


@pytest.fixture(scope="module")
def weights() -> dict[str, tensors.Arrays]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    gan = numpy_weights(Generator(32, 3, 16, 16), "generator.") | numpy_weights(
        Critic(32, 3, 16), "critic."
    )
    return {"gan": dict(gan), "glow": dict(weights_of(Glow(32, 3, 3, 2, 16)))}


@pytest.fixture(scope="module")
def hospital(
    tmp_path_factory: pytest.TempPathFactory, weights: dict[str, tensors.Arrays]
) -> Hospital:
    return make_hospital(tmp_path_factory.mktemp("hospital"), weights=weights)


def job_folder(
    hospital: Hospital, folder: Path, kind: str, model: str, inputs: tensors.Arrays, groups: bytes
) -> Path:
    """A job as the daemon writes it, with a reservation of one round."""
    event = round_event(hospital.study, model, 2**20) if model else None
    job = Job(
        kind="train" if kind == "train" else "synthesize",
        model=model,
        plan=str(hospital.root / "plans" / hospital.study.hash()),
        cohort=str(State(hospital.root).cohort(hospital.study.intake)),
        reservation=Reservation(2, event.steps, event).to_json() if event else "",
        threads=1,
        memory_gib=0,
    )
    job.write(folder, tensors.dumps(inputs), groups)
    return folder


NO_GROUPS = Evidence((), (), ()).to_json()


def test_a_round_in_a_real_child_leaves_the_models_own_tensors(
    hospital: Hospital, weights: dict[str, tensors.Arrays], tmp_path: Path
) -> None:
    folder = job_folder(hospital, tmp_path / "job", "train", "gan", weights["gan"], NO_GROUPS)
    seen: list[tuple[int, int]] = []
    ending = run_child(
        folder, 1, SECRET, threading.Event(), lambda done, total: seen.append((done, total))
    )
    assert ending.finished, (folder / "child.log").read_text()
    deltas = tensors.read(folder / "out.safetensors", max_bytes=1 << 26)
    assert {name: a.shape for name, a in deltas.items()} == {
        name: a.shape for name, a in weights["gan"].items()
    }
    assert any(a.any() for name, a in deltas.items() if name.startswith("critic."))
    assert (0, 0) in seen


def test_a_study_of_pairs_trains_its_wgan(tmp_path: Path) -> None:
    from common.models.wgan import build, parameters_by_name

    changes = {name: VESSELS[name] for name in ("modality", "intake", "models", "release")}
    plan = WganPlan.model_validate(VESSELS["models"]["wgan"])
    torch.manual_seed(0)
    generator, critic = build(plan, 32)
    pairs = {
        name: p.detach().numpy()
        for name, p in parameters_by_name(generator, generator, critic).items()
    }
    site = make_hospital(tmp_path / "hospital", weights={"wgan": pairs}, synthesis=None, **changes)
    folder = job_folder(site, tmp_path / "job", "train", "wgan", pairs, NO_GROUPS)
    work(Job.read(folder), folder, SECRET)
    deltas = tensors.read(folder / "out.safetensors", max_bytes=1 << 26)
    assert {name: a.shape for name, a in deltas.items()} == {
        name: a.shape for name, a in pairs.items()
    }
    assert any(a.any() for name, a in deltas.items() if name.startswith("critic."))


def test_two_children_of_one_job_never_give_the_same_noise(
    hospital: Hospital, weights: dict[str, tensors.Arrays], tmp_path: Path
) -> None:
    outputs = []
    for name in ("one", "two"):
        folder = job_folder(hospital, tmp_path / name, "train", "glow", weights["glow"], NO_GROUPS)
        work(Job.read(folder), folder, SECRET)
        outputs.append((folder / "out.safetensors").read_bytes())
    assert outputs[0] != outputs[1]


def test_a_child_has_no_key_and_no_proxy_in_its_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from client.daemon.jobs import _environment

    monkeypatch.setenv("KOHORT_SECRET", "x")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    environment = _environment(3)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert not {"KOHORT_SECRET", "HTTPS_PROXY"} & set(environment)


def test_a_refusal_leaves_its_code_and_no_output(
    hospital: Hospital, weights: dict[str, tensors.Arrays], tmp_path: Path
) -> None:
    folder = job_folder(hospital, tmp_path / "job", "train", "gan", weights["glow"], NO_GROUPS)
    ending = run_child(folder, 1, SECRET, threading.Event(), lambda *_: None)
    assert not ending.finished
    assert ending.code == "E-REFUSED"
    assert not (folder / "out.safetensors").exists()


def test_a_stop_kills_the_child(
    hospital: Hospital, weights: dict[str, tensors.Arrays], tmp_path: Path
) -> None:
    folder = job_folder(hospital, tmp_path / "job", "train", "gan", weights["gan"], NO_GROUPS)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        run_child(folder, 1, SECRET, stop, lambda *_: None)
    assert not (folder / "out.safetensors").exists()


CHILD = """
from common.process import end_with_input, end_with_parent
import os, signal, time
end_with_parent(signal.SIGKILL)
end_with_input(70)
print(os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdin=subprocess.PIPE)
time.sleep(60)
"""


def test_a_child_dies_with_its_parent_even_by_kill_9() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 20
        while alive(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive(child)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def batch(
    hospital: Hospital,
    weights: dict[str, tensors.Arrays],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A job folder after one image batch; untrained models know nothing, so every image counts as accepted and as passed."""
    monkeypatch.setattr("client.synthesize.invert.BLANK_DEVIATION", -1.0)
    monkeypatch.setattr("client.synthesize.invert.np.quantile", lambda *_: 10.0)
    monkeypatch.setattr("client.egress.audit.BLANK_DEVIATION", -1.0)
    monkeypatch.setattr("client.egress.audit.DUPLICATE_RMSE", -1.0)
    folder = job_folder(
        hospital, tmp_path / "batch", "synthesize", "", weights["gan"] | weights["glow"], NO_GROUPS
    )
    work(Job.read(folder), folder, SECRET)
    return folder


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
    for name in ("contact_sheet.png", "inversions.png"):
        assert (batch / name).read_bytes()[:4] == b"\x89PNG"
        assert (batch / name).stat().st_mode & 0o777 == 0o600


def test_frozen_groups_come_again_exactly(
    hospital: Hospital,
    weights: dict[str, tensors.Arrays],
    batch: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = Evidence.read(batch / "evidence.json").groups
    frozen = Evidence((first[0],), (), ()).to_json()
    folder = job_folder(
        hospital, tmp_path / "again", "synthesize", "", weights["gan"] | weights["glow"], frozen
    )
    work(Job.read(folder), folder, bytes(31) + b"\x01")
    assert first[0].token in {
        group.token for group in Evidence.read(folder / "evidence.json").groups
    }


def test_a_person_keeps_the_name_under_which_a_group_was_frozen(hospital: Hospital) -> None:
    cohort = Cohort.open(State(hospital.root).cohort(hospital.study.intake))
    object.__setattr__(cohort, "aliases", ((pseudonym(0), "old name"), *cohort.aliases[1:]))
    frozen = Group(("old name", *(pseudonym(p) for p in range(1, 5))), Stratum(0, 2), 5)
    names = person_names(cohort, (frozen,))
    assert names[0] == "old name"
    assert names[1:] == cohort.pseudonyms[1:]


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


def test_a_job_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job.json").write_text('{"kind": "train"}')
    monkeypatch.setattr("client.child.job.end_with_parent", lambda _: None)
    monkeypatch.setattr("client.child.job.end_with_input", lambda _: None)
    read_end, write_end = os.pipe()
    os.write(write_end, b"00\n")
    os.close(write_end)
    with os.fdopen(read_end) as secret:
        monkeypatch.setattr(sys, "stdin", secret)
        assert main([str(tmp_path)]) == 1
    assert (tmp_path / "error").read_text() == "E-REFUSED"


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


@pytest.mark.parametrize("code", ["A-NEAR", "A-COPY"])
def test_patients_images_never_choose_among_noised_averages_of_random_groups(
    code: Code,
    flow_hospital: Hospital,
    weights: dict[str, tensors.Arrays],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("client.child.checks.audit", verdict("A-PASS", code))
    folder = flow_batch(flow_hospital, weights, tmp_path / "job")
    with pytest.raises(PolicyError, match="the batch stops") as refused:
        work(Job.read(folder), folder, SECRET)
    assert refused.value.code == "E-AUDIT"
    assert not (folder / "out.safetensors").exists()


def verdict(*codes: Code) -> Callable[..., AuditReport]:
    """An audit that says these codes of two images, whatever they show, and A-PASS of fewer."""
    seen = AuditEvidence(0, (2.0,) * 3, (1.0,) * 3)

    def audit(released: np.ndarray, *_: object) -> AuditReport:
        fine: Code = "A-PASS"
        return AuditReport(
            codes if len(released) == len(codes) else (fine,) * len(released),
            (seen,) * len(released),
        )

    return audit


@pytest.mark.parametrize("leaks", [True, False])
def test_a_batch_that_gives_away_who_is_in_a_group_is_found_by_the_names_of_its_groups(
    leaks: bool,
) -> None:
    coarse = np.random.default_rng(4).integers(0, 255, (130, 4, 4, 3), dtype=np.uint8)
    images = np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2)
    names = tuple(f"{i:032x}" for i in range(80))
    cohort = SimpleNamespace(
        pseudonyms=names, aliases=((),) * 80, patient_of=np.arange(80), images=images[:80]
    )
    shown = (
        images if leaks else images[80:]
    )  # averages of the groups' members, or of people who are not here
    made = [
        Candidate(
            shown[i : i + 2].mean(0).astype(np.uint8), Group(names[i : i + 2], Stratum(0), 2), False
        )
        for i in range(0, 50, 2)
    ]
    assert reveals_members(SimpleNamespace(cohort=cohort), made) is leaks  # type: ignore[arg-type]


def made_batch(grouping: str) -> tuple[SimpleNamespace, list[Candidate]]:
    """A batch of that grouping with two images of plain groups."""
    cohort = SimpleNamespace(images=np.zeros((4, 8, 8, 3), np.uint8), patient_of=np.arange(4))
    anchors = object() if grouping == "anchors" else None
    made = [
        Candidate(np.full((8, 8, 3), i, np.uint8), Group((f"a{i}", f"b{i}"), Stratum(0), 2), False)
        for i in (0, 1)
    ]
    return SimpleNamespace(
        cohort=cohort, synthesis=SimpleNamespace(grouping=grouping, anchors=anchors)
    ), made


@pytest.mark.parametrize("grouping", ["similar", "similar-swap", "cells"])
def test_groups_that_images_chose_stop_when_the_batch_gives_their_members_away(
    grouping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.child.checks.audit", verdict("A-PASS", "A-PASS"))
    monkeypatch.setattr("client.child.checks.reveals_members", lambda *_: True)
    batch, made = made_batch(grouping)
    with pytest.raises(PolicyError, match="gives away who is in a group") as refused:
        drop_failed(batch, made)  # type: ignore[arg-type]
    assert refused.value.code == "E-AUDIT"


@pytest.mark.parametrize("grouping", ["random", "anchors"])
def test_the_check_of_the_whole_batch_does_not_even_look_where_epsilon_would_not_cover_its_answer(
    grouping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.child.checks.audit", verdict("A-PASS", "A-PASS"))
    monkeypatch.setattr(
        "client.child.checks.reveals_members",
        lambda *_: pytest.fail("patients' images decide what leaves"),
    )
    batch, made = made_batch(grouping)
    assert drop_failed(batch, made) == made  # type: ignore[arg-type]


def test_in_mode_anchors_nearness_is_a_fault_to_report_and_drops_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch, made = made_batch("anchors")
    monkeypatch.setattr("client.child.checks.audit", verdict("A-NEAR", "A-COPY"))
    assert drop_failed(batch, made) == made  # type: ignore[arg-type]
    said = capsys.readouterr().err  # child.log
    assert (
        said
        == "anchors: an image is nearer to a patient's than noise should let it be: report this\n"
    )
    monkeypatch.setattr("client.child.checks.audit", verdict("A-PASS", "A-PASS"))
    assert drop_failed(batch, made) == made  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("directions", [0, 2])
def test_averages_are_moved_out_before_they_are_drawn_where_the_plan_says_so(
    directions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned_codes, asked, drawn = torch.zeros(1, 2, 3), [], []
    plan = SMALL["synthesis"] | {"grouping": "cells", "spread_directions": directions}
    group = Group(tuple("abcde"), Stratum(0), 5)
    who = Roster(tuple("abcde"), (Stratum(0),) * 5, tuple((i,) for i in range(5)))
    looked = SimpleNamespace(spread=1.0), SimpleNamespace(accepted=np.ones(5, np.bool_))
    batch = SimpleNamespace(
        synthesis=small_study(synthesis=plan).synthesis, cohort=SimpleNamespace(images=np.zeros((5, 2, 2, 3))),
        generator=lambda: None, critic=lambda: None, progress=None,
    )  # fmt: skip
    monkeypatch.setattr("client.child.batch.measure_patients", lambda *_: {})
    monkeypatch.setattr("client.child.batch.gather", lambda *_: [])
    monkeypatch.setattr("client.child.batch.align", lambda *_: SimpleNamespace(codes=aligned_codes))
    monkeypatch.setattr(
        "client.child.batch.outputs",
        lambda codes, *_: drawn.append(codes) or [np.zeros((1, 2, 2, 3))],
    )
    moved = SimpleNamespace(moved=lambda codes: codes + 1)
    monkeypatch.setattr(
        "client.child.batch.directions_of", lambda *given: asked.append(given) or moved
    )
    align_groups(batch, [group], who, looked, torch.Generator())  # type: ignore[arg-type]
    assert torch.equal(drawn[0], aligned_codes + (directions > 0))
    assert asked == ([(looked[0], 2, 5, "cells", 0.75)] if directions else [])
