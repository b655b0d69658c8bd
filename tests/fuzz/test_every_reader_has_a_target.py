"""A new reader of outside bytes needs a target, or a reason why none of its bytes are foreign."""

from __future__ import annotations

import ast

from tests.fuzz.readers import EXEMPT, PRODUCT, ROOT, readers
from tests.fuzz.targets import TARGETS

COVERED = {name for target in TARGETS.values() for name in target.reads}


def _is_named(reader: str, names: set[str]) -> bool:
    """Whether a list names the function, what holds it, its module, or a room above it."""
    module, _, function = reader.partition(":")
    parts = module.split(".")
    places = {".".join(parts[:n]) for n in range(1, len(parts) + 1)} | {reader}
    holders = function.split(".")
    places |= {f"{module}:{'.'.join(holders[:n])}" for n in range(1, len(holders))}
    return bool(places & names)


def test_every_reader_has_a_target_or_a_reason() -> None:
    found = readers()
    assert len(found) > 100
    missing = sorted(name for name in found if not _is_named(name, COVERED | EXEMPT.keys()))
    assert not missing, f"{missing}: give each a target in tests/fuzz, or a reason in readers.py"


def test_no_reason_stands_for_a_reader_that_is_gone() -> None:
    found = readers()
    stale = [name for name in EXEMPT if not any(_is_named(reader, {name}) for reader in found)]
    assert not stale


def test_every_target_names_functions_that_exist() -> None:
    defined = set()
    for room in PRODUCT:
        for path in (ROOT / room).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            defined.add(module)
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    defined.add(f"{module}:{node.name}")
    unknown = {name for name in COVERED if name.partition(".")[0] not in PRODUCT}
    unknown |= {name for name in COVERED if not _is_named(name, defined)}
    assert not unknown
