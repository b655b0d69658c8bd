"""Runs the installed ServerApp for one task: `python -m server.flower.app_process FOLDER APP`.

In: the claim as one line of standard input. Out: the task is completed, or the process ends with
another code than 0.
Guarantees: it imports what is installed and nothing from the network; it ends when the executor
does.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from common.logs import log_as_told
from common.process import end_with_input, keep_private
from server.flower.tasks import Claim
from server.flower.wire import grid_of, runtime_pb2, task_client
from server.front.sockets import SOCKETS, SocketFolder

STOPPED = 3


def run(folder: Path, app: str, claim: Claim) -> None:
    """Run the ServerApp and tell the SuperLink that the task is completed."""
    sockets = SocketFolder(folder / SOCKETS)
    answer = runtime_pb2.PullTaskInputResponse.FromString(claim.answer)
    grid, context = grid_of(sockets, claim.token, answer)
    module, _, attribute = app.partition(":")
    server_app = getattr(import_module(module), attribute)
    server_app(grid=grid, context=context)
    done = runtime_pb2.PushTaskOutputRequest(sub_status="completed")
    task_client(sockets, claim.token).PushTaskOutput(done)


def main() -> None:
    """Run the app that the command line names for the claim on standard input."""
    keep_private()
    log_as_told()
    claim = Claim.from_json(sys.stdin.buffer.readline())
    end_with_input(STOPPED)
    try:
        run(Path(sys.argv[1]), sys.argv[2], claim)
    except KeyboardInterrupt:
        # Flower interrupts the process whose task was stopped
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
