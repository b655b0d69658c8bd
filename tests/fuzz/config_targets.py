"""Targets: study.yaml, site.yaml, server.yaml, and the bundle of a plan."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from client.state.config import SiteConfig, load_site
from client.state.plan_check import check_plan
from client.state.sample import sample as site_sample
from common.config import build_model, load_yaml
from common.study.bundle import open_bundle, write_bundle
from common.study.plan import Study, load_study
from common.wire import signing
from common.wire.app_bundle import app_files, check_app, write_app
from server.operator.config import ServerConfig, check_config, load_config
from server.operator.config import sample as server_sample
from tests.fuzz.harness import Parser, Target
from tests.fuzz.mutation import damaged, exchanged, one_of, revalued, wrapped
from tests.studies import SMALL, VESSELS, small_plan

MARK = yaml.Mark("", 0, 0, 0, "", 0)
COMMENT = re.compile(r"  # .*")


class Plain(str):
    """A number as it was spelled."""


def node_of(value: object) -> yaml.Node:
    """The node tree of plain data, as YAML text would give it."""
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        pairs = [(node_of(name), node_of(child)) for name, child in value]
        return yaml.MappingNode("", pairs, MARK, MARK)
    if isinstance(value, list):
        return yaml.SequenceNode("", [node_of(child) for child in value], MARK, MARK)
    if isinstance(value, str) and not isinstance(value, Plain):
        return yaml.ScalarNode("", value, MARK, MARK, style='"')
    text = {None: "null", True: "true", False: "false"}.get(value, value)  # type: ignore[call-overload]
    return yaml.ScalarNode("", str(text), MARK, MARK)


def nodes(data: bytes) -> yaml.Node | None:
    """The node tree of JSON text; None for anything else. Double keys stay double."""
    try:
        found = json.loads(
            data,
            parse_int=Plain,
            parse_float=Plain,
            parse_constant=Plain,
            object_pairs_hook=list,
        )
        return node_of(found)
    except (ValueError, RecursionError):
        return None


def model_parser(
    model: type[BaseModel], seeds: list[dict[str, Any]], use: Callable[[Any], object] = repr
) -> Parser:
    """The parser of a model's node trees; `use` is what the product asks of the value."""

    def call(data: bytes) -> None:
        node = nodes(data)
        if isinstance(node, yaml.MappingNode):
            use(build_model(node, model, Path("file.yaml")))

    texts = [json.dumps(seed, separators=(",", ":")).encode() for seed in seeds]
    names = tuple(json.dumps(name).encode() for seed in seeds for name in _names(seed))
    return Parser(call, (revalued(*texts), revalued(*texts, odd=names), exchanged(*texts)))


def _names(data: Any) -> list[str]:
    """Every key of nested data."""
    if not isinstance(data, dict):
        return []
    return [*data, *(name for child in data.values() for name in _names(child))]


def use_study(study: Study) -> None:
    """What both sides ask of a plan before they trust it."""
    study.hash()
    study.strata()
    study.checkpoints()
    study.cells_per_stratum  # noqa: B018
    for model in study.models.trained().values():
        study.sampling_rate(model)


def _study_fields(folder: Path) -> Parser:
    return model_parser(Study, [SMALL, VESSELS], use_study)


def _site_fields(folder: Path) -> Parser:
    config = SiteConfig.model_validate({"site": "hospital-a", "data": {"folder": "/data"}})
    return model_parser(SiteConfig, [config.model_dump(mode="json")])


def _server_fields(folder: Path) -> Parser:
    config = check_config("eye", "https://kohort.example.org:9443")
    odd = [config.model_dump(mode="json"), {"name": "a", "url": "https://[::1]:9443"}]
    return model_parser(ServerConfig, odd, lambda config: (config.host, config.url_port))


FRAGMENTS = (
    b"format: kohort-study/1\nname: small\n",
    b"sites: [{name: a}, {name: b}]\nquorum: 2\n",
    b"privacy:\n  epsilon: 8.0\n  delta: 1e-5\n",
    b"intake:\n  labels:\n  - none\n  - severe\n",
    b"title: >-\n  text\n  more\nmodels: {gan: {rounds: 2}}\n",
    b'"a": "b\\u0041"\n? c\n: d\n',
    b"- a\n- {b: [c, d]}\n",
    b"# only a comment\n---\na: |\n  b\n...\n",
)


