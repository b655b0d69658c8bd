"""One intake as the tests of archives and of killed intakes run it."""

from __future__ import annotations

from pathlib import Path

from client.ingest.build import IngestReport, ingest
from client.ingest.request import Limits
from common.study.intake import Intake

ONE_WORKER = Limits(workers=1)
Stop = tuple[str, int]  # a phase, and how much of it is done


class Killed(BaseException):
    """Ends an intake wherever it is."""


def take_in(
    folder: tuple[Path, Path], rules: Intake, key: bytes, out: Path, stop: Stop | None = None
) -> IngestReport:
    """Ingest a source and its labels; `stop` raises Killed when so much of a phase is done."""

    def show(name: str, done: int, total: int) -> None:
        if stop is not None and name == stop[0] and done >= stop[1]:
            raise Killed

    source, labels = folder
    return ingest(
        source,
        rules,
        key,
        out,
        labels_csv=labels,
        limits=ONE_WORKER,
        aside=out.with_name("aside"),
        phases=show,
    )
