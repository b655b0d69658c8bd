"""Where a checkpoint's public images come from, for its model card."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import ConfigurationError


@dataclass(frozen=True)
class Provenance:
    """Where the images come from. The first three are required: no weights without a source."""

    source: str
    licence: str
    attribution: str
    note: str = ""  # anything else that a reader must know about this training

    def __post_init__(self) -> None:
        missing = []
        for name in ("source", "licence", "attribution"):
            if not getattr(self, name).strip():
                missing.append(name)
        if missing:
            raise ConfigurationError(
                f"pretrain: {', '.join(missing)}: missing", hint="the model card must name them"
            )
