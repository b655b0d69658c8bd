"""A whole study over the server's own loop and the sites' own daemons; children are scripted.

What the honest server sends is taken by every site, and the release's evidence names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from client.daemon.site import Site
from client.state.config import load_site
from client.state.folder import State, new_pseudonym_key
from client.state.membership import Membership
from client.state.plans import Plans
from client.state.sample import sample as site_sample
from common.errors import RefusedError
from common.wire import signing, tensors
from common.wire.messages import digest_of, unseal
from server.rounds.intake import Instruction
from server.rounds.loop import train_round
from tests.federation import Fate, Federation, ToySite, crashed, dropped, honest
from tests.sites import scripted, write_cohort


def start_site(root: Path, toy: ToySite, bundle: Path) -> Site:
    """A daemon with the keys of a toy, whose staff approved the plan and ask for no review."""
    place = State(root)
    root.mkdir()
    text = site_sample(toy.name, str(root)).replace("send_slot_s: 2.0", "send_slot_s: 0")
    (root / "site.yaml").write_text(text.replace("threads: 0", "threads: 1"))
    new_pseudonym_key(place.pseudonym_key)
    signing.save_private(place.sign_key, toy.key)
    write_cohort(place.cohort(toy.study.intake), toy.study)
    Plans(place, toy.operator).approve(bundle)
    config = load_site(root)
    policy = config.policy.model_copy(update={"review": "not_required"})
    membership = Membership(
        format="kohort-join/1",
        site=toy.name,
        server_url="https://127.0.0.1:1",
        ca="",
        operator_key=signing.public_text(toy.operator),
        client_certificate="",
    )
    return Site(place, config.model_copy(update={"policy": policy}), membership)


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Federation:
    found = Federation.create(tmp_path, round_deadline_s=1.5)
    scripted(monkeypatch, found.study)
    for name, toy in found.sites.items():
        site = start_site(tmp_path / name, toy, tmp_path / "bundle")
        monkeypatch.setattr(toy, "answer", site.answer)
    return found


SCRIPTS: dict[str, Mapping[str, Iterable[Fate]]] = {
    "everybody is there": {},
    "a site is away for a while, and one dies before it sends": {
        "hospital-c": [honest, *[dropped] * 6],
        "hospital-a": [crashed, honest, crashed],
    },
}


@pytest.mark.parametrize("scripts", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_an_honest_study_is_never_refused(
    federation: Federation, scripts: Mapping[str, Iterable[Fate]]
) -> None:
    run = federation.run(scripts)
    assert run.record.complete()
    codes = [entry.key for entry in run.record.journal.entries() if entry.state == "code"]
    assert codes == []
    assert {site.state for site in run.registry.sites().values()} == {"registered"}
    # every batch names the weights that the server sent
    batches = run.record.batches()
    assert len(batches) >= federation.study.quorum
    for batch in batches:
        header = unseal(batch.parts[0], signing.parse_public(batch.key), max_bytes=1 << 24)
        assert header.statement["weights"] == digest_of(run.synthesis_weights())


def test_a_server_with_weights_of_its_own_gets_no_images(federation: Federation) -> None:
    run = federation.open()
    grid = federation.grid()
    train_round(run, grid, "gan", 0)
    train_round(run, grid, "gan", 1)
    train_round(run, grid, "glow", 0)
    weights = {name: 1e30 + 0 * array for name, array in run.record.weights("gan", 2).items()}
    hostile = run.record.weights("glow", 1) | weights
    asked = run.sign_instruction(
        Instruction(run.study, "synthesize", "", 0), tensors.dumps(hostile), "hospital-a", {}
    )
    with pytest.raises(RefusedError) as refused:
        federation.sites["hospital-a"].answer(asked)
    assert refused.value.code == "E-GATE-16"
