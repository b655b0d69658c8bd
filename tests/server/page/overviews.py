"""An operator's overview by hand: a consortium in which nothing is wrong, and changes of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from common.codes import advise
from common.storage.heartbeat import Life
from common.wire.expiry import SITE, Ending, Lifetime, severity_of
from server.operator.expiry import SITE_FIX
from server.page.disk import DiskRow
from server.page.overview import CertificateRow, Overview
from server.page.releases import ReleaseRow
from server.rounds.record import Progress
from server.rounds.standing import Declared, Missing, SiteStanding, Standing, StudyStanding

NOW = datetime(2026, 12, 1, 9, 30, tzinfo=UTC)
GIB = 1 << 30
PROPOSAL = Path("/srv/releases/proposed/fundus-1.1.0")


def life(**changes: Any) -> Life:
    """A server that runs."""
    started = NOW - timedelta(days=3)
    return replace(Life("running", 4711, started, NOW - timedelta(seconds=4)), **changes)


def study(name: str = "fundus", **changes: Any) -> StudyStanding:
    """A study whose rounds go on; `changes` are of its progress."""
    progress = Progress(3, 8, "gan round 4 of 8", "waiting for hospital-c", False)
    sites = ("hospital-a", "hospital-b", "hospital-c")
    return StudyStanding(name, "6f" * 32, replace(progress, **changes), (), sites, 2)


def site(name: str, **changes: Any) -> SiteStanding:
    """A site that is connected."""
    known = SiteStanding(
        name, "registered", NOW - timedelta(seconds=7), True, None, ("fundus",), "SHA256:x"
    )
    return replace(known, **changes)


def release(**changes: Any) -> ReleaseRow:
    """A published release, signed off by two."""
    known = ReleaseRow(
        Path("/srv/releases/fundus-1.0.0"), False, "fundus", "1.0.0", 240, 2,
        ("hospital-a", "hospital-c"), ("hospital-b",),
    )  # fmt: skip
    return replace(known, **changes)


def disk(used: float = 0.2) -> DiskRow:
    """A folder that is used to this share."""
    used_bytes = int(100 * GIB * used)
    folder = Path("/var/lib/kohort-server/studies")
    return DiskRow(folder, "studies_gib", used_bytes, 100 * GIB, 900 * GIB)


def certificate(whose: str, days: int) -> CertificateRow:
    """A certificate of a site that ends in so many days."""
    ends = NOW + timedelta(days=days, hours=1)
    severity = severity_of(ends, SITE, NOW) or ""
    return CertificateRow(whose, ends, days, severity, SITE_FIX)


def ending(days: int) -> Ending:
    """The word on a certificate that ends in so many days."""
    one = Lifetime("hospital-b", NOW + timedelta(days=days), SITE, SITE_FIX)
    return Ending(one.whose, one.ends, severity_of(one.ends, SITE, NOW) or "info", one.fix)


def standing(**changes: Any) -> Standing:
    """Three sites, one study, nothing wrong."""
    sites = tuple(site(name) for name in ("hospital-a", "hospital-b", "hospital-c"))
    known = Standing(NOW, life(), (study(),), {}, sites, (), ())
    return replace(known, **changes)


def overview(**changes: Any) -> Overview:
    """What the page shows of it."""
    known = Overview(
        name="eye-consortium",
        state=Path("/var/lib/kohort-server"),
        standing=standing(),
        certificates=(certificate("hospital-a", 21), certificate("the server", 600)),
        disk=(disk(),),
        releases_in=Path("/srv/releases"),
        releases=(release(),),
    )
    return replace(known, **changes)


def troubled() -> Overview:
    """A consortium with much to mend: what the screenshot in the docs shows."""
    sites = (
        site("hospital-a"),
        site(
            "hospital-b",
            connected=False,
            seen=NOW - timedelta(hours=5),
            declared=Declared(
                advise("E-PLAN-MEMORY"), "fundus, gan round 4 of 8", "2026-12-01T04:12:00+00:00"
            ),
        ),
        site("hospital-c"),
        site("hospital-d", state="quarantined", declared=Declared(advise("E-INTAKE-SIZE"))),
    )
    waits = study(
        waiting="waiting for hospital-b", code="E-QUORUM", since="2026-12-01T04:15:00+00:00"
    )
    absent = (Missing("hospital-b", 2, "2026-11-30T22:40:00+00:00"),)
    complete = study("chest", done=4, total=4, complete=True, phase="closing", waiting="")
    proposed = release(
        folder=PROPOSAL, proposed=True, version="1.1.0", signed=("hospital-a",),
        waiting=("hospital-b", "hospital-c"),
    )  # fmt: skip
    return overview(
        standing=standing(
            studies=(replace(waits, missing=absent), complete), sites=sites, ending=(ending(2),)
        ),
        certificates=(
            certificate("hospital-b", 2),
            certificate("hospital-a", 21),
            certificate("hospital-c", 24),
            certificate("the server", 600),
            certificate("the authority", 2900),
        ),
        disk=(disk(0.42), replace(disk(0.1), folder=Path("/srv/releases"), key="releases_gib")),
        releases=(proposed, release()),
    )
