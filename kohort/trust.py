"""Whom a reader trusts: fingerprints, from what stands on the command line or in a file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from kohort import signatures
from kohort.errors import ConfigurationError
from kohort.files import read_capped

FILE_CAP_BYTES = 1 << 16
FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/=]+")
EXPECTED = "a fingerprint SHA256:..., a line with `ssh-ed25519 AAAA...`, or a file of such lines"


def read_trust(given: Iterable[str]) -> frozenset[str]:
    """Return the fingerprints in, or of, what a reader gave.

    Each is a fingerprint, a key line, or a file of such lines, as `allowed_signers` is one. Raises
    ConfigurationError for anything else, and for a file that names nobody.
    """
    found: set[str] = set()
    for text in given:
        one = _fingerprint_in(text)
        if one is None:
            found |= _read_file(Path(text))
        else:
            found.add(one)
    return frozenset(found)


def _read_file(path: Path) -> set[str]:
    """The fingerprints of a file: one on a line, blank lines and comments left out."""
    if not path.is_file():
        raise ConfigurationError(f"--trust {path}: expected {EXPECTED}")
    found = set()
    lines = read_capped(path, FILE_CAP_BYTES).decode("utf-8", "replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        one = _fingerprint_in(line)
        if one is None:
            raise ConfigurationError(f"{path}:{number}: expected {EXPECTED}")
        found.add(one)
    if not found:
        raise ConfigurationError(f"{path}: names nobody", hint=f"expected {EXPECTED}")
    return found


def _fingerprint_in(text: str) -> str | None:
    """The fingerprint in a line, or of the key in it; None where there is neither."""
    stated = FINGERPRINT.search(text)
    key = KEY.search(text)
    if key:
        return signatures.fingerprint(signatures.parse_public(key[0]))
    return stated[0] if stated else None
