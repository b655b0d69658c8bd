"""The base of every typed model: frozen, and strict about unknown keys and infinite numbers."""

from pydantic import BaseModel, ConfigDict


class FrozenModel(BaseModel):
    """A model that cannot be changed, refuses unknown keys, and knows no NaN and no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
