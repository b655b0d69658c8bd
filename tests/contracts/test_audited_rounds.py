"""The gate's rule 26 over real rounds: the real trainers, private step and tally of tiny models."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.child.job import work
from client.cli.main import run_command_line
from client.daemon.jobs import Ending
from client.learn import lattice, private_step
from client.learn.private_step import PrivateStep
from client.state.canaries import CanaryFile
from client.state.folder import State
from client.state.jobs import Job, Progress
from client.state.membership import Membership
from common.errors import RefusedError
from common.models.glow import Glow
from common.models.glow_checkpoint import weights_of
from common.models.stylegan import Critic, Generator
from common.models.weights import numpy_weights
from common.models.wgan import build, parameters_by_name
from common.privacy.accounting import epsilon_pld
from common.privacy.audit_file import counts_of
from common.privacy.canary_audit import epsilon_at_least
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.tally import Tally
from common.study.training import WganPlan
from common.wire import signing, tensors
from server.evaluate.canary_rehearsal import load_audits
from tests.sites import SITE, Hospital, make_hospital, spend_once
from tests.studies import VESSELS

torch.set_num_threads(1)


@functools.cache
def weights() -> dict[str, tensors.Arrays]:
    """Starting weights of the small plans' models."""
    torch.manual_seed(0)
    generator, critic = build(WganPlan.model_validate(VESSELS["models"]["wgan"]), 32)
    pairs = parameters_by_name(generator, generator, critic)
    return {
        "gan": dict(numpy_weights(Generator(32, 3, 16, 16), "generator."))
        | dict(numpy_weights(Critic(32, 3, 16), "critic.")),
        "glow": dict(weights_of(Glow(32, 3, 3, 2, 16))),
        "wgan": {name: p.detach().numpy() for name, p in pairs.items()},
    }


def in_this_process(
    folder: Path, threads: int, secret: bytes, stop: threading.Event, progress: Progress
) -> Ending:
    """The child's work, where the test can break it."""
    work(Job.read(folder), folder, secret)
    return Ending(True)


