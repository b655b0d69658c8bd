"""benchmarks/study_256.py: its people, its plan, what it looks at."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import study_256
from benchmarks.invented_fundus import draw_photographs, read_photographs, write_jpegs
from benchmarks.processes import Relay, Watch, peak_mib
from common.process import free_port
from common.study.plan import Study

SIZES_PX = (32, 64, 96, 128, 256, 512)


def test_invented_photographs_are_distinct_and_the_same_again() -> None:
    people = draw_photographs(8, 48, seed=0)
    assert people.images.shape == (8, 48, 48, 3)
    assert people.grades == (0, 3) * 4
    assert people.sides == ("L", "L", "R", "R") * 2
    assert len({image.tobytes() for image in people.images}) == 8
    assert np.array_equal(people.images, draw_photographs(8, 48, seed=0).images)
    assert not people.images[:, 0, 0].any()  # black outside of the field


@pytest.mark.parametrize("sites", [2, 3])
def test_people_are_dealt_once_and_every_kind_to_everybody(tmp_path: Path, sites: int) -> None:
    people = draw_photographs(24, 32, seed=0)
    dealt = [people.deal(number, sites) for number in range(sites)]
    assert [len(some.images) for some in dealt] == [24 // sites] * sites
    assert len({image.tobytes() for some in dealt for image in some.images}) == 24
    for number, some in enumerate(dealt):
        crops = write_jpegs(some, tmp_path / str(number))
        kinds = {(grade, side) for _, grade, side in crops}
        assert kinds == {(0, "L"), (3, "L"), (0, "R"), (3, "R")}
        with Image.open(crops[0][0]) as picture:
            assert picture.size == (32, 32)


def test_real_photographs_take_the_invented_ones_place(tmp_path: Path) -> None:
    images = draw_photographs(12, 32, seed=0).images
    labels = np.array([0] * 6 + [1, 2, 3, 4, 1, 2], np.uint8)
    np.savez(tmp_path / "real.npz", images=images, labels=labels)
    people = read_photographs(tmp_path / "real.npz", 64, 12)
    assert people.images.shape == (12, 64, 64, 3)
    assert people.grades == (0, 3) * 6
    assert set(people.sides) == {"L", "R"}


@pytest.mark.parametrize("size_px", SIZES_PX)
def test_the_plan_is_valid_at_every_size(size_px: int) -> None:
    plan = study_256.plan_of(size_px, sites=3, patients=40)
    for model in ("gan", "glow"):
        plan["models"][model]["max_update_norm"] = 1.0
    study = Study.model_validate(plan)
    assert study.intake.size_px == size_px
    told = study_256.forecast(study)
    assert {"gan", "glow", "encoder", "invert", "align", "privatize"} <= set(told)


def test_a_process_is_named_by_its_command_line() -> None:
    name = study_256.name_process
    assert name(["python", "/venv/bin/kohort-server", "run", "bundle"]) == "kohort-server run"
    front = name(["python", "-P", "-m", "server.front.process", "state"])
    assert front == "kohort-server run: front"
    assert name(["python", "-m", "something.else"]) == ""


def test_a_process_below_this_one_is_seen_with_its_memory_and_time() -> None:
    code = "x = b'1' * (64 << 20); sum(range(10**7)); input()"
    with Watch(lambda words: "child" if code in words else "") as watch:
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
        seen = threading.Event()
        for _ in range(300):
            if watch.uses.get("child") and watch.uses["child"].mib > 64:
                break
            seen.wait(0.1)
        child.communicate(b"\n")
    assert watch.uses["child"].mib > 64
    assert watch.uses["child"].count == 1


def test_a_programs_peak_leaves_out_the_process_that_started_it() -> None:
    own = peak_mib(Path("/proc/self/status").read_text())
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as child:
        peak = peak_mib(Path(f"/proc/{child.pid}/status").read_text())
        child.communicate(b"\n")
    assert 0 < peak < own / 2
    assert peak_mib("State:\tZ (zombie)\n") == 0


def test_the_relay_passes_bytes_on_and_counts_them() -> None:
    public, real = free_port(), free_port()
    with socket.create_server(("127.0.0.1", real)) as server, Relay(public, real) as relay:
        with socket.create_connection(("127.0.0.1", public)) as client:
            client.sendall(b"question")
            inner, _ = server.accept()
            with inner:
                assert inner.recv(64) == b"question"
                inner.sendall(b"answer")
                assert client.recv(64) == b"answer"
        assert (relay.sent, relay.received) == (8, 6)
