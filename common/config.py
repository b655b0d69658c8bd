"""YAML files as frozen, typed models; every problem is named with file, line and key.

In: a path and a pydantic model.
Out: the model, or one ConfigurationError that lists all problems, as
`study.yaml:12: privacy.epsilon: ...`.
Guarantees: size cap; plain data only (no tags, no aliases, no duplicate keys); `1e-6` is a number;
an unknown key is an error with "did you mean".
Not covered: what the values mean.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from common.errors import ConfigurationError
from common.problems import describe
from common.storage.files import read_capped
from kohort.frozen import FrozenModel

__all__ = ["FrozenModel", "dotted", "load_yaml", "parse_yaml"]

Where = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)
FILE_CAP_BYTES = 1 << 20
DEPTH_CAP = 20
TOKENS_CAP = 200_000
DIGITS_CAP = 300
# the C reader of PyYAML, where it is built in, is ten times as fast
LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
INTEGER = re.compile(r"[-+]?[0-9]+")
FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}


class _Reader:
    """Turns a YAML node tree into plain data and remembers the line of every key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Where, int] = {}
        self.problems: list[str] = []

    def value(self, node: yaml.Node, where: Where) -> Any:
        self.lines.setdefault(where, node.start_mark.line + 1)
        if len(where) > DEPTH_CAP:
            return self._problem(node, where, f"nested deeper than {DEPTH_CAP} levels")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, where)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*where, i)) for i, child in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, where: Where) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, child in node.value:
            key = str(key_node.value)
            self.lines[(*where, key)] = key_node.start_mark.line + 1
            if key in found:
                self._problem(key_node, (*where, key), "given twice")
            found[key] = self.value(child, (*where, key))
        return found

    def _scalar(self, node: yaml.Node) -> Any:
        text = str(node.value)
        if getattr(node, "style", None):  # quoted: a string, whatever it looks like
            return text
        if text.lower() in WORDS:
            return WORDS[text.lower()]
        if len(text) > DIGITS_CAP:  # no number is so long
            return text
        if INTEGER.fullmatch(text):
            return int(text)
        if FLOAT.fullmatch(text):
            return float(text)
        return text

    def _problem(self, node: yaml.Node, where: Where, message: str) -> None:
        self.problems.append(
            f"{self.path.name}:{node.start_mark.line + 1}: {dotted(where)}: {message}"
        )


def dotted(where: Where) -> str:
    """Return `privacy.epsilon` or `sites[2].name` for a path of keys."""
    text = ""
    for part in where:
        if isinstance(part, int):
            text += f"[{part}]"
        elif text:
            text += f".{part}"
        else:
            text = part
    return text or "(file)"


def compose(path: Path, text: str) -> yaml.Node:
    """Return the node tree of YAML text.

    Aliases are refused, because they make small files huge; so are depth and very many values.
    """
    try:
        _check_tokens(path, text)
        node = yaml.compose(text, Loader=LOADER)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or "a character that no text file holds"
        raise ConfigurationError(
            f"{path.name}:{line}: not readable as YAML: {problem}",
            hint=f"correct {path} and try again",
        ) from error
    if not isinstance(node, yaml.MappingNode):
        raise ConfigurationError(
            f"{path.name}:1: expected `key: value` lines, got an empty file or another shape",
            hint=f"correct {path} and try again",
        )
    return node


def _check_tokens(path: Path, text: str) -> None:
    """Refuse text that would take long to read, before anything is built from it."""
    depth = 0
    for number, token in enumerate(yaml.scan(text, Loader=LOADER)):
        depth += isinstance(token, OPENING)
        depth -= isinstance(token, CLOSING)
        problem = ""
        if isinstance(token, yaml.AliasToken | yaml.AnchorToken | yaml.TagToken):
            problem = "anchors, aliases and tags are not allowed"
        elif depth > DEPTH_CAP + 1:
            problem = f"nested deeper than {DEPTH_CAP} levels"
        elif number > TOKENS_CAP:
            problem = "more values than any file of kohort has"
        if problem:
            raise ConfigurationError(
                f"{path.name}:{token.start_mark.line + 1}: {problem}",
                hint="write each value out where it is used",
            )


def _fields_at(model: type[BaseModel], where: Where) -> list[str]:
    """The keys that the model knows at the place of an unknown key."""
    current: Any = model
    for part in where:
        if isinstance(part, int):
            continue
        field = getattr(current, "model_fields", {}).get(part)
        current = None
        if field:
            current = next(iter(_models_in(field.annotation)), None)
    return list(getattr(current, "model_fields", {}))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside an annotation such as `tuple[SitePlan, ...]` or `GanPlan | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _explain(
    path: Path, model: type[BaseModel], lines: dict[Where, int], error: ValidationError
) -> list[str]:
    """One line a problem, in the order of the file."""
    rows = []
    items = error.errors(include_url=False)
    places = [tuple(item["loc"]) for item in items]
    for item, where in zip(items, places, strict=True):
        if item["type"] == "too_short" and any(_is_inside(place, where) for place in places):
            continue  # the elements were given, but are wrong themselves
        message = describe(item)
        if item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(where[-1]), _fields_at(model, where[:-1]), 1)
            if close:
                message += f"; did you mean {close[0]!r}?"
        line = _line_of(where, lines)
        rows.append((line, f"{path.name}:{line}: {dotted(where)}: {message}"))
    return [text for _, text in sorted(rows)]


def _is_inside(place: Where, where: Where) -> bool:
    """Whether a place lies below another."""
    return len(place) > len(where) and place[: len(where)] == where


def _line_of(where: Where, lines: dict[Where, int]) -> int:
    """The line of a key, or of the nearest key above it that the file holds."""
    for length in range(len(where), -1, -1):
        if where[:length] in lines:
            return lines[where[:length]]
    return 1


def load_yaml(path: Path, model: type[M], *, max_bytes: int = FILE_CAP_BYTES) -> M:
    """Return the model in a YAML file of at most `max_bytes`.

    Raises ConfigurationError with all problems.
    """
    return parse_yaml(read_text(path, max_bytes), model, path)


def read_text(path: Path, max_bytes: int = FILE_CAP_BYTES) -> str:
    """Return the text of a file that somebody wrote; raises ConfigurationError if there is none."""
    if path.is_dir():
        raise ConfigurationError(f"{path}: a folder", hint="give the path of a YAML file")
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: no such file", hint="give the path of an existing YAML file"
        )
    try:
        return read_capped(path, max_bytes).decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path.name}:1: not UTF-8 text", hint="give the path of a YAML file"
        ) from error


def parse_yaml(text: str, model: type[M], path: Path) -> M:
    """Return the model in YAML text; `path` is used for messages alone."""
    return build_model(compose(path, text), model, path)


def build_model(node: yaml.Node, model: type[M], path: Path) -> M:
    """Return the model in a YAML node tree; raises ConfigurationError with all problems."""
    reader = _Reader(path)
    data = reader.value(node, ())
    problems = list(reader.problems)
    try:
        value = model.model_validate(data)
    except ValidationError as error:
        problems += _explain(path, model, reader.lines, error)
    if problems:
        raise ConfigurationError(
            "\n".join(problems), problems=problems, hint=f"correct {path} and try again"
        )
    return value
