"""The consortium's side: enrolment, intake, aggregation, evaluation, release and rehearsal."""

import os

# Before anything imports gRPC, as flwr does: its fork handlers end some children before they start.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
