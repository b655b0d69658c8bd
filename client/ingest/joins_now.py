"""Lists which ids of the data folder are one person now, from headers and the labels file alone.

In: the data folder, the labels file, the site's persons file.
Out: a line for every join, as the intake shows them.
Guarantees: no pixel is read; nothing is kept or written; ids are for the site's own screen.
Not covered: pictures. What they joined in an earlier intake is shown as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from client.ingest import decode
from client.ingest.census import describe_joins, keep_stated
from client.ingest.identify import Identities, Owner
from client.ingest.joins import join_persons
from client.ingest.persons import ImageRecord
from client.ingest.quarantine import Unusable
from client.ingest.refresh import Intakes
from client.ingest.request import Glance, Settings
from client.ingest.whose import read_site_labels
from client.state.people import PeopleFile
from common.study.intake import Intake


def list_joins(intakes: Intakes, intake: Intake) -> list[str]:
    """Return a line for the ids that are one person, with the causes; sorted."""
    key = intakes.state.pseudonym_bytes()
    identities = Identities(key, read_site_labels(intakes.config, key), intake)
    with intakes.open_files(intake) as opened:
        names = list(opened.paths)
        glances = list(_glance_at(intakes, intake, list(opened.paths.values())))
    records: list[ImageRecord] = []
    for name, seen in zip(names, glances, strict=True):
        # pictures join nobody here: each has a digest of its own
        place = len(records)
        owner = Owner(seen.patient_id, seen.issuer)
        try:
            digest = place.to_bytes(8, "big")
            records.append(identities.make_record(place, owner, (name,), digest, (seen.study,)))
        except Unusable:
            continue
    known = PeopleFile(intakes.state.people).read()
    stated = keep_stated(records, identities.stated | known.names)
    joined = join_persons(stated, (), known, identities.spellings, identities.dummies)
    return describe_joins(joined.joins, identities)


def _glance_at(intakes: Intakes, intake: Intake, files: list[Path]) -> Iterator[Glance]:
    """Yield what each file shows; nobody for one that cannot be read."""
    limits = intakes.limits(intake)
    settings = Settings(
        size_px=intake.size_px,
        channels=intake.channels,
        modalities=tuple(intake.dicom_modalities),
        window=None,
        max_file_bytes=limits.max_file_bytes,
        max_pixel_bytes=limits.max_pixel_bytes,
        memory_bytes=limits.decode_memory_bytes,
        timeout_s=limits.decode_timeout_s,
    )
    with decode.decoders(settings, limits.workers) as pool:
        for seen in pool.each(decode.Decoder.glance, files):
            yield Glance("nothing") if isinstance(seen, Unusable) else seen
