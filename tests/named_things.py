"""Finds the commands, options, keys and paths in a text, and those of them that do not exist.

In: a text of the sources or documents.
Out: one line for each name that no program, schema or folder has.
Not covered: whether the sentence around a name is true.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import typer
from pydantic import BaseModel

from docs.generator.sources import package_files

ROOT = Path(__file__).parents[1]
PACKAGES = ("client", "server", "common", "kohort")
FOLDERS = (*PACKAGES, "tests", "deploy", "docs", "benchmarks")
EXTENSIONS = (
    "py|md|toml|yaml|yml|json|csv|npz|png|jpg|safetensors|sqlite|j2|txt|html|pub|key|crt|sig|lock"
    "|c2pa"
)
VALUE = "\N{OBJECT REPLACEMENT CHARACTER}"  # stands for what an f-string or template fills in

CODE_SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?<![\w./-])(kohort(?:-site|-server)?) ([a-z][a-z_-]*)([^`\n|#;&()]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
KEY = re.compile(
    rf"(?<![\w./{VALUE}-])([a-z]+)((?:\[\w*\])?(?:\.(?:[a-z][a-z_0-9]*|{VALUE}))+)(?![\w(/])"
)
DOTTED = re.compile(r"[a-z][a-z_]*(?:\.[a-z][a-z_0-9]*)+")
PATH = re.compile(rf"(?<![\w./{VALUE}~-])(?:{'|'.join(FOLDERS)})/[\w./*{VALUE}-]*[\w*/]")
MODULE = re.compile(rf"(?<![\w./@-])(?:{'|'.join(PACKAGES)})(?:\.[a-z_]+)+(?![\w/]|\.[a-z])")
FILE = re.compile(r"(?<![\w./*-])[a-z][a-z_]*\.py\b")


ACTIONS = {("kohort-site", "ledger"): {"verify"}, ("kohort-server", "sites"): {"revoke", "release"}}


# --- what exists


@functools.cache
def groups() -> dict[str, click.Group]:
    """The programs, each a group of commands with options of its own."""
    from client.cli.main import app as site
    from kohort.commands import app as researcher
    from server.cli.main import app as operator

    found = {}
    for name, app in (("kohort-site", site), ("kohort-server", operator), ("kohort", researcher)):
        group = typer.main.get_command(app)
        assert isinstance(group, click.Group)
        found[name] = group
    return found


@functools.cache
def programs() -> dict[str, dict[str, click.Command]]:
    """The commands of each program, by name."""
    from server.demo.rehearsal import app as demo

    found = {name: dict(group.commands) for name, group in groups().items()}
    # `kohort demo` passes its options on to a program of its own.
    found["kohort"]["demo"] = typer.main.get_command(demo)
    return found


def options_of(command: click.Command) -> set[str]:
    """The options of a command."""
    found = {"--help"}
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            found |= {*parameter.opts, *parameter.secondary_opts}
    return found


@functools.cache
def all_options() -> set[str]:
    """The options of all programs."""
    found: set[str] = set()
    for group in groups().values():
        found |= options_of(group)
    for commands in programs().values():
        for command in commands.values():
            found |= options_of(command)
    return found


@functools.cache
def schemas() -> tuple[type[BaseModel], ...]:
    """The models of site.yaml, server.yaml and study.yaml."""
    from client.state.config import SiteConfig
    from common.study.plan import Study
    from server.operator.config import ServerConfig

    return (SiteConfig, ServerConfig, Study)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in an annotation such as `tuple[SitePlan, ...]` or `Synthesis | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from models_in(argument)


@functools.cache
def sections() -> set[str]:
    """The keys of the three files that hold other keys."""
    found = set()
    for schema in schemas():
        for name, field in schema.model_fields.items():
            if any(models_in(field.annotation)):
                found.add(name)
    return found


def key_exists(parts: list[str]) -> bool:
    """Whether one of the three files has this path of keys; VALUE stands for any key."""
    level: list[type[BaseModel]] = list(schemas())
    for depth, part in enumerate(parts):
        fields = []
        for model in level:
            for name, field in model.model_fields.items():
                if part in (name, VALUE):
                    fields.append(field)
        if not fields:
            return False
        level = [model for field in fields for model in models_in(field.annotation)]
        if not level:
            return depth == len(parts) - 1
    return True


@functools.cache
def file_names() -> set[str]:
    """The names of all Python files of the repository."""
    return {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}


def module_exists(dotted: str) -> bool:
    """Whether a dotted name of ours is a folder, a module or something that a module names."""
    place = ROOT
    for part in dotted.split("."):
        if (place / part).is_dir():
            place = place / part
        elif (place / f"{part}.py").is_file():
            place = place / f"{part}.py"
        else:
            text = place if place.is_file() else place / "__init__.py"
            return text.is_file() and re.search(rf"\b{part}\b", text.read_text()) is not None
    return True


def path_exists(name: str) -> bool:
    """Whether the repository has a path; `*` and VALUE stand for anything."""
    pattern = name.replace(VALUE, "*").rstrip("/")
    return any(ROOT.glob(pattern)) if "*" in pattern else (ROOT / pattern).exists()


# --- what a text names


def wrong_names(text: str, *, code: bool) -> Iterator[str]:
    """Yield what a text names and nobody has.

    `code`: the text is a command or a message as a whole, so names need no code span.
    """
    for span in CODE_SPAN.findall(text):
        yield from wrong_commands(span, must_be_one=True)
        yield from wrong_keys(span)
    if code:
        yield from unknown_keys(text)
    lines = [text] if code else fenced_lines(text)
    for line in lines:
        yield from wrong_commands(line, must_be_one=False)
        yield from wrong_keys(line)
    for name in PATH.findall(text):
        if not path_exists(name):
            yield f"path {name}"
    for name in MODULE.findall(text):
        is_file = re.fullmatch(EXTENSIONS, name.rpartition(".")[2])
        # A text without a blank may be the name of a logger.
        if " " in text and not is_file and not module_exists(name):
            yield f"module {name}"
    for name in FILE.findall(text):
        if name not in file_names():
            yield f"file {name}"


def wrong_commands(span: str, *, must_be_one: bool) -> Iterator[str]:
    """Yield the commands and options in a span that do not exist.

    In prose, "kohort-site cannot" is no command. There a name is wrong if it is close to a real
    one, or if the command begins the text, a parenthesis or a line after `$`.
    """
    for match in COMMAND.finditer(span):
        program, name, rest = match.groups()
        commands = programs()[program]
        before = span[: match.start()].strip()
        begins = program != "kohort" and (not before or before.endswith("("))
        if name not in commands:
            close = program != "kohort" and get_close_matches(name, commands, 1, 0.75)
            if must_be_one or begins or close or before == "$":
                yield f"command {program} {name}"
            continue
        known = options_of(commands[name])
        for option in OPTION.findall(rest):
            if option not in known:
                yield f"option {program} {name} {option}"
        action = re.match(r" ([a-z]+)\b", rest)
        allowed = ACTIONS.get((program, name))
        if must_be_one and allowed and action and action[1] not in allowed:
            yield f"action {program} {name} {action[1]}"


def fenced_lines(text: str) -> list[str]:
    """Return the lines of the fenced blocks, but for those that show a wrong key on purpose."""
    lines = [line for block in FENCE.findall(text) for line in block.splitlines()]
    return [line for line in lines if "unknown key" not in line]


def wrong_options(text: str) -> Iterator[str]:
    """Yield the options in a sentence that no program of ours has."""
    for option in OPTION.findall(text):
        if option not in all_options():
            yield f"option {option}"


def wrong_keys(span: str) -> Iterator[str]:
    """Yield the dotted keys in a span that begin with a section of a file and do not exist."""
    for match in KEY.finditer(span):
        section, rest = match.groups()
        parts = [section, *re.findall(rf"\.([a-z0-9_]+|{VALUE})", rest)]
        is_file = re.fullmatch(EXTENSIONS, parts[-1])
        if section in sections() and not is_file and not key_exists(parts):
            yield f"key {'.'.join(parts)}"


def unknown_keys(text: str) -> Iterator[str]:
    """Yield the code spans that are a dotted name as a whole, but no key, file or module.

    Docstrings and comments may name attributes; messages and documents have no reason to.
    """
    for span in CODE_SPAN.findall(text):
        if not DOTTED.fullmatch(span):
            continue
        first = span.partition(".")[0]
        last = span.rpartition(".")[2]
        if first in sections() or re.fullmatch(EXTENSIONS, last):
            continue
        known = module_exists(span) if first in PACKAGES else find_spec(first) is not None
        if not known:
            yield f"key {span}"


# --- the texts


def string_constants(source: str) -> Iterator[tuple[int, str, bool]]:
    """Yield line, text and whether it is a docstring, for every string of a Python file."""
    tree = ast.parse(source)
    docstrings = set()
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.add(id(first.value))
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            yield node.lineno, joined_text(node), False
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in inside
        ):
            yield node.lineno, node.value, id(node) in docstrings


def joined_text(node: ast.JoinedStr) -> str:
    """The text of an f-string, with VALUE for what it fills in."""
    text = ""
    for part in node.values:
        text += str(part.value) if isinstance(part, ast.Constant) else VALUE
    return text


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of every comment of a Python file."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def wrong_in_source(source: str) -> Iterator[str]:
    """Yield `line: what` for every wrong name in the strings and comments of a Python file."""
    for line, text, is_docstring in string_constants(source):
        for wrong in wrong_names(text, code=not is_docstring):
            yield f"{line}: {wrong}"
        if not is_docstring and " " in text.strip():
            for wrong in wrong_options(text):
                yield f"{line}: {wrong}"
    for line, text in comments(source):
        for wrong in wrong_names(text, code=False):
            yield f"{line}: {wrong}"


def sources() -> list[Path]:
    """The Python files of the product."""
    return sorted(path for package in PACKAGES for path in package_files(package, "*.py"))


def documents() -> list[Path]:
    """The documents that describe the product as it is; the change log describes what it was."""
    found = [ROOT / name for name in ("README.md", "SECURITY.md", "THREAT_MODEL.md")]
    found += [*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.toml")]
    for package in PACKAGES:
        found += [*package_files(package, "*.md"), *package_files(package, "*.j2")]
    return sorted(path for path in found if path.is_file() and path.name != "changelog.md")


def study_files() -> list[Path]:
    """The example plans; their comments name commands."""
    return sorted((ROOT / "deploy" / "studies").glob("*.yaml"))


def wrong_in_document(text: str, *, own_options: bool = True) -> Iterator[str]:
    """Yield every wrong name in a document; `{{ ... }}` of a template is VALUE.

    `own_options`: a code span that is an option alone means one of ours.
    """
    text = re.sub(r"\{\{.*?\}\}", VALUE, text)
    yield from wrong_names(text, code=False)
    yield from unknown_keys(text)
    if own_options:
        for span in CODE_SPAN.findall(text):
            if span.startswith("--"):
                yield from wrong_options(span)
