"""Keeps a study running: registers sites, submits the app bundle, watches, submits again.

In: the operator's calls on a running SuperLink, the registry, the study's record.
Out: returns when the study is complete, or abandoned and its sites told.
Guarantees: one run at a time; a new start resumes, because every decision is in the record; it
gives up with a code after `limits.failures` failed runs without a round closed in between.
Not covered: what a run does (server/rounds/loop.py), the programs (superlink.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from common.errors import KohortError, PeerError, RefusedError
from common.storage.files import atomic_write
from server.flower.calls import Node, RunStatus
from server.operator.config import Limits
from server.operator.foreign import foreign_runs
from server.operator.issued import open_issued
from server.operator.issuing import Issuer
from server.operator.sites import Registry, Site
from server.operator.state import ServerState
from server.rounds.record import Progress, StudyRecord

TURN_S = 0.5
STATUS_S = 1.0
RESUBMIT_S = 5.0
START_S = 300.0  # how long a SuperLink may take to answer again
LOOK_S = 10.0  # how often it asks when the sites were heard
FINISH_S = 1.0  # for the app of a complete study to end by itself
log = logging.getLogger("kohort.server")


class Link(Protocol):
    """What the coordinator needs of `server.flower.calls.OperatorCalls`."""

    def register(self, public_key: Path, name: str) -> int: ...
    def nodes(self) -> tuple[Node, ...]: ...
    def unregister(self, node_id: int) -> None: ...
    def submit(self, app: Path) -> int: ...
    def run_status(self, run_id: int) -> RunStatus: ...
    def stop_run(self, run_id: int) -> None: ...


@dataclass
class Coordinator:
    """One study on one link.

    `show` gets the progress whenever it may have changed, `say` what a person should read;
    `turn` is called at every turn of the loop, for a watchdog; `note_seen` gets when each site was
    heard last.
    """

    state: ServerState
    link: Link
    registry: Registry
    record: StudyRecord
    app_folder: Path
    limits: Limits
    show: Callable[[Progress], None] = lambda progress: None
    say: Callable[[str], None] = lambda text: None
    turn: Callable[[], None] = lambda: None
    note_seen: Callable[[Mapping[str, float]], None] = lambda seen: None
    turn_s: float = TURN_S
    resubmit_s: float = RESUBMIT_S
    start_s: float = START_S
    _refused: set[str] = field(default_factory=set)
    _foreign: str = ""
    _silent_since: float | None = None
    _next_look: float = 0.0
    _issuer: Issuer = field(init=False)

    def __post_init__(self) -> None:
        """Issue certificates beside the study."""
        self._issuer = Issuer(self.state, self.registry, lambda line: self.say(line))

    def run(self) -> None:
        """Return when the study is complete.

        Raises PeerError (E-RUN-FAILED) when it cannot be completed.
        """
        self._stop_old_run()
        earlier = foreign_runs(self.state.superlink)
        if earlier:
            self._foreign = str(earlier[-1]["time"])
        failures = 0
        best = -1
        while not self.record.ended():
            self.turn()
            done = self.record.progress().done
            if done > best:
                best = done
                failures = 0
            if failures >= self.limits.failures:
                log_file = self.state.superlink / "serverapp.log"
                raise PeerError(
                    f"{failures} runs failed without a round closed in between",
                    hint=f"read {log_file}, then start `kohort-server run` again",
                    code="E-RUN-FAILED",
                )
            if self._attempt():
                continue
            if self._is_unreachable():
                # it starts again by itself; that is no failed run
                time.sleep(self.resubmit_s)
            else:
                failures += 1
                self.say(
                    f"run failed ({failures} of {self.limits.failures}); "
                    "submitted again from the last round"
                )
                time.sleep(self.resubmit_s)
        self.show(self.record.progress())

    def _is_unreachable(self) -> bool:
        """Whether the SuperLink does not answer, and not for longer than a start may take."""
        try:
            self.link.nodes()
        except PeerError:
            if self._silent_since is None:
                self._silent_since = time.monotonic()
            return time.monotonic() - self._silent_since < self.start_s
        self._silent_since = None
        return False

    def restore_nodes(self) -> None:
        """Register again the sites that Flower has lost, under their old names."""
        known = {node.node_id for node in self.link.nodes()}
        for name, site in self.registry.sites().items():
            if site.active and site.node_id not in known and name not in self._refused:
                try:
                    self._register(site)
                    if site.next_node_key:
                        # `sync_sites` registers it again
                        self.registry.begin_rotation(name, site.next_node_key, again=True)
                except RefusedError as error:
                    self._refused.add(name)
                    self.say(f"{name}: {error}")

    def sync_sites(self) -> None:
        """Tell Flower of newly enrolled and of revoked sites."""
        for name, site in self.registry.sites().items():
            if name in self._refused:
                continue
            try:
                if site.state == "enrolled":
                    self._register(site)
                elif site.state == "revoked" and site.node_id is not None:
                    self.link.unregister(site.node_id)
                    self.registry.note_unregistered(name)
                    self.say(f"{name}: revoked")
                elif site.next_node_key and site.state != "revoked":
                    self._rotate(site)
            except RefusedError as error:
                self._refused.add(name)
                self.say(f"{name}: {error}")

    # --- inside

    def _rotate(self, site: Site) -> None:
        """Register a site's next node key; once the front has seen it, the old one goes."""
        if site.next_node_id is None:
            node_id = self._register_key(f"{site.name}-next", site.name, site.next_node_key)
            self.registry.note_next_registered(site.name, node_id)
            return
        with open_issued(self.state.root) as issued:
            seen = issued.seen(site.name)
        if seen is None or seen.key != site.next_node_key:
            return
        self.registry.end_rotation(site.name)
        self.say(f"{site.name}: its new node key counts")
        if site.node_id is not None:
            self.link.unregister(site.node_id)

    def _register_key(self, file: str, name: str, line: str) -> int:
        """The node id that Flower gives to a key."""
        key_file = self.state.node_keys / f"{file}.pub"
        atomic_write(key_file, (line + "\n").encode())
        return self.link.register(key_file, name)

    def _register(self, site: Site) -> None:
        """Register an enrolled site's node key.

        The registry decides: another process may have noted this enrolment a moment ago.
        """
        node_id = self._register_key(site.name, site.name, site.node_key)
        self.registry.note_registered(site.name, node_id)
        self.say(f"{site.name}: registered")

    def _attempt(self) -> bool:
        """Submit one run and watch it; True when the study is complete."""
        try:
            self.restore_nodes()
            self.sync_sites()
            run_id = self.link.submit(self.app_folder)
            self.record.journal.append("run", "submitted", {"run_id": run_id})
            return self._watch(run_id)
        except PeerError as error:
            log.warning("%s", error)
            return self.record.ended()

    def _watch(self, run_id: int) -> bool:
        """Look after one run until it has ended."""
        next_status = time.monotonic() + STATUS_S
        while not self.record.ended():
            self.turn()
            self.show(self.record.progress())
            self._tell_foreign_runs()
            try:
                self._issuer.turn()
                self.sync_sites()
                self._look_at_sites()
                if time.monotonic() >= next_status:
                    if self.link.run_status(run_id).finished:
                        break
                    next_status = time.monotonic() + STATUS_S
            except PeerError:
                # the run goes on when the SuperLink is back
                if not self._is_unreachable():
                    raise
            time.sleep(self.turn_s)
        if self.record.ended():
            time.sleep(FINISH_S)
        self.record.journal.append("run", "ended", {"run_id": run_id})
        return self.record.ended()

    def _look_at_sites(self) -> None:
        """Note from time to time when Flower heard each site last."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_S
        heard = {node.node_id: node.seen for node in self.link.nodes()}
        seen = {}
        for name, site in self.registry.sites().items():
            if site.node_id is not None and heard.get(site.node_id):
                seen[name] = heard[site.node_id]
        self.note_seen(seen)

    def _tell_foreign_runs(self) -> None:
        """Say once of each run that was not of this plan and did not run."""
        for row in foreign_runs(self.state.superlink):
            if str(row["time"]) > self._foreign:
                self.say(f"a foreign run was refused at {row['time']} (E-APP-UNPINNED)")
                self._foreign = str(row["time"])

    def _stop_old_run(self) -> None:
        """End a run that an earlier coordinator left behind."""
        entry = self.record.journal.latest("run")
        if entry is None or entry.state != "submitted":
            return
        try:
            if not self.link.run_status(int(entry.data["run_id"])).finished:
                self.link.stop_run(int(entry.data["run_id"]))
        except KohortError as error:
            log.warning("%s", error)