def hospital_of(
    model: str, root: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> Hospital:
    """A site with this model; its children work in this process."""
    monkeypatch.setattr("client.daemon.jobs.run_child", in_this_process)
    for module in ("client.state.price", "client.state.ledger"):
        monkeypatch.setattr(f"{module}.spend", spend_once)
    if model == "wgan":
        pairs = {name: VESSELS[name] for name in ("modality", "intake", "models", "release")}
        given = {"wgan": weights()["wgan"]}
        return make_hospital(root, weights=given, synthesis=None, **{**pairs, **changes})
    given = {name: weights()[name] for name in ("gan", "glow")}
    return make_hospital(root, weights=given, **changes)


def answer(hospital: Hospital, model: str, number: int = 0) -> None:
    """One round, asked and answered."""
    ask = hospital.ask("train", model=model, round=number, weights=weights()[model])
    hospital.site().answer(ask)


def counted(hospital: Hospital, model: str) -> Tally | None:
    """What counts at the site."""
    count = hospital.study.privacy.canaries
    return CanaryFile(hospital.root / "canaries", hospital.study.hash(), model, count).counted()


@pytest.mark.parametrize("model", ["gan", "glow", "wgan"])
def test_an_honest_round_passes_its_own_gate(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = hospital_of(model, tmp_path, monkeypatch)
    answer(hospital, model)
    tally = counted(hospital, model)
    assert tally is not None
    assert (tally.steps, len(tally.own), len(tally.inside)) == (2, 300, 150)
    assert len(tally.sizes) > 3 and tally.sizes.sum() > 3000
    found = counts_of(tally, hospital.study, model)
    assert found.release_ratio == pytest.approx(1, abs=0.1)
    assert found.noise_ratio == pytest.approx(1, abs=0.6)


def test_a_layer_that_alone_trains_is_metered_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = hospital_of("gan", tmp_path, monkeypatch, models__gan__trainable=["critic.score."])
    answer(hospital, "gan")
    tally = counted(hospital, "gan")
    assert tally is not None and len(tally.sizes) <= 3


def noise(
    change: Callable[[NDArray[np.int64], int], NDArray[np.int64]],
) -> Callable[[pytest.MonkeyPatch], None]:
    """A private step whose noise is changed; `change` gets it with the number of weights."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        honest = private_step._NoiseThread.wait

        def wait(self: private_step._NoiseThread) -> NDArray[np.int64]:
            drawn = honest(self)
            return change(drawn, len(drawn) - 300)

        monkeypatch.setattr(private_step._NoiseThread, "wait", wait)

    return patch


def on_dummies_alone(z: NDArray[np.int64], weights: int) -> NDArray[np.int64]:
    """The noise, but for the model's own coordinates."""
    z[:weights] = 0
    return z


def remove_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row goes into the sum as long as it is."""

    def factors(rows: Tensor, clip: float) -> Tensor:
        return torch.full((len(rows),), lattice.LATTICE / clip)

    monkeypatch.setattr(lattice, "_factors", factors)


def remove_long_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 64 coordinates and more are clipped at three times the norm."""
    honest = lattice._factors

    def factors(rows: Tensor, clip: float) -> Tensor:
        if rows.shape[1] < 64 or rows.shape[1] == 300:
            return honest(rows, clip)
        return honest(rows / 3, clip)

    monkeypatch.setattr(lattice, "_factors", factors)


def release_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """What leaves the step is not what the noise was added to."""
    honest = PrivateStep._by_name

    def by_name(self: PrivateStep, flat: Tensor) -> dict[str, Tensor]:
        return honest(self, flat * 0)

    observe = private_step.CanarySum.observe

    def observed(self: Any, released: Tensor, *rest: Any) -> None:
        released = released.clone()
        released[: len(released) - 300] *= 0
        observe(self, released, *rest)

    monkeypatch.setattr(PrivateStep, "_by_name", by_name)
    monkeypatch.setattr(private_step.CanarySum, "observe", observed)


BROKEN: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "the clip is removed": remove_clip,
    "the noise is removed": noise(lambda z, weights: z * 0),
    "the noise is on dummy coordinates alone": noise(on_dummies_alone),
    "the noise is half": noise(lambda z, weights: z // 2),
    "the noise is divided by the root of two items": noise(
        lambda z, weights: (z / np.sqrt(2)).astype(np.int64)
    ),
    "nothing but zeros is released": release_without_noise,
}


def check_closed(hospital: Hospital, model: str) -> None:
    """A round is refused by rule 26; nothing is sent, and nothing counts."""
    with pytest.raises(RefusedError) as refused:
        answer(hospital, model)
    assert refused.value.code == "E-GATE-26"
    assert not list((hospital.root / "outbox").glob("*"))
    assert counted(hospital, model) is None


@pytest.mark.parametrize("model", ["gan", "glow", "wgan"])
@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.replace(" ", "-"))
def test_a_broken_private_step_closes_the_gate(
    case: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = hospital_of(model, tmp_path, monkeypatch)
    BROKEN[case](monkeypatch)
    check_closed(hospital, model)


def test_a_clip_that_is_loose_for_long_rows_alone_closes_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty steps: three clip norms are less than one step's noise of four."""
    hospital = hospital_of("glow", tmp_path, monkeypatch, models__glow__local_steps=30)
    remove_long_clip(monkeypatch)
    check_closed(hospital, "glow")


def membership(hospital: Hospital) -> None:
    """Write what `kohort-site join` writes."""
    facts = Membership(
        format="kohort-join/1",
        site=SITE,
        server_url="https://127.0.0.1:1",
        ca="",
        operator_key=signing.public_text(hospital.operator.public_key()),
        client_certificate="",
    )
    State(hospital.root).membership.write_text(facts.model_dump_json())


# --- the bracket of a rehearsal

# enough power to tell a broken step from an honest one in eight steps
SHORT = {"rounds": 1, "local_steps": 8, "noise_multiplier": 6.0, "patients_per_step": 50}
CLAIMED = 0.92  # epsilon of these steps at delta 1e-5, by PLD


def bracket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[..., None] | None
) -> float:
    """The lower bound that a site measures in eight steps of its GAN, whatever the gate says."""
    changes = {f"models__gan__{name}": value for name, value in SHORT.items()}
    hospital = hospital_of("gan", tmp_path, monkeypatch, **changes)
    tallies: list[Tally] = []

    def note(latest: Tally, *_: object) -> str:
        tallies.append(latest)
        return ""

    monkeypatch.setattr("client.egress.gate.fault", note)
    if broken:
        broken(monkeypatch)
    answer(hospital, "gan")
    found = counts_of(tallies[0], hospital.study, "gan")
    return epsilon_at_least(found.canaries, found.guesses, found.correct, 1e-5)


def test_an_honest_bracket_lies_below_the_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bracket(tmp_path, monkeypatch, None) < CLAIMED
    event = SubsampledGaussian(0.5, SHORT["noise_multiplier"], int(SHORT["local_steps"]))
    assert epsilon_pld([event], 1e-5) == pytest.approx(CLAIMED, abs=0.01)


@pytest.mark.parametrize(
    "case",
    ["the clip is removed", "the noise is removed", "the noise is on dummy coordinates alone"],
)
def test_a_broken_private_step_changes_the_bracket(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bracket(tmp_path, monkeypatch, BROKEN[case]) > CLAIMED


def test_a_release_prints_what_the_rehearsals_own_private_steps_showed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hospital = hospital_of("gan", tmp_path / "site", monkeypatch)
    membership(hospital)
    out = tmp_path / "hospital-a.audit.json"
    export = ["audit", "--state", str(hospital.root), "--out", str(out)]

    # a hospital's own audit stays; a rehearsal's is written once all its rounds were answered
    assert run_command_line(export) == 3
    assert "rehearsal: true" in capsys.readouterr().err
    settings = hospital.root / "site.yaml"
    settings.write_text(settings.read_text().replace("rehearsal: false", "rehearsal: true"))
    for model, number in (("gan", 0), ("gan", 1)):
        answer(hospital, model, number)
    assert run_command_line(export) == 3
    assert "models.glow: 0 of 2 steps" in capsys.readouterr().err
    assert not out.exists()
    answer(hospital, "glow")
    assert run_command_line(export) == 0

    # the operator's release says it, and nothing without it
    found = load_audits(hospital.study, [out])
    assert {name: (a.steps, a.canaries, a.sites) for name, a in found.items()} == {
        "gan": (4, 150, 1),
        "glow": (2, 150, 1),
    }
    for name, model in found.items():
        counts = counted(hospital, name)
        assert counts is not None
        assert model.correct == counts_of(counts, hospital.study, name).correct
        # one audit in twenty of an honest step lies above its epsilon: that is what 95 % means, and
        # a bound that refutes the claim for certain is refused by load_audits itself
        shown = epsilon_at_least(model.canaries, model.guesses, model.correct, model.delta)
        assert model.lower_bound == shown <= model.ceiling
        assert 0 < model.upper_bound < 8
    assert load_audits(hospital.study, []) == {}
