"""The runs that were not of a signed plan, and so were refused.

In: Flower's folder. Out: a row for each such run, the newest of very many.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import RefusedError, damage_named
from common.storage.files import atomic_write, read_capped

FOREIGN_FILE = "foreign-runs.json"
FOREIGN_CAP_BYTES = 1 << 20
FOREIGN_KEPT = 1000


def note_foreign_run(folder: Path, run_id: int, bundle: str) -> None:
    """Note a run that was refused; of very many the newest are kept."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    row = {"time": now, "run": run_id, "bundle": bundle[:64]}
    rows = [*foreign_runs(folder), row][-FOREIGN_KEPT:]
    atomic_write(folder / FOREIGN_FILE, json.dumps(rows).encode(), mode=0o600)


def foreign_runs(folder: Path) -> list[dict[str, Any]]:
    """Return the refused runs, oldest first; none where the file cannot be read."""
    path = folder / FOREIGN_FILE
    if not path.exists():
        return []
    try:
        text = read_capped(path, FOREIGN_CAP_BYTES)
        with damage_named(RefusedError(f"{path}: not a list of runs")):
            return [row for row in json.loads(text) if isinstance(row, dict)]
    except RefusedError:
        return []
