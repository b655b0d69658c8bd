"""What a refresh changed in files: two cohorts' lists compared, by opaque ids.

In: the folders of the old cohort and of the new one. Out: `FileChanges`, for the site's own screen.
Guarantees: no file is opened but the four lists.
Not covered: what changed in persons (refresh.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from client.ingest.listing import input_ids, read_listing
from client.ingest.refused import LIST, read_refused


@dataclass(frozen=True)
class FileChanges:
    """How many files came, went or changed, were repaired, or are refused now.

    `repaired`: files that did not enter before, and do now. `refused`: files that were there and
    not refused before, and are now.
    """

    new: int
    gone: int
    changed: int
    repaired: int
    refused: int

    def line(self) -> str:
        """Return what a person reads."""
        return (
            f"files: {self.new} new, {self.gone} gone, {self.changed} changed; {self.repaired} "
            f"that were refused enter now, {self.refused} that were not are refused now"
        )


def compare_files(old: Path, new: Path, key: bytes) -> FileChanges | None:
    """Return what changed from one cohort to the next; None where the old one kept no lists.

    Raises RefusedError for a damaged list.
    """
    before, after = read_listing(old), read_listing(new)
    if before is None or after is None or not (old / LIST).is_file():
        return None
    for file_id in input_ids(key):
        before.pop(file_id, None)
        after.pop(file_id, None)
    both = before.keys() & after.keys()
    refused_before = {file_id for file_id, _ in read_refused(old / LIST)}
    refused_after = {file_id for file_id, _ in read_refused(new / LIST)}
    return FileChanges(
        new=len(after.keys() - both),
        gone=len(before.keys() - both),
        changed=sum(before[file_id] != after[file_id] for file_id in both),
        repaired=len((refused_before - refused_after) & both),
        refused=len((refused_after - refused_before) & both),
    )
