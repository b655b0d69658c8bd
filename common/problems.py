"""What pydantic finds wrong with a value, in plain words: expected against got."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import ErrorDetails

Context = Mapping[str, Any]
PATTERNS = {
    r"^[a-z][a-z0-9-]{0,31}$": "lower-case letters, digits and hyphens, a letter first, "
    "at most 32 characters",
    r"^[a-z0-9][a-z0-9-]{0,31}$": "lower-case letters, digits and hyphens, no hyphen first, "
    "at most 32 characters",
    r"^[A-Z0-9 _]{1,16}$": "a code of DICOM in capitals, such as DX or CHEST",
    r"^[0-9a-f]{64}$": "64 lower-case hex digits",
    r"^[0-9]+\.[0-9]+\.[0-9]+$": "a version such as 1.0.0",
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$": "a date as YYYY-MM-DD",
    r"^https://[^/\s]+$": "https://HOST:PORT without a path",
}
EXPECTED: dict[str, Callable[[Context], str]] = {
    "string_pattern_mismatch": lambda c: PATTERNS.get(c["pattern"], f"text like {c['pattern']}"),
    "string_too_short": lambda c: f"at least {c['min_length']} characters",
    "string_too_long": lambda c: f"at most {c['max_length']} characters",
    "too_short": lambda c: f"at least {c['min_length']} entries",
    "too_long": lambda c: f"at most {c['max_length']} entries",
    "greater_than": lambda c: f"a value greater than {c['gt']:g}",
    "greater_than_equal": lambda c: f"a value greater than or equal to {c['ge']:g}",
    "less_than": lambda c: f"a value less than {c['lt']:g}",
    "less_than_equal": lambda c: f"a value less than or equal to {c['le']:g}",
    "literal_error": lambda c: str(c["expected"]),
    "string_type": lambda _: "text",
    "int_type": lambda _: "a whole number",
    "int_parsing": lambda _: "a whole number",
    "int_from_float": lambda _: "a whole number",
    "float_type": lambda _: "a number",
    "float_parsing": lambda _: "a number",
    "finite_number": lambda _: "a finite number",
    "bool_type": lambda _: "true or false",
    "bool_parsing": lambda _: "true or false",
    "list_type": lambda _: "a list",
    "tuple_type": lambda _: "a list",
    "dict_type": lambda _: "`key: value` lines",
    "model_type": lambda _: "`key: value` lines",
    "model_attributes_type": lambda _: "`key: value` lines",
}


def describe(problem: ErrorDetails) -> str:
    """Return one problem as words, without the place where it is."""
    kind = problem["type"]
    if kind == "missing":
        return "required, but missing"
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "json_invalid":
        return "not JSON"
    if kind == "value_error":  # one of our own validators: its words are ours
        return problem["msg"].removeprefix("Value error, ")
    words = EXPECTED.get(kind)
    text = f"expected {words(problem.get('ctx', {}))}" if words else problem["msg"]
    if isinstance(problem["input"], dict | list):
        return text
    return f"{text}, got {problem['input']!r}"
