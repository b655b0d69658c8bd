"""How a site reaches its server: site.yaml, the join file and the state folder, put together."""

from __future__ import annotations

from client.fleet.connection import FleetSettings
from client.state.config import SiteConfig
from client.state.folder import State
from client.state.membership import Membership


def fleet_settings(state: State, config: SiteConfig, membership: Membership) -> FleetSettings:
    """Return where the server is and what this site shows to it."""
    root = state.root
    return FleetSettings(
        url=membership.server_url,
        ca_file=root / "ca.crt",
        node_key_file=state.node_key,
        state_dir=root / "fleet",
        client_certificate=root / "node.crt",
        proxy=config.network.proxy,
        poll_s=config.network.poll_s,
        max_message_bytes=config.limits.max_message_mib << 20,
        inbox_bytes=config.limits.inbox_bytes,
    )
