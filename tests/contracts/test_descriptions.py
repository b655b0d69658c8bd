"""Every key of study.yaml, site.yaml and server.yaml is described in its schema."""

import typing
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from client.state.config import SiteConfig
from common.study.plan import Study
from server.operator.config import ServerConfig


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The models inside an annotation such as `tuple[SitePlan, ...]` or `GanPlan | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from models_in(part)


def keys_of(model: type[BaseModel], where: str) -> Iterator[tuple[str, str]]:
    """Every key below a model with its description."""
    for name, field in model.model_fields.items():
        yield f"{where}.{name}", field.description or ""
        for part in models_in(field.annotation):
            yield from keys_of(part, f"{where}.{name}")


KEYS = [*keys_of(Study, "study"), *keys_of(SiteConfig, "site"), *keys_of(ServerConfig, "server")]


@pytest.mark.parametrize(("key", "description"), KEYS, ids=[key for key, _ in KEYS])
def test_every_key_is_described(key: str, description: str) -> None:
    assert len(description) >= 10, key
    assert "\n" not in description, key
    assert not description.endswith("."), key
