"""What a person should mend now, each with the command that mends it.

In: what stands. Out: alerts, errors first. Those of server, studies, sites and certificates come
from server/rounds/standing.py; here are those of releases and disks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from common.alerts import Alert
from server.page.disk import FULL, NEAR, DiskRow
from server.page.releases import ReleaseRow


def of_releases(rows: Iterable[ReleaseRow]) -> Iterator[Alert]:
    """Yield what releases wait for, and which are not as they were signed."""
    for row in rows:
        if row.problem:
            yield Alert(
                "error",
                row.problem,
                f"{row.folder} is not as it was signed",
                f"take it off the web; `kohort verify {row.folder}` names the file",
            )
        elif row.proposed and row.missing:
            names = ", ".join(row.waiting)
            yield Alert(
                "warning",
                "E-SIGN-OFF",
                f"{row.title} waits for {row.missing} more of {names}",
                f"each of them: `kohort-server sign-off NAME --release {row.folder} --key FILE`",
            )
        elif row.proposed:
            yield Alert(
                "warning",
                "RELEASE-READY",
                f"{row.title} is signed off and not published",
                f"`kohort-server release --publish {row.folder} --out {row.folder.parents[1]}`",
            )
        elif row.missing:
            yield Alert(
                "error",
                "E-SIGN-OFF",
                f"{row.title} is published with {len(row.signed)} of {row.needed} sign-offs",
                "put the files SHA256SUMS.NAME.sig back beside SHA256SUMS; "
                f"`kohort verify {row.folder}` says whose",
            )


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
