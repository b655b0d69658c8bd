"""uvicorn as both fronts run it: no lifespan, no websockets, no log of its own."""

from __future__ import annotations

from typing import Any

import uvicorn

from server.front import rules


def web_server(app: Any) -> uvicorn.Server:
    """Return a server of one ASGI application, loaded and not started."""
    config = uvicorn.Config(
        app,
        interface="asgi3",
        lifespan="off",
        ws="none",
        access_log=False,
        log_level="critical",
        timeout_keep_alive=rules.IDLE_S,
        server_header=False,
        timeout_graceful_shutdown=int(rules.LINGER_S),
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    return server
