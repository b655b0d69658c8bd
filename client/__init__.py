"""The hospital's side: ingest, private training, synthesis, the gate, and the daemon."""

import os

# Before anything imports flwr, which reads these once: both are on by default.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
