"""What a person asked `kohort-site privatize` for, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from client.ingest.quarantine import Reason
from common.errors import ConfigurationError
from common.study.synthesis import PrivatizePlan


@dataclass(frozen=True)
class Request:
    """Which images, where to, and how.

    Without `section` the plan's own `privatize` section holds. `section`, `basis` and `weights` are
    for work on site only.
    """

    source: Path
    target: Path
    section: PrivatizePlan | None = None
    basis: Path | None = None
    weights: Path | None = None
    dicom: bool = False
    export: bool = False


@dataclass(frozen=True)
class Outcome:
    """For this screen: images written, files refused and why, images the flow cannot encode."""

    written: int
    statement: str
    refused: tuple[tuple[str, Reason], ...]
    unknown: tuple[str, ...]
    charged: int = 0
    repeated: int = 0

    def lines(self) -> Iterator[str]:
        """Yield what a person reads."""
        yield f"{self.written} images; {self.statement}"
        for name, reason in self.refused:
            yield f"not used: {name}: {reason.value}: {reason.sentence}"
        for name in self.unknown:
            yield f"far from anything this flow knows: {name}: its output shows nothing of it"
        if self.charged or self.repeated:
            yield (
                f"{self.charged} ledger entries; {self.repeated} images had been drawn before: "
                "the same bytes again, at no cost"
            )


def check_request(request: Request, state: Path) -> None:
    """Raise ConfigurationError unless the target is usable and the options fit together.

    The target is a new or empty folder outside the state folder, which belongs to the daemon.
    """
    target = request.target.resolve()
    root = state.resolve()
    if target == root or root in target.parents:
        raise ConfigurationError(
            f"{request.target}: lies in the state folder", hint="name a folder outside --state"
        )
    exists = request.target.exists()
    if exists and (not request.target.is_dir() or any(request.target.iterdir())):
        raise ConfigurationError(
            f"{request.target}: expected a new or empty folder", hint="name another OUT"
        )
    if request.export and (request.section or request.basis or request.weights):
        raise ConfigurationError(
            "--export takes mechanism, noise, basis and flow from the plan",
            hint="leave the other options out",
        )
