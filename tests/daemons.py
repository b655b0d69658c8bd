"""A real `kohort-site run` in a process of its own, before a scripted server over TLS."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from flwr.proto.run_pb2 import GetRunResponse, Run

from client.daemon.standing import site_standing
from client.fleet.connection import create_node_key
from client.state.folder import State
from client.state.membership import Membership
from common.wire import signing, tensors
from server.operator.certificates import (
    Authority,
    ServerFiles,
    create_authority,
    issue_server_certificate,
    issue_site_certificate,
)
from tests.fleet_server import PROTOBUF, RUN_ID, FleetServer, instruction
from tests.sites import SITE, Hospital
from tests.transport import until


class Daemon:
    """One hospital whose daemon is a process, before a scripted server over TLS."""

    def __init__(
        self, folder: Path, hospital: Hospital, weights: dict[str, tensors.Arrays]
    ) -> None:
        self.weights = weights
        self.hospital = hospital
        self.state = State(hospital.root)
        self.authority: Authority = create_authority(folder / "ca")
        files: ServerFiles = issue_server_certificate(self.authority, folder / "server")
        self.server = FleetServer(files)
        [pin] = self.hospital.site().plans.pins()
        answer = GetRunResponse(run=Run(run_id=RUN_ID, fab_hash=pin)).SerializeToString()
        self.server.instead["get-run"] = lambda request: (200, PROTOBUF, answer)
        create_node_key(self.state.node_key, self.state.node_key.with_suffix(".pub"), SITE)
        self.certify(30)
        (self.state.root / "ca.crt").write_bytes(files.ca.read_bytes())
        operator = signing.public_text(self.hospital.operator.public_key())
        membership = Membership(
            format="kohort-join/1",
            site=SITE,
            server_url=self.server.url,
            ca=files.ca.read_text(),
            operator_key=operator,
            client_certificate=(self.state.root / "node.crt").read_text(),
        )
        self.state.membership.write_text(membership.model_dump_json())
        self.log = folder / "log"

    def certify(self, days: float) -> None:
        """Write the site's certificate."""
        public = self.state.node_key.with_suffix(".pub").read_text()
        issue_site_certificate(
            self.authority, SITE, public, self.state.root / "node.crt", days=days
        )

    def start(self) -> None:
        """Start it with an open umask and core dumps allowed, as a careless shell would."""
        program = str(Path(sys.executable).parent / "kohort-site")
        command = [program, "run", "--state", str(self.state.root)]
        shell = f"umask 000; ulimit -c unlimited 2>/dev/null; exec {' '.join(command)}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(["sh", "-c", shell], stdout=log, stderr=log)
        until(lambda: self.code() == "CONNECTED", 60.0)

    def ask(self, model: str, number: int = 0) -> None:
        """Queue the instruction of one training round."""
        sealed = self.hospital.ask("train", model=model, round=number, weights=self.weights[model])
        payload = np.frombuffer(sealed.payload, np.uint8)
        signed = {"header": sealed.header, "signature": sealed.signature}
        self.server.queue(instruction(payload, kind="train", **signed))

    def code(self) -> str:
        """What `kohort-site status` says of the connection."""
        assert self.process.poll() in (None, -9), self.log.read_text()
        for one in site_standing(self.state.root, counts=False).connection:
            if one.state.subject == "connection":
                return one.state.code
        return ""

    def child(self) -> int:
        """The process id of its child, 0 for none."""
        task = Path(f"/proc/{self.process.pid}/task")
        for path in task.glob("*/children"):
            for pid in path.read_text().split():
                return int(pid)
        return 0

    def end(self) -> None:
        """End everything."""
        self.process.kill()
        self.process.wait()
        self.server.close()
