"""Writes a sample site.yaml from the model itself: every key, its default and what it means."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from client.state.config import Data, SiteConfig
from common.config import FrozenModel


def sample(site: str, folder: str, labels_csv: str | None = None) -> str:
    """Return a site.yaml with every key, its default and what it means, made from the model."""
    config = SiteConfig(site=site, data=Data(folder=folder, labels_csv=labels_csv))
    lines = [
        "# kohort: what this hospital gives and allows. Nothing in a study plan can raise these "
        "limits.",
        "",
    ]
    return "\n".join([*lines, *_sample_lines(config, "")]) + "\n"


def _sample_lines(model: FrozenModel, indent: str) -> Iterator[str]:
    """One commented line a field; nested models as blocks."""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, FrozenModel):
            yield f"\n# {value.__doc__}\n{name}:"
            yield from _sample_lines(value, indent + "  ")
        else:
            yield f"{indent}{name}: {_spell(value)}  # {field.description}"


def _spell(value: Any) -> str:
    """A value as YAML."""
    if isinstance(value, tuple):
        value = list(value)
    return json.dumps(value, ensure_ascii=False)
