"""One request to a server: `python knock.py HOW HOST PORT STATE`; prints what came of it.

HOW: `member` with the certificate of a site's state folder, `nameless` without any, `tls12` with
the certificate and TLS 1.2. It prints a status, `refused`, or `unreachable`.
"""

from __future__ import annotations

import http.client
import ssl
import sys
from pathlib import Path


def knock(how: str, host: str, port: int, state: Path) -> str:
    """Return the status of `GET /`, or why there is none."""
    context = ssl.create_default_context(cafile=str(state / "ca.crt"))
    if how != "nameless":
        context.load_cert_chain(state / "node.crt", state / "keys" / "node.key")
    if how == "tls12":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    connection = http.client.HTTPSConnection(host, port, timeout=20, context=context)
    try:
        connection.connect()
        connection.request("GET", "/")
        return str(connection.getresponse().status)
    except ConnectionResetError:
        return "refused"
    except ssl.SSLError:
        return "refused"
    except OSError:
        return "unreachable"
    finally:
        connection.close()


if __name__ == "__main__":
    sys.stdout.write(knock(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])))
