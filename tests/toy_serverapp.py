"""A ServerApp for the transport tests.

It sends what the files in $TOY_ORDERS ask for and writes down every reply.
It lies on the path of the ServerApp's process (tests/transport.py), never in a bundle.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()
nothing = None


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Serve order-1.json, order-2.json, …; an order without nodes ends the run."""
    folder = Path(os.environ["TOY_ORDERS"])
    (folder / "running").write_text(str(context.run_id))
    number = 1 + len(list(folder.glob("answer-*.json")))
    while True:
        path = folder / f"order-{number}.json"
        while not path.exists():
            time.sleep(0.05)
        order = json.loads(path.read_text())
        replies = _serve(grid, order)
        part = folder / "answer.part"
        part.write_text(json.dumps(replies))
        part.rename(folder / f"answer-{number}.json")
        if not order["nodes"]:
            return
        number += 1


def _serve(grid: Grid, order: dict[str, Any]) -> list[dict[str, Any]]:
    """Send one message to every node and gather replies until all are in or the time is over."""
    array = Array(np.frombuffer(bytes.fromhex(order["payload"]), dtype=np.uint8))
    head = ConfigRecord({"header": b"toy", "signature": b"none"})
    content = {"sealed": head, "payload": ArrayRecord({"payload": array})}
    messages = [
        Message(RecordDict(dict(content)), node, "query", ttl=order["timeout_s"] + 60)
        for node in order["nodes"]
    ]
    waiting = {message_id for message_id in grid.push_messages(messages) if message_id}
    replies: list[dict[str, Any]] = []
    deadline = time.time() + order["timeout_s"]
    while waiting and time.time() < deadline:
        for reply in grid.pull_messages(list(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            replies.append(_described(reply))
        time.sleep(0.05)
    return replies


def _described(reply: Message) -> dict[str, Any]:
    """A reply as JSON."""
    seen: dict[str, Any] = {"node": reply.metadata.src_node_id}
    if reply.has_error():
        return {**seen, "error": reply.error.code, "reason": reply.error.reason}
    array = next(iter(reply.content.array_records.values()))
    return {**seen, "payload": next(iter(array.values())).numpy().tobytes().hex()}
