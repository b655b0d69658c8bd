"""Field types that several sections of a plan share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from common.config import FrozenModel

Identifier = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
Label = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
Positive = Annotated[float, Field(gt=0)]
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"  # of a file or folder
CHECKPOINT_CAP_BYTES = 1 << 30


class Checkpoint(FrozenModel):
    """A public starting checkpoint: a safetensors file beside the plan, pinned by its SHA-256."""

    file: str = Field(
        pattern=rf"^{NAME_PATTERN}(/{NAME_PATTERN}){{0,3}}\.safetensors$",
        description="path of the safetensors file, relative to the plan's folder; at most three "
        "folders deep",
    )
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="the file's SHA-256, 64 hex digits; `kohort-server pin` writes it",
    )

    @property
    def name(self) -> str:
        """The file's name inside a bundle's checkpoints/ folder."""
        return Path(self.file).name
