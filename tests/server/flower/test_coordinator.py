"""The coordinator against a scripted link: registration, resubmission, giving up, resuming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common.errors import ConfigurationError, PeerError, RefusedError
from common.wire import signing
from server.flower import coordinator
from server.flower.calls import Node, RunStatus
from server.flower.coordinator import Coordinator
from server.operator import issuing
from server.operator.foreign import note_foreign_run
from server.operator.issued import Fact, open_issued
from server.rounds.loop import train_round
from tests.federation import QUICK, Federation


@dataclass
class ScriptedLink:
    """Answers as a SuperLink does; `runs[i]` is what the i-th run does before it ends."""

    runs: list[Callable[[], None]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    revoked: bool = False
    lost: bool = False  # Flower has forgotten every node but the one it gives now

    def nodes(self) -> tuple[Node, ...]:
        known = range(7, 8) if self.lost else range(1000)
        return tuple(Node(number, "", "online", b"") for number in known)

    def register(self, public_key: Path, name: str) -> int:
        assert public_key.read_text().strip(), (
            "the coordinator writes the key file itself, from the registry"
        )
        self.calls.append(f"register {name}")
        if self.revoked:
            raise RefusedError("this key was revoked", code="E-KEY-REVOKED")
        return 7

    def unregister(self, node_id: int) -> None:
        self.calls.append(f"unregister {node_id}")

    def submit(self, app: Path) -> int:
        self.calls.append("submit")
        if self.runs:
            self.runs.pop(0)()
        return len(self.calls)

    def run_status(self, run_id: int) -> RunStatus:
        return RunStatus(run_id, "finished", "failed", "", "")

    def stop_run(self, run_id: int) -> None:
        self.calls.append(f"stop {run_id}")


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Federation:
    monkeypatch.setattr(coordinator, "STATUS_S", 0.0)
    return Federation.create(tmp_path)


def coordinate(federation: Federation, link: ScriptedLink) -> tuple[Coordinator, list[str]]:
    run, said = federation.open(), list[str]()
    place = federation.state
    made = Coordinator(
        place, link, run.registry, run.record, place.root / "app", QUICK, say=said.append
    )
    made.turn_s = made.resubmit_s = 0.0
    return made, said


def test_a_failed_run_is_submitted_again_until_the_study_is_complete(
    federation: Federation,
) -> None:
    link = ScriptedLink([lambda: None, lambda: None, lambda: federation.run() and None])
    coordinate(federation, link)[0].run()
    assert link.calls.count("submit") == 3


def test_it_gives_up_after_five_failures_without_progress(federation: Federation) -> None:
    link = ScriptedLink()
    with pytest.raises(PeerError) as caught:
        coordinate(federation, link)[0].run()
    assert caught.value.code == "E-RUN-FAILED" and link.calls.count("submit") == 5


def test_every_turn_of_the_loop_feeds_the_watchdog(federation: Federation) -> None:
    link = ScriptedLink()
    made, _ = coordinate(federation, link)
    turns: list[int] = []
    made.turn = lambda: turns.append(link.calls.count("submit"))
    with pytest.raises(PeerError):
        made.run()
    # before each submission, and while each run is watched
    assert turns == sorted(turns) and set(turns) == {0, 1, 2, 3, 4, 5}
    assert len(turns) >= 10


def test_progress_gives_new_attempts(federation: Federation) -> None:
    run = federation.open()
    link = ScriptedLink(
        [*[lambda: None] * 4, lambda: train_round(run, federation.grid(), "gan", 0)]
    )
    with pytest.raises(PeerError):
        coordinate(federation, link)[0].run()
    assert link.calls.count("submit") == 10


def enrol_again(made: Coordinator, federation: Federation) -> None:
    """A site that was revoked comes back with new keys."""
    request = federation.request("hospital-b", federation.sites["hospital-b"])
    keys = {"node_key": "node x", "sign_key": signing.public_text(signing.new_key().public_key())}
    made.registry.enrol(request.model_copy(update=keys))


def test_newly_enrolled_sites_are_registered_and_revoked_ones_unregistered(
    federation: Federation,
) -> None:
    link = ScriptedLink()
    made, said = coordinate(federation, link)
    made.registry.revoke("hospital-a")
    made.registry.revoke("hospital-b")
    enrol_again(made, federation)
    made.sync_sites()
    made.sync_sites()
    assert link.calls == ["unregister 100", "register hospital-b"]
    assert made.registry.get("hospital-b").node_id == 7
    assert said == ["hospital-a: revoked", "hospital-b: registered"]


def test_a_key_that_flower_refuses_stops_nothing(federation: Federation) -> None:
    link = ScriptedLink(revoked=True)
    made, said = coordinate(federation, link)
    made.registry.revoke("hospital-b")
    enrol_again(made, federation)
    made.sync_sites()
    made.sync_sites()
    assert link.calls.count("register hospital-b") == 1 and "revoked" in said[-1]


def test_a_run_that_an_earlier_server_left_is_ended_first(federation: Federation) -> None:
    link = ScriptedLink([lambda: federation.run() and None])
    link.run_status = lambda run_id: RunStatus(run_id, "running", "", "", "")  # type: ignore[method-assign]
    made, _ = coordinate(federation, link)
    made.record.journal.append("run", "submitted", {"run_id": 41})
    federation.run()
    made.run()
    assert link.calls == ["stop 41"]


def test_sites_that_flower_has_lost_are_registered_again_under_their_names(
    federation: Federation,
) -> None:
    link = ScriptedLink(lost=True)
    made, _ = coordinate(federation, link)
    names = [name for name, site in made.registry.sites().items() if site.active]
    made.restore_nodes()
    assert link.calls == [f"register {name}" for name in names]
    assert [made.registry.get(name).node_id for name in names] == [7] * len(names)
    made.restore_nodes()
    assert len(link.calls) == len(names)


def test_a_foreign_run_is_told_once(federation: Federation) -> None:
    made, said = coordinate(federation, ScriptedLink())
    note_foreign_run(federation.state.superlink, 9, "ab" * 32)
    made._tell_foreign_runs()
    made._tell_foreign_runs()
    assert len(said) == 1 and "E-APP-UNPINNED" in said[0]


def test_when_each_site_was_heard_is_noted_by_its_name_and_not_at_every_turn(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = ScriptedLink()
    made, _ = coordinate(federation, link)
    active = {site.node_id: name for name, site in made.registry.sites().items() if site.active}
    first, *_ = active
    heard = {first: 1000.5}
    asked: list[None] = []

    def nodes() -> tuple[Node, ...]:
        asked.append(None)
        return tuple(Node(id, "", "online", b"", heard.get(id, 0.0)) for id in active if id)

    monkeypatch.setattr(link, "nodes", nodes)
    noted: list[dict[str, float]] = []
    made.note_seen = lambda seen: noted.append(dict(seen))
    made._look_at_sites()
    made._look_at_sites()
    # who was never heard has no time
    assert noted == [{active[first]: 1000.5}]
    assert len(asked) == 1


def test_a_superlink_that_starts_again_is_waited_for_and_its_run_goes_on(
    federation: Federation,
) -> None:
    """Its sockets refuse for longer than five attempts take."""
    link = ScriptedLink([lambda: federation.run() and None])
    away = [0] * 20

    def nodes() -> tuple[Node, ...]:
        if away:
            away.pop()
            raise PeerError("gone", code="E-FLOWER")
        return tuple(Node(number, "", "online", b"") for number in range(1000))

    link.nodes = nodes  # type: ignore[method-assign]
    coordinate(federation, link)[0].run()
    assert link.calls.count("submit") == 1


def test_a_superlink_that_stays_away_ends_the_server(federation: Federation) -> None:
    def gone() -> tuple[Node, ...]:
        raise PeerError("gone", code="E-FLOWER")

    link = ScriptedLink()
    link.nodes = gone  # type: ignore[method-assign]
    made, _ = coordinate(federation, link)
    made.start_s = 0.2
    with pytest.raises(PeerError) as ended:
        made.run()
    assert ended.value.code == "E-RUN-FAILED"


def test_a_site_with_a_new_node_key_is_two_nodes_until_the_front_has_seen_the_new_one(
    federation: Federation,
) -> None:
    link = ScriptedLink()
    made, said = coordinate(federation, link)
    made.registry.begin_rotation("hospital-a", "next key")
    made.sync_sites()
    assert link.calls == ["register hospital-a"]
    site = made.registry.get("hospital-a")
    old = site.node_id
    assert (site.next_node_id, site.state) == (7, "registered")
    # nothing changes until it came with the new one
    made.sync_sites()
    assert link.calls == ["register hospital-a"]
    with open_issued(federation.state.root) as issued:
        issued.note_seen("hospital-a", Fact("1", "next key", "", ""))
    made.sync_sites()
    site = made.registry.get("hospital-a")
    assert (site.node_key, site.node_id, site.next_node_key) == ("next key", 7, "")
    assert site.active
    assert link.calls == ["register hospital-a", f"unregister {old}"]
    assert said == ["hospital-a: its new node key counts"]


def test_certificates_that_cannot_be_issued_are_told_once_and_end_no_study(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigurationError("ca.key: protected by a passphrase", hint="give it")

    monkeypatch.setattr(issuing, "issue_waiting", refuse)
    monkeypatch.setattr(issuing, "EVERY_S", 0.0)
    made, said = coordinate(federation, ScriptedLink())
    made._issuer.turn()
    made._issuer.turn()
    assert said == [
        "certificates of sites cannot be renewed: ca.key: protected by a passphrase (give it)"
    ]
