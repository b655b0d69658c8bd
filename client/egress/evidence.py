"""What the child says of an image batch: groups, each image's group, audit codes. It stays on site.

In: evidence.json of a job folder. Out: `Evidence`.
Guarantees: a group below k cannot be read; every image names a listed group, or none.
Not covered: whether the claims are true (the gate checks them).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.state.group_store import Group, Stratum
from common.errors import RefusedError, damage_named
from common.storage.files import read_capped
from common.wire.messages import canonical

EVIDENCE_CAP_BYTES = 1 << 28
SINGLE = -1  # in Evidence.group_of: an image of one patient, of no group


@dataclass(frozen=True)
class Evidence:
    """Groups, the index of each image's group in order, and audit codes (none: all passed)."""

    groups: tuple[Group, ...]
    group_of: tuple[int, ...]
    audit: tuple[str, ...]

    def to_json(self) -> bytes:
        """Return the canonical text for the job folder."""
        groups = [_row(group) for group in self.groups]
        return canonical({"groups": groups, "group_of": self.group_of, "audit": self.audit})

    @classmethod
    def from_json(cls, text: bytes) -> Evidence:
        """Return the evidence in `to_json`'s text.

        Raises RefusedError, or PolicyError for a group below k.
        """
        damage = RefusedError("evidence: expected groups, the group of each image and audit codes")
        with damage_named(damage):
            data = json.loads(text)
            groups = tuple(_group(row) for row in data["groups"])
            group_of = tuple(data["group_of"])
            audit = tuple(data["audit"])
            _check_fields(data, group_of, len(groups))
        return cls(groups, group_of, tuple(str(code) for code in audit))

    @classmethod
    def read(cls, path: Path) -> Evidence:
        """Return the evidence in a file of a job folder."""
        return cls.from_json(read_capped(path, EVIDENCE_CAP_BYTES))


def _check_fields(data: dict[str, Any], group_of: tuple[Any, ...], groups: int) -> None:
    """Raise ValueError for a further field, or for an index that names no group."""
    known = all(type(index) is int and SINGLE <= index < groups for index in group_of)
    if len(data) != 3 or not known:
        raise ValueError("fields")


def _row(group: Group) -> dict[str, Any]:
    """A group as text."""
    return {
        "members": group.members,
        "label": group.stratum.label,
        "laterality": group.stratum.laterality,
        "k": group.k,
    }


def _group(row: dict[str, Any]) -> Group:
    """The group of `_row`'s text; `Group` itself refuses fewer than k distinct members."""
    members = tuple(row["members"])
    if not all(isinstance(member, str) and member.isascii() for member in members):
        raise ValueError("members")
    return Group(members, Stratum(int(row["label"]), int(row["laterality"])), int(row["k"]))
