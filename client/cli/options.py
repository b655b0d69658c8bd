"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StateFolder = Annotated[
    Path, typer.Option("--state", file_okay=False, help="the site's state folder")
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON line")]
Monitor = Annotated[
    bool,
    typer.Option(
        "--monitor", help="one line for a monitoring system; ends with 0 ok, 1 warning, 2 critical"
    ),
]
