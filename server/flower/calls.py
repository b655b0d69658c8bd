"""The operator's calls on a running SuperLink: sites and runs.

In: names, public keys, app bundles. Out: node ids, run ids, run states.
Guarantees: a key that is registered keeps its node id; an app bundle with code in it does not run;
the bundle's hash is computed here and by the SuperLink, and compared.
Not covered: what a run computes (server/app.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization

from common.errors import PeerError, RefusedError
from common.storage.files import read_capped
from common.wire.app_bundle import CLIENT_APP, SERVER_APP, app_files, archive, check_app
from server.flower.wire import control_client, control_pb2, fab_pb2
from server.front.sockets import SocketFolder
from server.operator.certificates import parse_site_key

KEY_CAP_BYTES = 65_536
STUDY_CAP_BYTES = 1 << 20
WORDS = 400  # characters of an answer that an error repeats
GONE = "unregistered"
HEARTBEATS_TRUSTED = 2  # Flower's HEARTBEAT_PATIENCE


@dataclass(frozen=True)
class Node:
    """A site as Flower sees it; `status` is online, offline, registered or unregistered.

    `seen`: when it was heard last, in seconds since 1970; 0 for never.
    """

    node_id: int
    name: str
    status: str
    public_key: bytes
    seen: float = 0.0


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
    """Calls of Flower's Control API over the operator's socket."""

    def __init__(self, sockets: SocketFolder) -> None:
        self._client = control_client(sockets)

    def close(self) -> None:
        """End the connection to the SuperLink."""
        self._client.close()

    # --- sites

    def register(self, public_key: Path, name: str) -> int:
        """Return the node id of the site with this public key file.

        Raises RefusedError for a key that was revoked (Flower never takes it back) or that is not
        an EC key.
        """
        key = parse_site_key(read_capped(public_key, KEY_CAP_BYTES).decode(errors="replace"))
        pem = key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        known = [node for node in self.nodes() if node.public_key.strip() == pem.strip()]
        for node in known:
            if node.status != GONE:
                return node.node_id
        if known:
            raise RefusedError(
                f"{name}: this key was revoked",
                hint="this key was revoked: the site must make a new one",
                code="E-KEY-REVOKED",
            )
        request = control_pb2.RegisterNodeRequest(public_key=pem, name=name)
        return int(self._ask("register", lambda: self._client.RegisterNode(request)).node_id)

    def unregister(self, node_id: int) -> None:
        """Revoke a site for good: its key can never be registered again."""
        request = control_pb2.UnregisterNodeRequest(node_id=node_id)
        self._ask("unregister", lambda: self._client.UnregisterNode(request))

    def nodes(self) -> tuple[Node, ...]:
        """Return every site that was ever registered here."""
        request = control_pb2.ListNodesRequest()
        answer = self._ask("list nodes", lambda: self._client.ListNodes(request))
        nodes = []
        for row in answer.nodes_info:
            node_id, key = int(row.node_id), bytes(row.public_key)
            nodes.append(Node(node_id, row.name, row.status, key, _last_seen(row)))
        return tuple(nodes)

    # --- runs

    def submit(
        self, app: Path, *, server_app: str = SERVER_APP, client_app: str = CLIENT_APP
    ) -> int:
        """Return the id of a new run of the app bundle in a folder.

        Raises RefusedError for a bundle with code in it, PeerError (E-BUNDLE-HASH) when Flower
        computes another hash than the sites pin.
        """
        expected = check_app(app, server_app=server_app, client_app=client_app)
        study_yaml = read_capped(app / "study.yaml", STUDY_CAP_BYTES)
        content = archive(app_files(study_yaml, server_app=server_app, client_app=client_app))
        assert hashlib.sha256(content).hexdigest() == expected
        fab = fab_pb2.Fab(hash_str=expected, content=content)
        request = control_pb2.StartRunRequest(fab=fab)
        run_id = int(self._ask("start run", lambda: self._client.StartRun(request)).run_id)
        computed = self.run_status(run_id).fab_hash
        if computed != expected:
            self.stop_run(run_id)
            raise PeerError(
                f"{app}: Flower computes the hash {computed[:8]}…, expected {expected[:8]}…",
                hint="flwr and kohort disagree on the bundle format: no site would accept this run",
                code="E-BUNDLE-HASH",
            )
        return run_id

    def run_status(self, run_id: int) -> RunStatus:
        """Return where the run is."""
        request = control_pb2.ListRunsRequest(run_id=run_id)
        answer = self._ask("list runs", lambda: self._client.ListRuns(request))
        run = answer.run_dict[run_id]
        state = run.status
        return RunStatus(run_id, state.status, state.sub_status, state.details, run.fab_hash)

    def stop_run(self, run_id: int) -> None:
        """Ask Flower to end the run."""
        request = control_pb2.StopRunRequest(run_id=run_id)
        self._ask("stop run", lambda: self._client.StopRun(request))

    def _ask(self, what: str, call: Callable[[], Any]) -> Any:
        """The answer of one call; raises PeerError (E-FLOWER) with Flower's own words."""
        try:
            return call()
        except httpx.HTTPStatusError as error:
            words = error.response.text[:WORDS].strip()
            raise PeerError(f"SuperLink: {what}: {words}", code="E-FLOWER") from error
        except (httpx.HTTPError, ValueError) as error:
            raise PeerError(
                f"SuperLink: {what}: {type(error).__name__}", code="E-FLOWER"
            ) from error


def _last_seen(row: Any) -> float:
    """When Flower heard a node last: a heartbeat lets it count as online for two intervals."""
    if not row.online_until:
        return 0.0
    return max(0.0, float(row.online_until) - HEARTBEATS_TRUSTED * float(row.heartbeat_interval))
