"""What a person should mend now, each with the command that mends it.

In: what stands. Out: alerts, errors first. Those of server, studies, sites and certificates come
from server/rounds/standing.py; here are those of releases and disks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from common.alerts import Alert
from kohort.sign_off import MISSING
from server.page.disk import FULL, NEAR, DiskRow
from server.page.releases import ReleaseRow


def of_releases(rows: Iterable[ReleaseRow]) -> Iterator[Alert]:
    """Yield which releases are not as they should be, and what the others wait for."""
    for row in rows:
        alert = _of_signature(row) or _of_sign_offs(row)
        if alert is not None:
            yield alert


def _of_signature(row: ReleaseRow) -> Alert | None:
    """A release that was altered, or that no key of the operator signed."""
    if row.problem:
        return Alert(
            "error",
            row.problem,
            f"{row.folder} is not as it was signed",
            f"take it off the web; `kohort verify {row.folder}` names the file",
        )
    if row.other_key:
        return Alert(
            "warning",
            "OTHER-KEY",
            f"{row.title} is signed by {row.other_key}, which never was the operator's key",
            "compare with the fingerprints that you published: "
            f"`kohort verify {row.folder} --trust {row.other_key}`",
        )
    return None


def _of_sign_offs(row: ReleaseRow) -> Alert | None:
    """A release that waits for its signers, or for its operator."""
    if row.proposed and row.missing:
        return Alert(
            "warning",
            MISSING,
            f"{row.title} waits for {row.missing} more of {', '.join(row.waiting)}",
            f"each of them: `kohort-server sign-off NAME --release {row.folder} --key FILE`",
        )
    if row.proposed:
        return Alert(
            "warning",
            "RELEASE-READY",
            f"{row.title} is signed off and not published",
            f"`kohort-server release --publish {row.folder} --out {row.folder.parents[1]}`",
        )
    if row.missing:
        return Alert(
            "error",
            MISSING,
            f"{row.title} is published with {len(row.signed)} of {row.needed} sign-offs",
            "put the files SHA256SUMS.NAME.sig back beside SHA256SUMS; "
            f"`kohort verify {row.folder}` says whose",
        )
    return None


def of_disk(rows: Iterable[DiskRow]) -> Iterator[Alert]:
    """Yield a word on each folder that is nearly full."""
    for row in rows:
        if row.share >= NEAR:
            yield Alert(
                "error" if row.share >= FULL else "warning",
                "E-QUOTA",
                f"{row.folder} is {row.share:.0%} full",
                f"`du -sh {row.folder}/*` shows what lies there; move what is complete to another "
                f"disk, or raise `limits.{row.key}` in server.yaml",
            )


def sort_alerts(alerts: Iterable[Alert]) -> tuple[Alert, ...]:
    """Return errors first, each severity in the order given."""
    return tuple(sorted(alerts, key=lambda one: one.severity != "error"))
