"""Unit files of systemd as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"


@dataclass(frozen=True)
class Unit:
    """The keys of a unit file, each with all its values in order."""

    keys: dict[str, list[str]]

    @classmethod
    def read(cls, name: str) -> Unit:
        """Return a unit of deploy/systemd."""
        keys: dict[str, list[str]] = {}
        for line in (FOLDER / name).read_text().splitlines():
            if line and line[0] not in "#[":
                key, _, value = line.partition("=")
                keys.setdefault(key, []).append(value)
        return cls(keys)

    def one(self, key: str) -> str:
        """Return the value of a key that stands once."""
        [value] = self.keys[key]
        return value

    def all(self, key: str) -> str:
        """Return the values of a key, joined."""
        return " ".join(self.keys.get(key, []))
