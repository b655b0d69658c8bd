"""Where everything lies in the operator's state folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.wire import signing
from server.operator.log import OperatorLog


@dataclass(frozen=True)
class ServerState:
    """The server's state folder. One server runs in it at a time (`lock`)."""

    root: Path

    @property
    def config(self) -> Path:
        """server.yaml."""
        return self.root / "server.yaml"

    @property
    def authority(self) -> Path:
        """The certificate authority's folder."""
        return self.root / "ca"

    @property
    def operator_key(self) -> Path:
        """The Ed25519 key that signs plans, instructions and releases."""
        return self.root / "keys" / "operator.key"

    @property
    def next_operator_key(self) -> Path:
        """The operator's key that comes, until every hospital knows it."""
        return self.root / "keys" / "operator-next.key"

    @property
    def tls(self) -> Path:
        """The server's certificate files."""
        return self.root / "tls"

    def site_certificate(self, name: str) -> Path:
        """The certificate that a site was given last."""
        return self.root / "certificates" / f"{name}.crt"

    def renewal_file(self, name: str) -> Path:
        """The request of a site for its next certificate."""
        return self.root / "renewals" / f"{name}.json"

    @property
    def sites(self) -> Path:
        """The registry of sites."""
        return self.root / "sites.sqlite"

    @property
    def node_keys(self) -> Path:
        """Public key files as Flower's command line wants them."""
        return self.root / "node-keys"

    @property
    def superlink(self) -> Path:
        """Flower's own folder."""
        return self.root / "superlink"

    @property
    def lock(self) -> Path:
        """Held by the running server."""
        return self.root / "lock"

    @contextmanager
    def open_log(self) -> Iterator[OperatorLog]:
        """Yield the operator's log; its heads are signed where the key needs no passphrase."""
        log = OperatorLog(self.root, lambda: signing.load_private(self.operator_key))
        try:
            yield log
        finally:
            log.close()

    def study(self, study_hash: str) -> Path:
        """The folder of one study."""
        return self.root / "studies" / study_hash
