"""Says which devices a child of this site will have: `python -m client.child.device`.

In: the site's `compute`, as one line of JSON on standard input.
Out: one line of JSON: the devices; or code, message and hint of a refusal.
Guarantees: it reads no data and holds no key; it ends with its parent.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict

from common.compute import Compute
from common.devices import describe, resolve
from common.errors import KohortError
from common.process import end_with_parent


def main() -> int:
    """Answer one question; returns 0, or the refusal's exit code."""
    end_with_parent(signal.SIGKILL)
    try:
        compute = Compute.model_validate_json(sys.stdin.readline())
        found = [asdict(describe(device)) for device in resolve(compute)]
    except KohortError as error:
        refusal = {"code": error.code, "message": str(error), "hint": error.hint}
        sys.stdout.write(json.dumps(refusal) + "\n")
        return error.exit_code
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
