"""The options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StateFolder = Annotated[Path, typer.Option("--state", help="the operator's state folder")]
StudyFile = Annotated[Path, typer.Argument(help="the plan: a study.yaml")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON line")]
