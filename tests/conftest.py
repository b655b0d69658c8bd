"""What holds in every process of the tests, before a test imports anything."""

import os

# as client and server do for themselves: the tests start children from processes that know gRPC
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
