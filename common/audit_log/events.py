"""Every event that a log may hold, with the names of its facts: the one list of both sides.

Guarantees: an event that is not listed here, or with other facts, cannot be written; no fact names
a patient, or a number of them.
Not covered: whether a fact is true; the code that does the deed gives it.
"""

from __future__ import annotations

from collections.abc import Mapping

# `plan` is a plan's hash, `round` the key of a round: plan/phase/model/number/part. `operator_log`
# is the head of the operator's log that came with the instruction, "" where none did. `old` and
# `new` are the lines of signing keys. `way` is `screen` or `file`. `of` is `server` or `site:NAME`,
# `authority` a key id, `ends` a time
SITE: Mapping[str, tuple[str, ...]] = {
    "joined": ("operator", "server"),
    "plan-approved": ("plan", "by"),
    "plan-refused": ("plan", "code"),
    "reserved": ("round", "weights"),
    "signed": ("round", "digest", "operator_log"),
    "reviewed": ("batch", "decision", "by"),
    "exported": ("plan", "digest"),
    "withdrawn": ("commitment",),
    "persons-decided": ("commitment",),
    "quarantine-read": ("plan", "way"),
    "key-changed": ("old", "new"),
    "state-lost": ("epsilon",),
}
SERVER: Mapping[str, tuple[str, ...]] = {
    "plan-signed": ("plan",),
    "site-enrolled": ("site", "fingerprint"),
    "site-quarantined": ("site", "code"),
    "site-released": ("site",),
    "site-revoked": ("site",),
    "site-key-changed": ("site", "old", "new"),
    "key-changed": ("old", "new"),
    "certificate-issued": ("of", "ends"),
    "authority-made": ("authority", "ends"),
    "authority-dropped": ("authority",),
    "round-closed": ("round", "accepted"),
    "study-extended": ("plan", "seconds"),
    "study-abandoned": ("plan",),
    "study-complete": ("plan",),
    "release-proposed": ("plan", "release"),
    "release-signed-off": ("plan", "release", "by"),
    "release-published": ("plan", "release"),
    "release-withdrawn": ("release", "reason"),
    "catalogue-published": ("version", "digest"),
}
EVENTS: Mapping[str, tuple[str, ...]] = {**SITE, **SERVER}
