"""The operator's calls on a running SuperLink: sites and runs.

In: names, public keys, app bundles. Out: node ids, run ids, run states.
Guarantees: a key that is registered keeps its node id; an app bundle with code in it, or one that
Flower packs with another hash than the sites pin, does not run.
Not covered: what a run computes (server/app.py).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import PeerError, RefusedError
from common.storage.files import atomic_write, read_capped
from common.wire.app_bundle import CLIENT_APP, SERVER_APP, check_app
from server.flower.command_line import FlowerCli

CONNECTION = "kohort"  # the server's name in Flower's configuration file
KEY_CAP_BYTES = 65_536
NODES_CAP_BYTES = 1 << 20
TEXT_END = 400  # characters of a program's output that an error repeats


@dataclass(frozen=True)
class Node:
    """A site as Flower sees it; `status` is online, offline, registered or unregistered."""

    node_id: int
    name: str
    status: str


@dataclass(frozen=True)
class RunStatus:
    """Where a run is.

    `status` is pending, starting, running or finished; then `outcome` is completed, failed or
    stopped.
    """

    run_id: int
    status: str
    outcome: str
    details: str
    fab_hash: str

    @property
    def finished(self) -> bool:
        """The run has ended, well or not."""
        return self.status == "finished"

    @property
    def completed(self) -> bool:
        """The run has ended well."""
        return self.finished and self.outcome == "completed"


class OperatorCalls:
    """Commands of Flower's command line, and a note of the registered sites in nodes.json."""

    def __init__(self, cli: FlowerCli, state_dir: Path) -> None:
        self._cli = cli
        self._nodes_file = state_dir / "nodes.json"

    # --- sites

    def register(self, public_key: Path, name: str) -> int:
        """Return the node id of the site with this public key file.

        Raises RefusedError for a key that was revoked (Flower never takes it back) or that is not
        an EC key.
        """
        line = b" ".join(read_capped(public_key, KEY_CAP_BYTES).split()[:2])
        digest = hashlib.sha256(line).hexdigest()
        node_id = self._registered_id(digest)
        if node_id is not None:
            return node_id
        key_file = str(public_key.resolve())
        answer = self._flwr("supernode", "register", key_file, CONNECTION, "--name", name)
        node_id = int(answer["node-id"])
        entries = self._read_nodes()
        entries[str(node_id)] = {"name": name, "key": digest}
        atomic_write(self._nodes_file, json.dumps(entries, indent=1).encode(), mode=0o600)
        return node_id

    def _registered_id(self, digest: str) -> int | None:
        """The node id of a key that is registered and not revoked."""
        known = {node_id: entry["key"] for node_id, entry in self._read_nodes().items()}
        if digest not in known.values():
            return None
        for node in self.nodes():
            if known.get(str(node.node_id)) == digest and node.status != "unregistered":
                return node.node_id
        return None

    def unregister(self, node_id: int) -> None:
        """Revoke a site for good: its key can never be registered again."""
        self._flwr("supernode", "unregister", str(node_id), CONNECTION)

    def nodes(self) -> tuple[Node, ...]:
        """Return every site that was ever registered here."""
        entries = self._read_nodes()
        answer = self._flwr("supernode", "list", CONNECTION, "--verbose")
        nodes = []
        for row in answer["nodes"]:
            node_id = str(row["node-id"])
            name = entries.get(node_id, {}).get("name", "")
            nodes.append(Node(int(node_id), name, str(row["status"])))
        return tuple(nodes)

    def _read_nodes(self) -> dict[str, dict[str, str]]:
        """The note of who was registered: Flower's command line does not tell names."""
        if not self._nodes_file.exists():
            return {}
        entries: dict[str, dict[str, str]] = json.loads(
            read_capped(self._nodes_file, NODES_CAP_BYTES)
        )
        return entries

    # --- runs

    def submit(
        self, app: Path, *, server_app: str = SERVER_APP, client_app: str = CLIENT_APP
    ) -> int:
        """Return the id of a new run of the app bundle in a folder.

        Raises RefusedError for a bundle with code in it, PeerError (E-BUNDLE-HASH) when Flower
        packs another hash than the sites pin.
        """
        expected = check_app(app, server_app=server_app, client_app=client_app)
        answer = self._flwr("run", str(app.resolve()), CONNECTION)
        run_id = int(answer["run-id"])
        packed = str(answer["fab-hash"])
        if not expected.startswith(packed):
            self.stop_run(run_id)
            raise PeerError(
                f"{app}: packed by Flower as {packed}…, expected {expected[:8]}…",
                hint="flwr and kohort disagree on the bundle format: no site would accept this run",
                code="E-BUNDLE-HASH",
            )
        return run_id

    def run_status(self, run_id: int) -> RunStatus:
        """Return where the run is."""
        row = self._flwr("list", CONNECTION, "--run-id", str(run_id))["runs"][0]
        status, _, outcome = str(row["status"]).partition(":")
        details = str(row.get("status-details", ""))
        return RunStatus(run_id, status, outcome, details, str(row["fab-hash"]))

    def stop_run(self, run_id: int) -> None:
        """Ask Flower to end the run."""
        self._flwr("stop", str(run_id), CONNECTION)

    def run_log(self, run_id: int) -> str:
        """Return what the ServerApp of this run has printed."""
        return self._cli.run(["log", str(run_id), CONNECTION, "--show"]).text

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """The answer of one command; raises with Flower's own words if it fails."""
        done = self._cli.run([*arguments, "--format", "json"])
        answer = find_json(done.text)
        if done.code == 0 and answer is not None and answer.get("success", True):
            return answer
        words = str((answer or {}).get("error-message", "")) or done.text[-TEXT_END:].strip()
        what = f"flwr {' '.join(arguments[:2])}: {words}"
        if "[code: 23]" in words:
            raise RefusedError(
                what,
                hint="this key was revoked: the site must make a new one",
                code="E-KEY-REVOKED",
            )
        raise PeerError(what, code="E-FLOWER")


def find_json(text: str) -> dict[str, Any] | None:
    """Return the JSON object in what a command printed."""
    start = text.find("{")
    end = text.rfind("}")
    if start < 0 or end < start:
        return None
    try:
        answer = json.loads(text[start : end + 1])
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None
