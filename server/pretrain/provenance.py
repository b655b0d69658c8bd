"""Where a checkpoint's public images come from, for its model card."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import ConfigurationError


@dataclass(frozen=True)
class Provenance:
    """Where the photographs come from, for the card. The first three are required.

    No weights without a source.
    """

    source: str
    licence: str
    attribution: str
    note: str = ""  # anything else that a reader must know about this training

    def __post_init__(self) -> None:
        missing = [
            name for name in ("source", "licence", "attribution") if not getattr(self, name).strip()
        ]
        if missing:
            raise ConfigurationError(
                f"pretrain: {', '.join(missing)}: missing", hint="the model card must name them"
            )
