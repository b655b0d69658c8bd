"""The hospital's side: ingest, private training, synthesis, the gate, and the daemon."""

import os

# Before anything imports flwr, which reads these once: both are on by default.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
# Before anything imports gRPC, as flwr does: its fork handlers end some children before they start.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
