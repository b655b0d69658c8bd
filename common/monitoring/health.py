"""The standard gRPC health service (grpc.health.v1) of a daemon, and the probe that asks it.

In: an address of this machine, and for each service a function that says whether it is well.
Out: SERVING or NOT_SERVING; `probe` returns what a daemon answers.
Guarantees: a function that raises counts as not well; at most `CALLS` calls are served at once,
and none takes more than a few kilobytes; the daemon's children are started without gRPC's handlers
of forks.
Not covered: who on this machine asks; the answer is one word.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

# gRPC reads it once, so client and server set it before flwr imports gRPC (their __init__.py)
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# so that a probe that finds nobody prints no lines of a C library
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from common.errors import EnvironmentFault

LOOK_S = 2.0  # how often the functions are asked
CALLS = 16
PROBE_S = 5.0
ALL = ""  # the service name of the whole program
LIMITS = (
    ("grpc.so_reuseport", 0),  # a second daemon on this port is an error
    ("grpc.max_receive_message_length", 4096),
    ("grpc.max_metadata_size", 8192),
)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
log = logging.getLogger("kohort")


@contextmanager
def answering(address: str, services: Mapping[str, Callable[[], bool]]) -> Iterator[None]:
    """Answer probes until the block ends. `services`: whether each is well, by name.

    Raises EnvironmentFault (E-LISTEN) where the address is taken.
    """
    servicer = health.HealthServicer()
    _ask(servicer, services)
    server = grpc.server(
        ThreadPoolExecutor(max_workers=2, thread_name_prefix="health"),
        options=LIMITS,
        maximum_concurrent_rpcs=CALLS,
    )
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise EnvironmentFault(
            f"health.listen: {address}: it cannot be opened",
            hint="another program has this port, or this account may not write to the folder",
            code="E-LISTEN",
        ) from error
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(LOOK_S):
            _ask(servicer, services)

    thread = threading.Thread(target=look, name="health-look", daemon=True)
    server.start()
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        server.stop(grace=None).wait()


def _ask(servicer: health.HealthServicer, services: Mapping[str, Callable[[], bool]]) -> None:
    """Note for each service whether it is well now."""
    for name, is_well in services.items():
        well = False
        # whatever is wrong, it is not well
        with suppress(Exception):
            well = is_well()
        servicer.set(name, SERVING if well else NOT_SERVING)


def probe(address: str, service: str = ALL) -> bool:
    """Return whether a daemon answers SERVING; no answer within a few seconds is a no."""
    request = health_pb2.HealthCheckRequest(service=service)
    # a proxy of the environment is for other machines
    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PROBE_S)
        except grpc.RpcError:
            return False
    return bool(answer.status == SERVING)
