"""The generated reference is current and complete: keys, commands, codes, reasons, states."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.ingest.quarantine import Reason
from client.state.config import SiteConfig
from common.study.plan import Study
from docs.generator.__main__ import pages
from docs.generator.codes import REFERENCE, advice, codes_in_sources
from server.operator.config import ServerConfig

ROOT = Path(__file__).parents[2]
MODELS = {"study-yaml": Study, "site-yaml": SiteConfig, "server-yaml": ServerConfig}


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    return pages()


@pytest.mark.parametrize(
    "name",
    [
        "study-yaml",
        "site-yaml",
        "server-yaml",
        "kohort-site",
        "kohort-server",
        "kohort",
        "inputs",
        "errors",
        "reasons",
        "health",
        "exit-codes",
        "metrics",
    ],
)
def test_each_page_of_the_reference_is_what_the_sources_say(
    name: str, written: dict[str, str]
) -> None:
    hint = "run `python -m docs.generator` and commit docs/reference"
    assert (REFERENCE / f"{name}.md").read_text() == written[f"{name}.md"], hint


def test_no_page_of_the_reference_is_left_over(written: dict[str, str]) -> None:
    notice = "<!-- Written by"
    generated = {p.name for p in REFERENCE.glob("*.md") if p.read_text().startswith(notice)}
    assert generated == set(written)


def keys_of(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key of a model and of the models inside it."""
    for name, model in {"": schema, **schema["$defs"]}.items():
        for key, field in model["properties"].items():
            yield f"{name or 'file'}.{key}", field


@pytest.mark.parametrize("name", MODELS)
def test_every_key_is_described(name: str) -> None:
    undescribed = []
    for key, field in keys_of(MODELS[name].model_json_schema()):
        if not field.get("description"):
            undescribed.append(key)
    assert undescribed == []


@pytest.mark.parametrize("name", MODELS)
def test_every_section_is_described(name: str) -> None:
    definitions = MODELS[name].model_json_schema()["$defs"]
    assert [key for key, model in definitions.items() if not model.get("description")] == []


@pytest.mark.parametrize("name", MODELS)
def test_every_key_stands_in_the_reference(name: str) -> None:
    page = (REFERENCE / f"{name}.md").read_text()
    for key, _ in keys_of(MODELS[name].model_json_schema()):
        assert re.search(rf"^\| `(\S+\.)?{key.rpartition('.')[2]}` \|", page, re.MULTILINE), key


def test_every_error_code_of_the_sources_has_a_meaning_and_a_fix() -> None:
    listed = advice("codes.toml")
    assert set(listed) == codes_in_sources()
    for code, entry in listed.items():
        assert set(entry) == {"who", "means", "fix"}, code
        assert all(entry.values()), code


def test_every_reason_of_the_quarantine_has_a_sentence_and_a_fix() -> None:
    assert set(advice("reasons.toml")) == {reason.value for reason in Reason}
    assert all(reason.sentence for reason in Reason)
    assert all(advice("reasons.toml").values())