def _yaml(folder: Path) -> Parser:
    path = folder / "study.yaml"

    class Anything(BaseModel, extra="allow"):
        """Every file of keys and values."""

    def call(data: bytes) -> None:
        path.write_bytes(data)
        load_yaml(path, Anything)

    return Parser(call, (exchanged(*FRAGMENTS), damaged(*FRAGMENTS)))


def _plain(text: str) -> bytes:
    """A generated file without its comments: it is parsed faster."""
    return COMMENT.sub("", text).encode()


def _study_file(folder: Path) -> Parser:
    path = folder / "study.yaml"
    seed = json.dumps(small_plan()).encode()

    def call(data: bytes) -> None:
        path.write_bytes(data)
        use_study(load_study(path))

    return Parser(call, (revalued(seed), exchanged(seed), damaged(seed)), good=seed)


def _site_file(folder: Path) -> Parser:
    seed = _plain(site_sample("hospital-a", "/data"))

    def call(data: bytes) -> None:
        (folder / "site.yaml").write_bytes(data)
        load_site(folder)

    return Parser(call, (exchanged(seed), damaged(seed)))


def _server_file(folder: Path) -> Parser:
    seed = _plain(server_sample(check_config("eye", "https://kohort.example.org:9443")))

    def call(data: bytes) -> None:
        (folder / "server.yaml").write_bytes(data)
        load_config(folder / "server.yaml")

    return Parser(call, (exchanged(seed), damaged(seed)))


def _bundle(folder: Path) -> Parser:
    """A hospital opens a bundle: one of its files is another's, or damaged."""
    key = signing.new_key()
    (folder / "study.yaml").write_text(json.dumps(small_plan()))
    write_bundle(folder / "study.yaml", key, folder / "bundle")
    good = [(folder / "bundle" / name).read_bytes() for name in ("study.yaml", "study.sig")]

    def call(data: bytes) -> None:
        which = data[:1] == b"\1"
        (folder / "bundle" / "study.yaml").write_bytes(good[0] if which else data[1:])
        (folder / "bundle" / "study.sig").write_bytes(data[1:] if which else good[1])
        open_bundle(folder / "bundle", key.public_key())

    small = exchanged(b"format: kohort-study/1\n")
    makers = (one_of(revalued(good[0]), damaged(good[1])), one_of(small))
    return Parser(call, makers, good=b"\0" + good[0])


def _policy(folder: Path) -> Parser:
    """A plan that the operator signed, against the site's policy."""
    config = SiteConfig.model_validate({"site": "hospital-a", "data": {"folder": "/data"}})
    return model_parser(Study, [SMALL], lambda study: check_plan(study, config.policy, "b"))


def _app(folder: Path) -> Parser:
    write_app(folder / "app", b"format: kohort-study/1\n")
    files = app_files(b"format: kohort-study/1\n")

    def call(data: bytes) -> None:
        name = "study.yaml" if data[:1] == b"\1" else "pyproject.toml"
        (folder / "app" / name).write_bytes(data[1:])
        check_app(folder / "app")
        (folder / "app" / name).write_bytes(files[name])

    texts = (exchanged(files["pyproject.toml"]), damaged(files["study.yaml"]))
    return Parser(call, (one_of(*texts), wrapped(damaged(b"x"), lambda data: b"\0" + data)))


TARGETS = (
    Target(
        "yaml",
        ("common.config:load_yaml", "common.config:read_text", "common.config:compose"),
        _yaml,
        few=400,
    ),
    Target("study-fields", ("common.config:parse_yaml",), _study_fields),
    Target("site-fields", ("common.config:parse_yaml",), _site_fields),
    Target("server-fields", ("common.config:parse_yaml",), _server_fields),
    Target("study-yaml", ("common.study.plan:load_study",), _study_file, few=60),
    Target("site-yaml", ("client.state.config:load_site",), _site_file, few=60),
    Target("server-yaml", ("server.operator.config:load_config",), _server_file, few=60),
    Target("site-policy", ("client.state.plan_check:check_plan",), _policy, few=300),
    Target("plan-bundle", ("common.study.bundle:open_bundle",), _bundle, few=60),
    Target("app-bundle", ("common.wire.app_bundle:check_app",), _app),
)
