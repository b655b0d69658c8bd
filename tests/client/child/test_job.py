"""The child process on tiny models: what it writes, what it refuses, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client.child.job import confine, device_memory_named, main, work
from client.daemon.jobs import run_child
from client.state.jobs import Job, Stopped
from common.compute import Compute
from common.errors import ConfigurationError, EnvironmentFault
from common.study.training import WganPlan
from common.wire import tensors
from tests.jobs import NO_GROUPS, SECRET, job_folder
from tests.sites import Hospital, make_hospital
from tests.studies import VESSELS


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
    from client.daemon.jobs import environment

    monkeypatch.setenv("KOHORT_SECRET", "x")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    inherited = environment(3)
    assert inherited["OMP_NUM_THREADS"] == "3"
    assert not {"KOHORT_SECRET", "HTTPS_PROXY"} & set(inherited)


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


def test_a_job_carries_its_devices_and_one_of_an_older_version_has_the_usual_ones(
    tmp_path: Path,
) -> None:
    compute = Compute(device="cuda:1", precision="bfloat16", memory_gib=4)
    job = Job("train", "gan", "/plan", "/cohort", "", 2, 0.5, "d", compute=compute)
    job.write(tmp_path / "job", b"", b"")
    assert Job.read(tmp_path / "job") == job
    file = tmp_path / "job" / "job.json"
    older = json.loads(file.read_text())
    del older["compute"], older["processes"]
    file.write_text(json.dumps(older))
    assert Job.read(tmp_path / "job").compute == Compute()


def test_a_child_without_its_gpu_refuses_before_the_reservation_is_used(
    hospital: Hospital,
    weights: dict[str, tensors.Arrays],
    tmp_path: Path,
) -> None:
    folder = job_folder(hospital, tmp_path / "job", "train", "gan", weights["gan"], NO_GROUPS)
    job = replace(Job.read(folder), compute=Compute(device="cuda:99"))
    job.write(folder, tensors.dumps(weights["gan"]), NO_GROUPS)
    with pytest.raises(ConfigurationError) as refused:
        confine(job)
    assert refused.value.code == "E-DEVICE"
    ending = run_child(folder, 1, SECRET, threading.Event(), lambda *_: None)
    assert (ending.finished, ending.code) == (False, "E-DEVICE")
    assert "progress" not in [file.name for file in folder.iterdir()]


def test_a_full_device_is_a_refusal_that_is_not_tried_again() -> None:
    with pytest.raises(EnvironmentFault) as refused, device_memory_named():
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert refused.value.code == "E-DEVICE-MEMORY"
