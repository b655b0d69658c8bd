"""The keys of study.yaml, site.yaml and server.yaml, from their models' JSON schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from docs.generator.markdown import fenced, page, table

ROOT = Path(__file__).parents[2]
UNITS = {"_s": "seconds", "_px": "pixels", "_mib": "MiB", "_gib": "GiB"}

Schema = dict[str, Any]


def key_page(title: str, model: type[BaseModel], before: list[str]) -> str:
    """Return the page of one file: a table a section, each key once."""
    schema = model.model_json_schema()
    lines = [*before, *section("", schema, schema["$defs"])]
    shared = shared_sections(schema)
    for name in shared:
        lines += [f"## A {name.lower()}", "", *section("", schema["$defs"][name], schema["$defs"])]
    return page(title, *lines)


def section(prefix: str, schema: Schema, definitions: Schema) -> list[str]:
    """Return the table of a model and the sections of the models inside it."""
    rows = []
    inner: list[str] = []
    for name, field in schema["properties"].items():
        required = name in schema.get("required", ())
        rows.append(key_row(prefix + name, field, required))
        nested = reference_in(field)
        if nested and nested not in SHARED:
            path = prefix + name + ("[]" if "items" in without_null(field) else "")
            inner += [f"## `{path}`", "", definitions[nested]["description"], ""]
            inner += section(path + ".", definitions[nested], definitions)
    return [*table(("Key", "Values", "Default", "Meaning"), rows), *inner]


SHARED = ("Checkpoint",)  # models that several sections name: one table each, at the page's end


def shared_sections(schema: Schema) -> list[str]:
    """Return which of the shared models this file has."""
    return [name for name in SHARED if name in schema["$defs"]]


def key_row(key: str, field: Schema, required: bool) -> tuple[str, ...]:
    """Return key, allowed values, default and meaning."""
    default = "**required**" if required else default_of(field)
    return (f"`{key}`", values_of(key, field), default, described(key, field))


def described(key: str, field: Schema) -> str:
    """Return a key's description; a section's is its own heading."""
    nested = reference_in(field)
    if nested in SHARED:
        return f"{field.get('description', '')} (see [a {nested.lower()}](#a-{nested.lower()}))"
    if "description" not in field and nested:
        return f"see [`{key}`](#{anchor(key)}) below"
    return str(field["description"])


def anchor(key: str) -> str:
    """Return the anchor of a heading, as mkdocs makes it."""
    return key.replace(".", "").replace("[]", "")


def default_of(field: Schema) -> str:
    """Return the default as YAML spells it; a section's defaults are its keys'."""
    value = field.get("default")
    if reference_in(field) and value is not None:
        return "see below"
    if value is None and field.get("type") == "object":
        return "empty"
    if value is None:
        return "none" if "default" in field else "see below"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value != [] and value != {} else "empty"


def reference_in(field: Schema) -> str | None:
    """Return the name of the model that a key holds, alone, in a list, or beside null."""
    field = without_null(field)
    target = field.get("$ref") or field.get("items", {}).get("$ref")
    return target.rpartition("/")[2] if target else None


def without_null(field: Schema) -> Schema:
    """Return the schema of a key's value, where it is not null."""
    for choice in field.get("anyOf", ()):
        if choice.get("type") != "null":
            return dict(choice)
    if "allOf" in field:
        return dict(field["allOf"][0])
    return field


def values_of(key: str, field: Schema) -> str:
    """Return which values a key takes, in words."""
    field = without_null(field)
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    kind = field.get("type")
    if kind == "array":
        return list_of(key, field)
    if kind in ("integer", "number"):
        name = "whole number" if kind == "integer" else "number"
        return name + unit_of(key) + range_of(field)
    if kind == "string":
        most = field.get("maxLength")
        return f"text, at most {most} characters" if most else "text"
    keys = "ssh-ed25519" in str(field)
    pairs = "pairs `name: public key line`" if keys else "pairs `name: other name`"
    names = {"boolean": "`true` or `false`", "object": pairs}
    return names.get(str(kind), "a section")


def list_of(key: str, field: Schema) -> str:
    """Return the words for a list."""
    if "prefixItems" in field:
        return f"two values, each a {values_of(key, field['prefixItems'][0])}"
    least = field.get("minItems", 0)
    most = field.get("maxItems")
    count = f" of {least} to {most}" if most else f" of at least {least}" if least else ""
    inner = field["items"]
    entries = "sections" if "$ref" in inner else values_of(key, inner)
    return f"list{count}: {entries}"


def unit_of(key: str) -> str:
    """Return the unit that a key's name carries."""
    for ending, unit in UNITS.items():
        if key.endswith(ending):
            return f" ({unit})"
    return ""


def range_of(field: Schema) -> str:
    """Return the bounds in words."""
    least = field.get("minimum")
    above = field.get("exclusiveMinimum")
    most = field.get("maximum")
    below = field.get("exclusiveMaximum")
    words = []
    if least is not None:
        words.append(f"from {least:,}")
    if above is not None:
        words.append(f"above {above:,}")
    if most is not None:
        words.append(f"to {most:,}")
    if below is not None:
        words.append(f"below {below:,}")
    return f", {' '.join(words)}" if words else ""


def study_page() -> str:
    """Return the page of study.yaml."""
    from common.study.plan import Study

    before = [
        "The study plan: one file that both sides read. The operator signs it, each site approves",
        "it. Every number in it is public. An unknown key is an error, and all problems are named",
        "at once.",
        "`kohort-server plan study.yaml` checks a plan and prints what it spends.",
        "",
        "An example is [at the end of this page](#an-example); others are in `deploy/studies/`.",
        "",
    ]
    example = (ROOT / "deploy" / "studies" / "fundus.yaml").read_text()
    after = ["## An example", "", *fenced("yaml", example)]
    return key_page("study.yaml", Study, before).rstrip() + "\n\n" + "\n".join(after)


def site_page() -> str:
    """Return the page of site.yaml."""
    from client.state.config import SiteConfig
    from client.state.sample import sample

    text = sample("hospital-a", "/data/dicom", "/data/labels.csv")
    before = [
        "The hospital's own file, in the state folder. `kohort-site init` writes it with these",
        "defaults. Nothing in a study plan or on the server can raise its limits.",
        "",
        *fenced("yaml", text),
    ]
    return key_page("site.yaml", SiteConfig, before)


def server_page() -> str:
    """Return the page of server.yaml."""
    from server.operator import config

    given = {"name": "example", "url": "https://kohort.example.org:9443"}
    text = config.sample(config.ServerConfig.model_validate(given))
    before = [
        "The operator's file, in the server's state folder. `kohort-server init` writes it.",
        "No key of it can change a privacy parameter: those stand in the signed plan.",
        "",
        *fenced("yaml", text),
    ]
    return key_page("server.yaml", config.ServerConfig, before)
